"""`deepjax datasets`."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from deepjax.cli.terminal import parse, table


@dataclass(frozen=True)
class Datasets:
    """Options of `deepjax datasets`."""

    data_dir: str = ""
    """Folder to search. Empty: TFDS's own."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Prepare:
    """Options of `deepjax datasets prepare`."""

    name: tyro.conf.Positional[str]
    """TFDS's name of the data set, such as cifar10."""
    data_dir: str = ""
    """Folder in which to prepare it. Empty: TFDS's own."""


@dataclass(frozen=True)
class Sample:
    """Options of `deepjax datasets sample`."""

    folder: tyro.conf.Positional[Path]
    """New folder, in which to write flower/*.jpg and temple/*.jpg."""


def datasets(arguments):
    """List the data sets; `datasets prepare NAME` prepares one of TFDS, `datasets sample FOLDER` writes a small one."""
    if arguments[:1] == ["prepare"]:
        return _prepare(arguments[1:])
    if arguments[:1] == ["sample"]:
        return _sample(arguments[1:])
    options = parse(Datasets, arguments, "deepjax datasets", datasets.__doc__)
    from deepjax import data

    rows = data.available(options.data_dir)
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        table(rows[0]._fields, rows)
    return 0


def _prepare(arguments):
    """Download a TFDS data set and prepare it once, so that it can be read without TensorFlow.

    Needs the extra `prepare`.
    """
    options = parse(Prepare, arguments, "deepjax datasets prepare", _prepare.__doc__)
    from deepjax import data
    from deepjax.training.signals import raising

    with raising():
        data.prepare(options.name, options.data_dir)
    print(f"{options.name} is ready")
    return 0


def _sample(arguments):
    """Write a small folder of photographs: tiles of two pictures that come with scikit-learn, in two classes."""
    options = parse(Sample, arguments, "deepjax datasets sample", _sample.__doc__)
    from deepjax import data

    folder = options.folder.expanduser()
    print(f"{data.write_sample(folder)} images in {folder}")
    return 0
