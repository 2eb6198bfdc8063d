"""From a name to a Dataset: find the set, place it, split it, check it."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepjax import config
from deepjax.data import builtin, files, prepared
from deepjax.data.augment import check as check_augment
from deepjax.data.records import MEMORY_LIMIT, Arrays, Dataset, Records, Split
from deepjax.data.standardize import check as check_standardize
from deepjax.errors import InputError

VALIDATION = 0.1  # of the training set, for sets without a validation split of their own


def load(data: config.Data, data_dir: str, seed: int) -> Dataset:
    """The set that `data` names, in three splits.

    `data.name` is a built-in set, a folder or .npz file, "folder" for data_dir itself, a set whose original files lie
    in data_dir, or a set that TFDS has prepared in data_dir (or in TFDS's own folder). `seed` picks the validation
    images where the set has no validation split.

    Raises InputError where the set cannot be found or read, or where data's other fields do not fit it.
    """
    check_fields(data, seed)
    found = _find(data, data_dir)
    _check(found)
    if isinstance(found.train, Records):
        found = replace(found, fit=found.train.fit)
    found = _place(_resize(found, data.image_size), data)
    check_augment(data.augment, found.shape)
    check_standardize(data, found.shape)
    return _split(found, data.validation, seed)


def check_fields(data: config.Data, seed: int) -> None:
    """Raises InputError for numbers that no set can have."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}: must be at least 0 and less than 2**32")
    if data.image_size < 0:
        raise InputError(f"data.image_size {data.image_size}: must be 0 (as stored) or a number of pixels")
    if data.validation is not None and not 0 <= data.validation < 1:
        raise InputError(f"data.validation {data.validation}: must be a fraction, at least 0 and less than 1")


def _find(data: config.Data, data_dir: str) -> Dataset:
    """The set with the splits it has; an empty validation split means that it has none."""
    if data.name == "digits":
        return builtin.digits()
    if data.name in builtin.BUILTIN:
        return builtin.toy(data.name)
    if data.name == "folder":
        if not data_dir:
            raise InputError("data.name folder: needs --data-dir, a folder with train/CLASS/*.jpg and val/ or test/")
        return files.folder(data_dir, data.image_size)
    path = Path(data.name).expanduser()
    # A bare name needs train/ inside to be a folder of images: ./mnist may as well be TFDS's folder of mnist.
    if (path / "train").is_dir() or ("/" in data.name and path.is_dir()):
        return files.folder(str(path), data.image_size)
    if path.suffix == ".npz" and path.exists():
        return files.npz(str(path))
    if path.suffix == ".npz" or path.is_absolute():
        raise InputError(f"data.name {data.name}: no such file or folder; check the path")
    if data_dir and not Path(data_dir).is_dir():
        raise InputError(f"data_dir {data_dir}: no such folder; check the path")
    folder = files.original_folder(data.name, data_dir) if data.name in files.ORIGINAL else None
    if folder is not None:
        return files.original(data.name, folder)
    return prepared.load(data.name, data_dir, data.image_size, (*builtin.BUILTIN, *files.ORIGINAL))


def _check(found: Dataset) -> None:
    """Raises InputError for no classes, an empty split, or labels that name no class."""
    if not found.classes:
        raise InputError(f"data.name {found.name}: has no classes; its training set is empty")
    for name in ("train", "validation", "test"):
        labels = getattr(found, name).labels
        if len(labels) == 0 and name != "validation":
            raise InputError(f"data.name {found.name}: its {name} split is empty; add images")
        wrong = labels[(labels < 0) | (labels >= len(found.classes))]
        if len(wrong):
            limit = f"must be 0 to {len(found.classes) - 1}, the training set's classes"
            raise InputError(f"data.name {found.name}: label {wrong[0]} in {name}; {limit}")


def _resize(found: Dataset, size: int) -> Dataset:
    """Arrays resized whole; Records know their shape and resize when they are read."""
    if not size or isinstance(found.train, Records) or found.shape[:2] == (size, size):
        return found
    if len(found.shape) != 3:
        raise InputError(f"data.image_size {size}: {found.name} has features, not images; leave it 0")
    return _each(replace(found, shape=(size, size, found.shape[2])), lambda split: split.resized(size))


def _place(found: Dataset, data: config.Data) -> Dataset:
    """Records read into memory where data.placement is device, or is auto and they fit."""
    area = data.augment.area
    if area is not None and isinstance(found.train, Arrays):
        raise InputError(f"data.augment.area {area}: {found.name} is not read image by image; leave area unset")
    if area is not None and data.placement == "device":
        raise InputError(f"data.augment.area {area}: needs data.placement host, not device")
    if isinstance(found.train, Arrays) or area is not None or data.placement == "host":
        return found
    images = len(found.train) + len(found.validation) + len(found.test)
    if data.placement == "auto" and images * int(np.prod(found.shape)) > MEMORY_LIMIT:
        return found
    return _each(found, lambda split: split.in_memory())


def _each(found: Dataset, change) -> Dataset:
    return replace(found, **{name: change(getattr(found, name)) for name in ("train", "validation", "test")})


def _split(found: Dataset, fraction: float | None, seed: int) -> Dataset:
    """A validation split taken from the training set, stratified, where the set has none."""
    from sklearn.model_selection import train_test_split

    if len(found.validation):
        if fraction is not None:
            raise InputError(f"data.validation {fraction}: {found.name} has its own validation split; leave it unset")
        return found
    fraction = VALIDATION if fraction is None else fraction
    if fraction == 0:
        return found
    train: Split = found.train
    try:
        kept, taken = train_test_split(
            np.arange(len(train)), test_size=fraction, stratify=train.labels, random_state=seed
        )
    except ValueError as error:  # fewer than two images of a class, or fewer images to take than classes
        reason = f"{len(train)} training images of {len(found.classes)} classes cannot be split stratified"
        raise InputError(f"data.validation {fraction}: {reason}; give 0 or another fraction") from error
    return replace(found, train=train.take(np.sort(kept)), validation=train.take(np.sort(taken)))


class Available(NamedTuple):
    """One line of `deepjax datasets`."""

    name: str
    kind: str
    what: str
    status: str
    """ready, where the images are, or how to get them."""


def available(data_dir: str) -> list[Available]:
    """The built-in sets, those with support for original files, and all that TFDS has prepared there."""
    rows = [Available(name, "built-in", what, "ready") for name, what in builtin.BUILTIN.items()]
    on_disk = prepared.on_disk(data_dir)
    option = f" --data-dir {data_dir}" if data_dir else ""
    for name, what in files.ORIGINAL.items():
        folder = files.original_folder(name, data_dir)
        if folder is not None:
            rows.append(Available(name, "original files", what, str(folder)))
        elif name not in on_disk:
            rows.append(Available(name, "TFDS", what, f"deepjax datasets prepare {name}{option}"))
    for name, folder in on_disk.items():
        rows.append(Available(name, "TFDS", prepared.describe(name, data_dir), str(folder)))
    return rows
