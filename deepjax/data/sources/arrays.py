"""Data sets of arrays in memory: the checks and conversions that every source of arrays shares."""

import inspect
from collections.abc import Mapping, Sequence

import numpy as np

from deepjax.data.records import Arrays, Dataset
from deepjax.errors import InputError, choices
from deepjax.foreign import reading

MAX_CLASSES = 1_000_000  # without names of classes; a larger label is probably a mistake


def from_arrays(
    x_train,
    y_train,
    x_test,
    y_test,
    *,
    x_validation=None,
    y_validation=None,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Make a data set of arrays.

    Args:
      x_train: inputs of the training split, an array (NumPy, JAX or what `np.asarray` converts) of one of these types:
        uint8 [N, H, W] or [N, H, W, C]: images. Standardization divides their values by 255.
        float [N, H, W] or [N, H, W, C] with values in [0, 1]: images, equivalent to uint8 images divided by 255.
        float [N, features]: vectors of any finite values.
        Floats are converted to float32. Other types are refused. All splits must have the same type and shape.
      y_train: labels, integers [N] or [N, 1] from 0 to the number of classes - 1; or numbers, floats [N]
        or [N, 1], the targets of regression, which are converted to float32.
      x_test: inputs of the test split.
      y_test: labels of the test split.
      x_validation: inputs of the validation split. None: `load(given=...)` takes the fraction config.Data.validation of
        the training split.
      y_validation: labels of the validation split. Required with x_validation.
      classes: names of the classes. None: "0", "1", ..., up to the largest training label; none, if labels are floats.
      name: name of the data set, for messages and for the record of a run.

    Raises:
      InputError: an array of another type or shape, unequal lengths, a label without a class, an empty training or
        test split, one of x_validation and y_validation without the other.

    >>> points, labels = np.eye(4), np.array([0, 1, 1, 0])
    >>> made = from_arrays(points, labels, points, labels, classes=("even", "odd"))
    >>> made.shape, made.classes, len(made.train), len(made.validation)
    ((4,), ('even', 'odd'), 4, 0)
    """
    if (x_validation is None) != (y_validation is None):
        missing = "x_validation" if x_validation is None else "y_validation"
        raise InputError(f"{name}: {missing} is missing; give x_validation and y_validation, or neither")
    given = {"train": (x_train, y_train), "validation": (x_validation, y_validation), "test": (x_test, y_test)}
    splits = {
        split: checked_split(_as_array(x, f"{name}: x_{split}"), _as_array(y, f"{name}: y_{split}"), name, split)
        for split, (x, y) in given.items()
        if split != "validation" or x is not None
    }
    train = splits["train"]
    _check_alike(splits, name)
    if classes is None:
        is_number = np.issubdtype(train.labels.dtype, np.floating)
        classes = () if is_number else _numbered_classes(train.labels, name)
    validation = splits.get("validation", train.take(np.arange(0)))
    return Dataset(name, tuple(map(str, classes)), train.images.shape[1:], train, validation, splits["test"])


def as_dataset(given: Dataset | Mapping | None) -> Dataset | None:
    """Return the data set that a caller gives: a `Dataset`, or the arguments of `from_arrays` as a dict. None is none.

    Raise InputError for anything else, for a key that `from_arrays` does not have, and for one that is missing.
    """
    if given is None or isinstance(given, Dataset):
        return given
    if not isinstance(given, Mapping):
        raise InputError(
            f"data is of the type {type(given).__name__}; give a data.Dataset, or the arguments of data.from_arrays as "
            f"a dict"
        )
    parameters = inspect.signature(from_arrays).parameters
    for key in given:
        if key not in parameters:
            raise InputError(f"data has the key {key!r}, which is unknown; {choices(str(key), parameters)}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given:
            raise InputError(f"data has no key {key!r}; give x_train, y_train, x_test and y_test")
    return from_arrays(**given)


def _as_array(values, what: str) -> np.ndarray:
    with reading(f"{what} is no array", "make all rows equally long"):
        return np.asarray(values)


def checked_split(images: np.ndarray, labels: np.ndarray, where: str, split: str) -> Arrays:
    """Convert images and labels of one split to the types of `Arrays`.

    Raise InputError for another type and for unequal lengths. `where` begins the message.
    """
    images = _checked_images(images, f"{where}: x_{split}")
    return Arrays(images, checked_labels(labels, len(images), f"{where}: y_{split}"))


def _checked_images(images: np.ndarray, what: str) -> np.ndarray:
    is_float = np.issubdtype(images.dtype, np.floating)
    if is_float:
        with np.errstate(over="ignore"):  # values that overflow float32 are refused below
            images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise InputError(f"{what} has values that are not finite; remove those rows")
        if images.ndim == 2:
            return images
    if images.ndim not in (3, 4) or not (is_float or images.dtype == np.uint8):
        raise InputError(
            f"{what} is {images.dtype} with {images.ndim} axes; give uint8 [N, H, W] or [N, H, W, C], float in [0, 1] "
            f"of these shapes, or float [N, features]"
        )
    if is_float and images.size and not (images.min() >= 0 and images.max() <= 1):
        extremes = f"{images.min():.4g} to {images.max():.4g}"
        raise InputError(f"{what} has values from {extremes}; scale float images to [0, 1], or give uint8")
    return images[..., None] if images.ndim == 3 else images


def checked_labels(labels: np.ndarray, count: int, what: str) -> np.ndarray:
    """Convert integer labels [N] or [N, 1] to int32 [N], and floats to float32 [N].

    Raise InputError for another type, for other than `count` labels, and for a label that int32 cannot hold.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:  # the form in which Keras stores the labels of CIFAR
        labels = labels[:, 0]
    is_number = np.issubdtype(labels.dtype, np.floating)
    if labels.ndim != 1 or not (is_number or np.issubdtype(labels.dtype, np.integer)) or len(labels) != count:
        found = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(
            f"{what} is {found}; give {count} integers, one label per image, such as y.astype(int), or for regression "
            f"{count} floats"
        )
    if is_number:
        with np.errstate(over="ignore"):  # Dataset refuses infinity
            return labels.astype(np.float32)
    limits = np.iinfo(np.int32)
    wrong = labels[(labels < limits.min) | (labels > limits.max)]
    if len(wrong):
        raise InputError(f"{what} has the label {wrong[0]}; number the classes 0, 1, 2, ...")
    return labels.astype(np.int32)


def _check_alike(splits: dict[str, Arrays], where: str) -> None:
    """Raise InputError unless all splits have inputs of one shape and type."""
    train = splits["train"].images
    for split, arrays in splits.items():
        images = arrays.images
        if images.shape[1:] != train.shape[1:]:
            shapes = f"{images.shape[1:]}, those of x_train {train.shape[1:]}"
            raise InputError(f"{where}: images of x_{split} have shape {shapes}; make the shapes equal")
        if images.dtype != train.dtype:
            raise InputError(f"{where}: x_{split} is {images.dtype}, x_train {train.dtype}; make the types equal")


def _numbered_classes(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Return "0", "1", ..., up to the largest label. Raise InputError for a label of MAX_CLASSES or more."""
    largest = int(labels.max(initial=-1))
    if largest >= MAX_CLASSES:
        raise InputError(
            f"{where}: label {largest} in train; must be less than {MAX_CLASSES:,}; number the classes 0, 1, 2, ..."
        )
    return tuple(str(label) for label in range(largest + 1))
