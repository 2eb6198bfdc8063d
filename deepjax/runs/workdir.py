"""The folder of a run: the record of its config, versions and data, and whether a command may resume it."""

import contextlib
import dataclasses
import glob
import hashlib
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from filelock import FileLock, Timeout

from deepjax.config import Config, flatten, from_dict, is_free
from deepjax.data import Standardizer
from deepjax.data.records import Fit
from deepjax.errors import InputError
from deepjax.fields import option
from deepjax.files import PARTIAL, check_path, read_json, write_json
from deepjax.parallel import is_main

LOCK = "lock"
INPUTS = "inputs.npz"

# The learning rates of the epochs done do not depend on the number of epochs.
EXTENDABLE = ("constant", "exponential", "step", "warm_restarts", "plateau")


class Taken(InputError):
    """A folder that holds something else than a run of this config."""


def find_workdir(config, name):
    """Return the Path of a run's folder, and a line that says why it is not the usual one, or "".

    The folder is config.workdir. If that is empty, it is the one of runs/NAME, runs/NAME-2, ... that holds a run of
    this config, else the first one that is new or empty.

    Raise InputError if config.workdir holds something else, or a run of another config.
    """
    if config.workdir:
        return check_workdir(config, Path(config.workdir).expanduser()), ""
    parent, free, reason = Path("runs"), [], ""
    endings = (path.name.removeprefix(f"{name}-") for path in parent.glob(f"{glob.escape(name)}-*"))
    last = max((int(ending) for ending in endings if ending.isdecimal()), default=1)
    for number in range(1, last + 2):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            check_workdir(config, folder)
            _check_images(config, folder)
        except InputError as error:  # also for the damaged record of a run that the user did not name
            reason = reason or str(error).partition("; choose")[0]
            continue
        if (folder / "config.json").exists():
            return folder, "" if number == 1 else f"{folder} holds a run of this config"
        free.append((folder, f"writing to {folder}, because {reason}" if reason else ""))
    return free[0]


def _check_images(config, workdir):
    """Raise Taken for a run on another folder of images. With --workdir, the folder may have been moved."""
    if config.data.name == "folder" and (workdir / "config.json").exists():
        before = read_config(workdir).data_dir
        if before != config.data_dir:
            raise Taken(f"workdir {workdir} holds a run on other images ({before}); choose another with --workdir")


def check_workdir(config, workdir):
    """Return the Path of a folder if it is new or empty, or holds a run of this config.

    Raise Taken, an InputError, for a folder that holds something else, or a run of another config.
    """
    check_path("workdir", workdir)
    if (workdir / "config.json").exists():
        _changes(config, workdir)
    elif workdir.exists() and (not workdir.is_dir() or any(_is_foreign(path) for path in workdir.iterdir())):
        raise Taken(f"workdir {workdir} exists and holds no deepjax run; choose another with --workdir")
    return workdir


def _is_foreign(path):
    """Return whether a file is none of those that exist before config.json: of a search, or of a killed run."""
    searched = (f"{name}.{kind}" for name in ("find_lr", "search") for kind in ("json", "png"))
    return path.name not in (LOCK, *searched) and path.suffix != PARTIAL


def finished(workdir, config):
    """Return the contents of summary.json if the run in a folder has all the epochs of a config, else None.

    Raise InputError if the file is not what a run writes.
    """
    path = workdir / "summary.json"
    if not path.exists() or "epochs" in _changes(config, workdir):
        return None
    summary = read_json(path)
    has_result = isinstance(summary, dict) and isinstance(summary.get("result"), str)
    if not (has_result and all(type(v) in (int, float, list) for name, v in summary.items() if name != "result")):
        raise InputError(f"{path} holds no result; delete it, and the same command tests the run again")
    return summary


@contextlib.contextmanager
def locked(workdir):
    """Make the folder, and lock it against other processes. Raise InputError if another process has locked it."""
    if not is_main():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(workdir / LOCK).acquire(timeout=0)
    except Timeout:
        raise InputError(f"workdir {workdir} is in use by another process; wait for it, or use another") from None
    with held:
        yield


def write_config(workdir, config, name, devices):
    """Write config.json, if there is none: the config, package versions and devices. To be called inside `locked`.

    If the folder holds a run, its config must be the same, but for fields that may change when a run is resumed.
    `update_config` records those.

    Raises:
      InputError: the run in the folder has another config; or it was run on another number of devices, on which the
        result depends.
    """
    if (workdir / "config.json").exists():
        _record_and_changes(workdir, config, devices)
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
    write_record(workdir, "config.json", record)


def update_config(workdir, config, devices):
    """Record what has changed since a run was started. To be called inside `locked`, when the run can go on.

    If the number of epochs has changed, summary.json is removed.

    Returns:
      What has changed, in one line, or "".

    Raises:
      InputError: as `write_config`.
    """
    if not (workdir / "config.json").exists():  # in a process that does not write
        return ""
    record, changes = _record_and_changes(workdir, config, devices)
    if not changes:
        return ""
    if "epochs" in changes and is_main():
        (workdir / "summary.json").unlink(missing_ok=True)  # first: with the new config, it would not be the summary
    now = {"config": dataclasses.asdict(config), "device_count": len(devices)}
    write_record(workdir, "config.json", record | now)
    listed = (f"{field} from {old!r} to {new!r}" for field, (old, new) in changes.items())
    return f"changed since the run was started: {', '.join(listed)}"


def _record_and_changes(workdir, config, devices):
    """Return (config.json, what `_changes` returns and the number of devices that it comes to, if that changes).

    Raise InputError if the run cannot be resumed.
    """
    record, changes = _read_record(workdir), _changes(config, workdir)
    count = record.get("device_count")
    if config.devices.strategy != "jit" and count != len(devices):
        raise InputError(
            f"workdir {workdir} was run on {count} devices, now there are {len(devices)}; with devices.strategy "
            f"{config.devices.strategy} their number changes the result: set --devices.count {count}, or choose "
            f"another --workdir"
        )
    return record, changes | ({} if count == len(devices) else {"device_count": (count, len(devices))})


def _changes(config, workdir):
    """Return {field: (recorded value, new value)} of the fields of a recorded config that change.

    Raise InputError naming every field that must not change.
    """
    recorded = read_config(workdir)
    old, new = (flatten(dataclasses.asdict(one)) for one in (recorded, config))
    changes = {
        field: (old.get(field), new.get(field))
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and field != "workdir"
    }
    before, now = (list(one.optimizer.groups) for one in (recorded, config))
    if before != now and set(before) == set(now):  # of the groups that match a parameter, the first counts
        changes["optimizer.groups"] = (before, now)
    refused = [
        f"{field} {before!r} there, {now!r} here{_why(field, config, before, now)}"
        for field, (before, now) in changes.items()
        if not _may_change(field, config, before, now)
    ]
    if refused:
        raise Taken(
            f"workdir {workdir} holds a run of another config ({'; '.join(refused)}); choose another with --workdir"
        )
    return changes


def _may_change(field, config, before, now):
    """Return whether a field of a recorded config may change without changing the numbers of the epochs done."""
    if field == "devices.count":  # what counts with pmap is the number that it comes to; see `_record_and_changes`
        return True
    if field == "epochs":
        return now > before and not _depends_on_epochs(config)
    return is_free(Config, field)


def _depends_on_epochs(config):
    """Return the option by which the epochs done depend on the number of epochs, or ""."""
    if config.schedule.name not in EXTENDABLE:
        return f"schedule.name {config.schedule.name}"
    return next((f"{name} {value}" for name in ("snapshots", "thaw_share") if (value := getattr(config, name))), "")


def _why(field, config, before, now):
    reason = _depends_on_epochs(config) if field == "epochs" and now > before else ""
    return f", on which {reason} depends" if reason else ""


def read_config(workdir):
    """Return the Config of the run in a folder. Fields that its record lacks have their defaults.

    Raise InputError if there is no run, or its record does not fit this version of deepjax.
    """
    path = Path(workdir) / "config.json"
    check_path("workdir", path.parent)
    if not path.exists():
        raise InputError(f"workdir {workdir} holds no run (there is no {path}); `deepjax train` makes one")
    values = _read_record(Path(workdir))["config"]
    try:
        config = from_dict(Config, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return dataclasses.replace(config, workdir=str(workdir))


def _read_record(workdir):
    """Return config.json. Raise InputError if another program wrote it."""
    record = read_json(workdir / "config.json")
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise InputError(f"{workdir / 'config.json'} is not that of a deepjax run; choose another --workdir")
    return record


def write_record(workdir, name, record):
    """Write a JSON file in the folder of a run. Only the main process writes."""
    if is_main():
        write_json(Path(workdir) / name, record)


def remove_partial(workdir):
    """Remove the incomplete files and checkpoints of a process that was killed. To be called inside `locked`."""
    if is_main():
        for path in workdir.glob("*/*.orbax-checkpoint-tmp"):
            shutil.rmtree(path)
        for path in workdir.glob(f".*{PARTIAL}"):
            path.unlink()


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """The contents of data.json: what resuming, evaluation and prediction need to know of the training set."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, ...] = option(at_least=1)
    """Of one example."""
    examples: tuple[int, int, int] = option(at_least=0)
    """Numbers of training, validation and test examples."""
    labels_sha256: str = option()
    fit: Fit = option()
    mean: tuple[float, ...] = ()
    """With std, of each channel; empty if the standardization is in inputs.npz."""
    std: tuple[float, ...] = option((), above=0)
    lighting: tuple[tuple[float, float, float], ...] = ()
    """Three principal components of the colors, if augmentation uses them."""
    target: tuple[float, ...] = ()
    """Mean and standard deviation of the training targets, if they are numbers."""
    columns: tuple[str, ...] = ()
    """Names of the features, then of the target, if they are known."""
    notes: tuple[str, ...] = ()
    """What was left out, and what was drawn at random; see `data.Dataset`."""


class Statistics(NamedTuple):
    """What is fitted on the training set and recorded with the run."""

    standardizer: Standardizer
    lighting: np.ndarray | None = None  # f32[3, 3]: principal components of the colors, if augmentation uses them
    target: tuple[float, ...] = ()  # mean and standard deviation of the targets, if they are numbers


def write_data(workdir, dataset, statistics):
    """Write data.json: what resuming, evaluation and prediction need of the training set. To be called inside `locked`.

    A standardizer other than a mean and a standard deviation per channel is written to inputs.npz.

    Raise InputError if the folder holds a run on other data.
    """
    standardizer, lighting, target = statistics
    examples, labels_sha256 = _fingerprint(dataset)
    of_channels = standardizer.kind == "channel"
    record = DataRecord(
        name=dataset.name,
        classes=tuple(dataset.classes),
        shape=tuple(dataset.shape),
        examples=examples,
        labels_sha256=labels_sha256,
        fit=dataset.fit,
        mean=tuple(standardizer.shift.tolist()) if of_channels else (),
        std=tuple(standardizer.scale.tolist()) if of_channels else (),
        target=target,
        columns=dataset.columns,
        lighting=() if lighting is None else tuple(map(tuple, lighting.tolist())),
        notes=tuple(dataset.notes),
    )
    if not (workdir / "data.json").exists():
        if not of_channels and is_main():
            standardizer.save(workdir / INPUTS)
        known = {name: value for name, value in dataclasses.asdict(record).items() if value != () or name == "classes"}
        write_record(workdir, "data.json", known)
        return
    before = read_data(workdir)
    for field in ("classes", "shape", "columns", "examples", "labels_sha256"):
        old, new = getattr(before, field), getattr(record, field)
        if old != new:
            raise InputError(
                f"data set {dataset.name} has changed since the run in {workdir} was started: {field} was "
                f"{old!r:.200}, is now {new!r:.200}; restore the data, or choose another --workdir"
            )


def _fingerprint(dataset):
    """Return (numbers of training, validation and test examples, hash of their labels)."""
    dtype = np.int32 if dataset.classes else np.float32
    labels = [np.asarray(split.labels, dtype) for split in (dataset.train, dataset.validation, dataset.test)]
    counts = len(labels[0]), len(labels[1]), len(labels[2])
    return counts, hashlib.sha256(b"".join(split.tobytes() for split in labels)).hexdigest()


def has_changed(workdir, dataset) -> bool:
    """Return whether a data set's labels or columns differ from those that the run in a folder was trained on."""
    record = read_data(workdir)
    return record.columns != tuple(dataset.columns) or (record.examples, record.labels_sha256) != _fingerprint(dataset)


def read_data(workdir) -> DataRecord:
    """Return the contents of data.json. Raise InputError if it is missing, damaged, or not what a run writes."""
    path = Path(workdir) / "data.json"
    values = read_json(path)
    try:
        record = from_dict(DataRecord, values)
    except InputError as error:
        raise InputError(f"{path}: {error}; restore the file") from None
    if not record.shape or len(record.lighting) not in (0, 3):
        raise InputError(f"{path}: shape {record.shape} or lighting {record.lighting} is damaged; restore the file")
    if len(record.target) not in (0, 2) or (record.target and not record.target[1] > 0):
        raise InputError(f"{path}: target {record.target} must be a mean and a deviation above 0; restore the file")
    return record


def read_statistics(workdir):
    """Return the Statistics of the run in a folder, or None if they have not been written.

    Raise InputError for records that are missing, damaged, or of inputs of another shape than data.json says.
    """
    if not (Path(workdir) / "data.json").exists():
        return None
    record = read_data(workdir)
    path = Path(workdir) / ("data.json" if record.mean else INPUTS)
    if record.mean:
        with np.errstate(over="ignore"):  # `fits` refuses infinity
            shift, scale = (np.asarray(values, np.float32) for values in (record.mean, record.std))
        standardizer = Standardizer("channel", shift, scale)
    else:
        standardizer = Standardizer.load(path)
    if not standardizer.fits(record.shape):
        raise InputError(f"{path} holds no standardization of inputs of shape {record.shape}; restore the file")
    lighting = np.asarray(record.lighting, np.float32) if record.lighting else None
    return Statistics(standardizer, lighting, record.target)


def key_of(config):
    """Return the PRNG key of a run, from which all keys of training are folded."""
    return jax.random.key(config.seed)
