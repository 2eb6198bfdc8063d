"""The folder of a run: what was run, on which data, with which versions; and whether a command may go on in it."""

import dataclasses
import json
import platform
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from deepjax.config import Config, flatten, from_dict
from deepjax.errors import InputError

# Where and how often things are written, and how fast images are read, may change when a run goes on.
FREE = ("workdir", "data_dir", "keep", "checkpoint_every", "log_every", "data.workers")


def check_workdir(config, name):
    """The Path of config.workdir (default runs/NAME), which is new, empty, or of a run of the same config.

    Raises InputError for a folder that holds something else, or a run of another config.
    """
    workdir = Path(config.workdir or Path("runs") / name)
    path = workdir / "config.json"
    if path.exists():
        _check_same(config, read_json(path)["config"], workdir)
    elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise InputError(f"workdir {workdir} exists and holds no deepjax run; choose another with --workdir")
    return workdir


def write_config(workdir, config, name, devices):
    """Make the folder and its config.json: what is run, with which versions, where. An old one stays as it is."""
    path = workdir / "config.json"
    if path.exists():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    versions = {package: version(package) for package in ("deepjax", "jax", "jaxlib", "flax", "optax", "numpy")}
    record = {
        "name": name,
        "config": dataclasses.asdict(config),
        "versions": {"python": platform.python_version(), **versions},
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "seed": config.seed,
    }
    write_json(path, record)


def _check_same(config, recorded, workdir):
    """Raises InputError naming every field in which the workdir's config differs."""
    ours = flatten(json.loads(json.dumps(dataclasses.asdict(config))))
    theirs = flatten(recorded)
    differing = [
        f"{field} {theirs.get(field)!r} there, {ours.get(field)!r} here"
        for field in sorted(ours.keys() | theirs.keys())
        if field not in FREE and ours.get(field) != theirs.get(field)
    ]
    if differing:
        raise InputError(
            f"workdir {workdir} holds a run of another config ({'; '.join(differing)}); choose another with --workdir"
        )


def read_config(workdir):
    """The Config of the run in a folder. Raises InputError where there is none."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"workdir {workdir} holds no run (there is no {path}); `deepjax train` makes one")
    config = from_dict(Config, read_json(path)["config"])
    return dataclasses.replace(config, workdir=str(workdir))


def write_data(workdir, dataset, mean, std):
    """data.json: what evaluation and prediction must know of the training set."""
    record = {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "shape": list(dataset.shape),
        "mean": np.asarray(mean).tolist(),
        "std": np.asarray(std).tolist(),
        "fit": dataset.fit,
    }
    write_json(Path(workdir) / "data.json", record)


def read_statistics(workdir):
    """(mean, std) per channel of the run in a folder, or None where it has not been written."""
    path = Path(workdir) / "data.json"
    if not path.exists():
        return None
    record = read_json(path)
    return tuple(np.asarray(record[name], np.float32) for name in ("mean", "std"))


def read_json(path):
    """A JSON file. Raises InputError where it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); it may be truncated") from None


def write_json(path, record):
    """Write beside and rename, so that a file is either the old one or whole."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(record, indent=2) + "\n")
    beside.replace(path)


def key_of(config):
    """The run's key: everything random in training is folded from it."""
    return jax.random.key(config.seed)
