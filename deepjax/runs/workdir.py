"""The folder of a run: what was run, on which data, with which versions; and whether a command may go on in it."""

import contextlib
import dataclasses
import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from filelock import FileLock, Timeout

from deepjax.config import Config, flatten, from_dict
from deepjax.data import Standardizer
from deepjax.errors import InputError
from deepjax.files import read_json, write_json

LOCK = "lock"
INPUTS = "inputs.npz"

# Where and how often things are written, and how fast images are read, may change when a run goes on.
FREE = ("workdir", "data_dir", "keep", "checkpoint_every", "log_every", "data.workers")


def check_workdir(config, name):
    """The Path of config.workdir (default runs/NAME), which is new, empty, or of a run of the same config.

    Raises InputError for a folder that holds something else, or a run of another config.
    """
    workdir = Path(config.workdir or Path("runs") / name)
    if (workdir / "config.json").exists():
        _check_same(config, _read_record(workdir)["config"], workdir)
    elif workdir.exists() and (not workdir.is_dir() or any(_is_foreign(path) for path in workdir.iterdir())):
        raise InputError(f"workdir {workdir} exists and holds no deepjax run; choose another with --workdir")
    return workdir


def _is_foreign(path):
    """Not what a run leaves that was killed before its config.json was whole, or the range test before any run."""
    return path.name not in (LOCK, "find_lr.json", "find_lr.png") and path.suffix != ".tmp"


@contextlib.contextmanager
def locked(workdir):
    """Make the folder, and hold it against other processes. Raises InputError where one has it."""
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(workdir / LOCK).acquire(timeout=0)
    except Timeout:
        raise InputError(f"workdir {workdir} is in use by another process; wait for it, or use another") from None
    with held:
        yield


def write_config(workdir, config, name, devices):
    """config.json: what is run, with which versions, where. One that is there stays as it is.

    Raises InputError where it is there and tells of another number of devices, and that number is part of the result.
    """
    if (workdir / "config.json").exists():
        count = _read_record(workdir).get("device_count")
        if config.devices.strategy == "pmap" and count != len(devices):
            raise InputError(
                f"workdir {workdir} was run on {count} devices, here are {len(devices)}; with devices.strategy pmap "
                f"their number changes the result: set --devices.count {count}, or choose another --workdir"
            )
        return
    versions = {package: version(package) for package in ("deepjax", "jax", "jaxlib", "flax", "optax", "numpy")}
    record = {
        "name": name,
        "config": dataclasses.asdict(config),
        "versions": {"python": platform.python_version(), **versions},
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "seed": config.seed,
    }
    write_json(workdir / "config.json", record)


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
    config = from_dict(Config, _read_record(Path(workdir))["config"])
    return dataclasses.replace(config, workdir=str(workdir))


def _read_record(workdir):
    """config.json, or InputError where another program wrote it."""
    record = read_json(workdir / "config.json")
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise InputError(f"{workdir / 'config.json'} is not one of a deepjax run; choose another --workdir")
    return record


class Statistics(NamedTuple):
    """What is fitted on the training set, and kept with the run."""

    standardizer: Standardizer
    lighting: np.ndarray | None = None  # f32[3, 3]: the colours' principal components, where augmentation uses them


def write_data(workdir, dataset, statistics):
    """data.json: what resuming, evaluation and prediction must know of the training set. One that is there stays.

    A standardizer that is more than a mean and a deviation per channel goes to inputs.npz.

    Raises InputError where it is there and tells of other data.
    """
    labels = [np.asarray(split.labels, np.int32) for split in (dataset.train, dataset.validation, dataset.test)]
    record = {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "shape": list(dataset.shape),
        "examples": [len(split) for split in labels],  # training, validation, test
        "labels_sha256": hashlib.sha256(b"".join(split.tobytes() for split in labels)).hexdigest(),
    }
    standardizer, lighting = statistics
    if standardizer.kind == "channel":
        record |= {"mean": standardizer.shift.tolist(), "std": standardizer.scale.tolist()}
    record["fit"] = dataset.fit
    if lighting is not None:
        record["lighting"] = lighting.tolist()
    path = workdir / "data.json"
    if not path.exists():
        if standardizer.kind != "channel":
            standardizer.save(workdir / INPUTS)
        write_json(path, record)
        return
    before = read_json(path)
    for field in ("classes", "shape", "examples", "labels_sha256"):
        if before[field] != record[field]:
            raise InputError(
                f"{dataset.name} has changed since the run in {workdir} began: its {field} were {before[field]}, are "
                f"{record[field]}; restore the data, or choose another --workdir"
            )


def read_statistics(workdir):
    """The Statistics of the run in a folder, or None where they have not been written."""
    path = Path(workdir) / "data.json"
    if not path.exists():
        return None
    record = read_json(path)
    arrays = {name: np.asarray(record[name], np.float32) for name in ("mean", "std", "lighting") if name in record}
    if "mean" in arrays:
        standardizer = Standardizer("channel", arrays["mean"], arrays["std"])
    else:
        standardizer = Standardizer.load(Path(workdir) / INPUTS)
    return Statistics(standardizer, arrays.get("lighting"))


def key_of(config):
    """The run's key: everything random in training is folded from it."""
    return jax.random.key(config.seed)
