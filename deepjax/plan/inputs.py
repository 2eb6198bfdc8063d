"""What a config's network will see, without reading the data: a shape, the number of classes, the size of the set."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

from deepjax import data
from deepjax.data import builtin, files, prepared, records, sources
from deepjax.data.standardize import check as check_standardize
from deepjax.errors import InputError

ORIGINAL = {  # name: shape, classes, training images, all images
    "mnist": ((28, 28, 1), 10, 60_000, 70_000),
    "fashion_mnist": ((28, 28, 1), 10, 60_000, 70_000),
    "cifar10": ((32, 32, 3), 10, 50_000, 60_000),
    "cifar100": ((32, 32, 3), 100, 50_000, 60_000),
}


class Inputs(NamedTuple):
    """What a network is trained on."""

    shape: tuple[int, ...]  # of one example
    classes: int
    examples: int | None  # to train on; None: not known
    resident: int  # bytes of the training set that lie on the device


def find(config, shape=None, classes=None):
    """The Inputs of a config. `shape` and `classes` take the place of the set's; with both, no set is looked for.

    Built-in sets, folders and .npz files are read, as for training; of others, what is known of them or what TFDS has
    written beside them.

    Raises InputError for a set that is not there, or data's fields that do not fit it.
    """
    sources.check_fields(config.data, config.seed)
    for name, value in (("classes", classes), *(("input", side) for side in shape or ())):
        if value is not None and value < 1:
            raise InputError(f"{name} {value} must be at least 1")
    if shape and classes:
        found = Inputs(tuple(shape), classes, None, 0)
    else:
        found_shape, found_classes, examples, whole = _look(config)
        shape = tuple(shape or found_shape)
        found = Inputs(shape, classes or found_classes, examples, _resident(config.data, shape, examples, whole))
    data.check_augment(config.data.augment, found.shape)
    check_standardize(config.data, found.shape)
    return found


def _look(config):
    """(shape, classes, training examples, all examples)."""
    wanted, folder = config.data, config.data_dir
    if wanted.name in ORIGINAL:
        shape, classes, train, whole = ORIGINAL[wanted.name]
        shape = (wanted.image_size, wanted.image_size, shape[-1]) if wanted.image_size else shape
        return shape, classes, _without_validation(train, wanted.validation), whole
    if wanted.name in (*builtin.BUILTIN, "folder") or _is_path(wanted.name):
        found = data.load(dataclasses.replace(wanted, placement="host"), folder, config.seed)
        splits = [len(split) for split in (found.train, found.validation, found.test)]
        return found.shape, len(found.classes), splits[0], sum(splits)
    try:
        about = prepared.about(wanted.name, folder, wanted.image_size, (*builtin.BUILTIN, *files.ORIGINAL))
    except InputError as error:
        raise InputError(f"{error}; or say what to plan for: --input H,W,C --classes N") from error
    train = about.examples.get("train", 0)
    if "validation" not in about.examples or "test" not in about.examples:
        train = _without_validation(train, wanted.validation)
    return about.shape, about.classes, train, sum(about.examples.values())


def _is_path(name):
    path = Path(name).expanduser()
    return path.suffix == ".npz" or path.is_absolute() or (path / "train").is_dir() or ("/" in name and path.is_dir())


def _without_validation(train, fraction):
    return train - math.ceil(train * (sources.VALIDATION if fraction is None else fraction))


def _resident(wanted, shape, examples, whole):
    """Bytes of the training set on the device, if `data.placement` brings it there: see `data.make_loader`."""
    each = math.prod(shape) * (1 if len(shape) == 3 else 4)  # images are bytes, points are floats
    limit = records.MEMORY_LIMIT
    placed = wanted.placement == "device" or (wanted.placement == "auto" and whole * each <= limit)
    return examples * (each + 4) if placed and wanted.augment.area is None else 0  # 4: a label
