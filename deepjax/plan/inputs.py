"""Find the shape of an example, the number of classes and the size of a config's data set, without reading images."""

import math
from typing import NamedTuple

from deepjax import data
from deepjax.data.records import MEMORY_LIMIT
from deepjax.data.standardize import check as check_standardize
from deepjax.data.views import check as check_center_crop
from deepjax.errors import InputError


class Inputs(NamedTuple):
    """What a network is trained on."""

    shape: tuple[int, ...]  # of one example
    classes: int  # 0: the targets are numbers
    examples: int | None  # number of training examples; None: unknown
    resident: int  # bytes of the training set that are stored on the device


def find(config, shape=None, classes=None):
    """Return the Inputs of a config.

    Built-in data sets, folders and .npz files are read, as for training. For other data sets, only recorded facts are
    read: those in deepjax, or those in TFDS's metadata.

    Args:
      config: a `deepjax.config.Config`.
      shape: shape of one example; None: that of the data set.
      classes: number of classes; None: that of the data set. With both, no data set is needed.

    Raises:
      InputError: the data set does not exist, or the fields of `config.data` do not fit it.
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
    check_center_crop(config.data, found.shape)
    return found


def _look(config):
    """Return the result of `data.about`. Its errors get the remedy of `deepjax plan`."""
    try:
        return data.about(config.data, config.data_dir, config.seed)
    except InputError as error:
        raise InputError(f"{error}; or give --input H,W,C --classes N to plan without data") from error


def _resident(wanted, shape, examples, whole):
    """Return the bytes of the training set on the device, or 0 if it is not placed there; see `data.make_loader`."""
    each = math.prod(shape) * (1 if len(shape) == 3 else 4)  # images are bytes, points are floats
    placed = wanted.placement == "device" or (wanted.placement == "auto" and whole * each <= MEMORY_LIMIT)
    return examples * (each + 4) if placed and wanted.augment.area is None else 0  # 4: a label
