"""From a name to a Dataset: load the data set, resize it, place it, split it, check it."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from deepjax import config
from deepjax.data import sources
from deepjax.data.augment import check as check_augment
from deepjax.data.records import MEMORY_LIMIT, Arrays, Dataset, Records, Split
from deepjax.data.splits import drawn_size, stratified
from deepjax.data.standardize import check as check_standardize
from deepjax.data.views import check as check_center_crop
from deepjax.errors import InputError

VALIDATION = 0.1  # fraction of the training set, for data sets without a validation split


def load(data: config.Data, data_dir: str, seed: int, *, given: Dataset | None = None) -> Dataset:
    """Load the data set that `data` names, in three splits.

    Args:
      data: `data.name` is a built-in data set, a folder, an .npz or a .csv file, "folder" for data_dir itself, a data
        set whose original files are in data_dir, or one that TFDS has prepared in data_dir (or TFDS's default folder).
      data_dir: folder with data sets, or empty.
      seed: draws the validation images if the data set has no validation split.
      given: data set to use instead of the one that `data` names, for example a result of `from_arrays`. The other
        fields of `data` determine how it is resized, placed and split.

    Raises:
      InputError: the data set cannot be found or read, or other fields of `data` do not fit it.
    """
    check_fields(data, seed)
    if given:
        _check_options(data, ())
    found = given or _load(data, data_dir)
    if isinstance(found.train, Records):
        found = replace(found, fit=found.train.fit)
    found = _place(_resize(found, data.image_size), data)
    check_augment(data.augment, found.shape)
    check_standardize(data, found.shape)
    check_center_crop(data, found.shape)
    return _split(found, data.validation, seed)


def _load(data: config.Data, data_dir: str) -> Dataset:
    wanted = as_wanted(data, data_dir)
    source = sources.find(wanted)
    _check_options(data, source.options)
    return source.load(wanted)


def as_wanted(data: config.Data, data_dir: str) -> sources.Wanted:
    """Return what a source must know of a config."""
    options = data.test, data.skip_broken, data.test_seed, data.target
    return sources.Wanted(data.name, data_dir, data.image_size, *options)


def _check_options(data: config.Data, options: tuple[str, ...]) -> None:
    """Raise InputError for a field that only some sources use, if it is set for another data set."""
    both, folders, tables = "folders of images and CSV files", "folders of images", "CSV files"
    for name, users in {"test": both, "test_seed": both, "skip_broken": folders, "target": tables}.items():
        if getattr(data, name) and name not in options:
            raise InputError(f"data.{name} {getattr(data, name)}: is for {users}; leave it out")


def check_fields(data: config.Data, seed: int) -> None:
    """Raise InputError for numbers that are out of range for every data set."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}: must be at least 0 and less than 2**32")
    config.check(data, "data.")


class About(NamedTuple):
    """Size and shape of a data set as `load` returns it."""

    shape: tuple[int, ...]
    """Of one example: (H, W, C), or (features,)."""
    classes: int
    train: int
    """Number of training examples, without those taken for validation."""
    examples: int
    """Number of examples of all splits."""


def about(data: config.Data, data_dir: str, seed: int) -> About:
    """Describe the data set that `load` would return, if possible without reading its images.

    Raise InputError as `load` does; but the files of a well-known data set (mnist, cifar10, ...) need not exist.
    """
    check_fields(data, seed)
    facts = sources.facts(as_wanted(data, data_dir))
    if facts is None:
        found = load(replace(data, placement="host"), data_dir, seed)
        sizes = [len(split) for split in (found.train, found.validation, found.test)]
        return About(found.shape, len(found.classes), sizes[0], sum(sizes))
    train = facts.examples.get("train", 0)
    if "validation" not in facts.examples or "test" not in facts.examples:
        fraction = VALIDATION if data.validation is None else data.validation
        train -= drawn_size(train, fraction, facts.classes) if fraction else 0
    return About(facts.shape, facts.classes, train, sum(facts.examples.values()))


def _resize(found: Dataset, size: int) -> Dataset:
    """Resize Arrays, without cropping. Records have their shape already and resize images when they are read."""
    if not size or isinstance(found.train, Records) or found.shape[:2] == (size, size):
        return found
    if len(found.shape) != 3:
        raise InputError(f"data.image_size {size}: {found.name} has features, not images; leave it 0")
    splits = _map(found, lambda split: split.resized(size))
    return replace(found, shape=(size, size, found.shape[2]), **splits)


def _place(found: Dataset, data: config.Data) -> Dataset:
    """Read Records into memory if data.placement is device, or is auto and they fit."""
    area = data.augment.area
    if area is not None and isinstance(found.train, Arrays):
        raise InputError(f"data.augment.area {area}: images of {found.name} are not read one by one; leave area unset")
    if area is not None and data.placement == "device":
        raise InputError(f"data.augment.area {area}: needs data.placement host, not device")
    if isinstance(found.train, Arrays) or area is not None or data.placement == "host":
        return found
    images = len(found.train) + len(found.validation) + len(found.test)
    if data.placement == "auto" and images * int(np.prod(found.shape)) > MEMORY_LIMIT:
        return found
    return replace(found, **_map(found, lambda split: split.in_memory()))


def _map(found: Dataset, change) -> dict[str, Split]:
    return {name: change(getattr(found, name)) for name in ("train", "validation", "test")}


def _split(found: Dataset, fraction: float | None, seed: int) -> Dataset:
    """Take a stratified validation split from the training set if there is none."""
    if len(found.validation):
        if fraction is not None:
            raise InputError(f"data.validation {fraction}: {found.name} has its own validation split; leave it unset")
        return found
    fraction = VALIDATION if fraction is None else fraction
    if fraction == 0:
        return found
    train: Split = found.train
    remaining, taken = stratified(train.labels, fraction, seed, "data.validation")
    notes = found.notes
    if found.classes and (missing := np.setdiff1d(train.labels, train.labels[taken]).tolist()):
        names = ", ".join(found.classes[label] for label in missing[:5])
        notes += (f"no validation images of {names}{' and others' if missing[5:] else ''}, which have one image left",)
    return replace(found, train=train.take(remaining), validation=train.take(taken), notes=notes)
