"""What a config's network will see, without reading the data: a shape, the number of classes, the size of the set."""

import math
from typing import NamedTuple

from deepjax import data
from deepjax.data.records import MEMORY_LIMIT
from deepjax.data.standardize import check as check_standardize
from deepjax.errors import InputError


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

    Raise InputError for a set that is not there, or data's fields that do not fit it.
    """
    data.check_fields(config.data, config.seed)
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
    """`data.about`, with another remedy."""
    try:
        return data.about(config.data, config.data_dir, config.seed)
    except InputError as error:
        raise InputError(f"{error}; or say what to plan for: --input H,W,C --classes N") from error


def _resident(wanted, shape, examples, whole):
    """Bytes of the training set on the device, if `data.placement` brings it there: see `data.make_loader`."""
    each = math.prod(shape) * (1 if len(shape) == 3 else 4)  # images are bytes, points are floats
    placed = wanted.placement == "device" or (wanted.placement == "auto" and whole * each <= MEMORY_LIMIT)
    return examples * (each + 4) if placed and wanted.augment.area is None else 0  # 4: a label
