"""Image data sets that TensorFlow Datasets (TFDS) has prepared as array_record, read without TensorFlow."""

import difflib
import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepjax.data.records import Dataset, Fit, Records
from deepjax.data.sources.arrays import checked_labels
from deepjax.data.sources.source import DataSource, Facts, Listed, Wanted
from deepjax.errors import InputError, choices


@dataclass(frozen=True)
class TfdsFiles:
    """The bytes of a prepared split, for Records."""

    source: Any
    """tfds.core.data_sources.ArrayRecordDataSource of raw records."""
    split: str
    image_key: str

    def _examples(self, indices: Sequence[int]):
        # Records are parsed here, because TFDS's own conversion of a record to a dict takes five times as long.
        from tensorflow_datasets.proto import tf_example_pb2

        parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
        try:
            for record in self.source.__getitems__(indices):
                yield parse(record).features.feature
        # The reader in C++ raises these for damaged files.
        except (RuntimeError, ValueError, OSError) as error:
            raise _unreadable(self.split, error) from error

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the encoded images with these numbers."""
        return [feature[self.image_key].bytes_list.value[0] for feature in self._examples(indices)]

    def where(self, index: int) -> str:
        """Return the split and the number of an image, for messages."""
        return f"{self.split}, image {index}"

    def labels(self, key: str) -> np.ndarray:
        """Return all labels, int32 [N], without decoding an image."""
        size = len(self.source)
        chunks = (range(start, min(start + 1024, size)) for start in range(0, size, 1024))
        values = (f[key].int64_list.value[0] for chunk in chunks for f in self._examples(list(chunk)))
        return checked_labels(np.fromiter(values, np.int64, size), size, self.split)


def load(wanted: Wanted) -> Dataset:
    """Load a prepared data set as Records.

    The test split is "test", or "validation" if there is no labeled test split. Images that are all stored with one
    shape are resized to wanted.image_size without cropping. Photographs of many shapes need image_size, and are resized
    and cropped (`Records.fit` "photograph").

    Raise InputError for a data set that is not prepared, damaged, or not for image classification.
    """
    check_data_dir(wanted.data_dir)
    name, builder = wanted.name, _builder(wanted.name, wanted.data_dir)
    image_key, label_key = _keys(builder)
    image, label = _features(name, builder)
    shape, fit = _fit(name, image.shape, wanted.image_size)

    def records(split: str) -> Records:
        files = _files(builder, split, image_key)
        labels = files.labels(label_key)
        return Records(files, np.arange(len(labels)), labels, shape, fit)

    splits = {split: records(split) for split in ("train", "validation", "test") if split in builder.info.splits}
    if "test" in splits and (splits["test"].labels < 0).all():  # ImageNet's test labels are secret, stored as -1
        del splits["test"]
    if "train" not in splits or not {"test", "validation"} & set(splits):
        found = ", ".join(builder.info.splits) or "nothing"
        raise InputError(f"data.name {name!r}: needs the splits train and test or validation, it has {found}")
    test = splits["test"] if "test" in splits else splits.pop("validation")
    validation = splits.get("validation") or splits["train"].take(np.arange(0))
    return Dataset(name, tuple(label.names), shape, splits["train"], validation, test)


def facts(wanted: Wanted) -> Facts | None:
    """Return TFDS's records of a prepared data set, or None if TFDS does not have it. Raise the errors of `load`."""
    if not owns(wanted):
        return None
    check_data_dir(wanted.data_dir)
    builder = _builder(wanted.name, wanted.data_dir)
    image, label = _features(wanted.name, builder)
    shape, _ = _fit(wanted.name, image.shape, wanted.image_size)
    return Facts(shape, label.num_classes, {split: s.num_examples for split, s in builder.info.splits.items()})


def owns(wanted: Wanted) -> bool:
    """Return whether the name is a public data set of TFDS, or a data set that is prepared on disk."""
    base = base_name(wanted.name)
    return base != "" and (any(_versions(wanted.data_dir, glob.escape(base))) or base in _public())


def base_name(name: str) -> str:
    """Return "mnist" of "mnist/config:1.0.0"."""
    return name.split("/")[0].split(":")[0]


def check_data_dir(data_dir: str) -> None:
    """Raise InputError if data_dir is given and is not a folder."""
    if data_dir and not Path(data_dir).is_dir():
        raise InputError(f"data_dir {data_dir}: no such folder; check the path")


def _public() -> list[str]:
    import tensorflow_datasets as tfds

    return tfds.list_builders(with_community_datasets=False)


def _builder(name: str, data_dir: str) -> Any:
    """Make the builder from the prepared files alone, never from generating code, which may import TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        where = f"data_dir {data_dir!r}" if data_dir else str(_default_dir())
        option = f" --data-dir {data_dir}" if data_dir else ""
        raise InputError(
            f"data.name {name!r}: not prepared in {where}; run: deepjax datasets prepare {name}{option}"
        ) from error


def nearest(name: str, near: Iterable[str]) -> str:
    """Return a hint: the closest name of `near` and of TFDS's data sets, or if none is close, all of `near`."""
    near = set(near)
    everything = near.union(_public())
    # TFDS's hundreds of names are offered only if one is close.
    return choices(name, everything if difflib.get_close_matches(name, everything, cutoff=0.5) else near)


def _keys(builder: Any) -> tuple[str, str]:
    return builder.info.supervised_keys or ("image", "label")


def _features(name: str, builder: Any) -> tuple[Any, Any]:
    """Return the features of image and label. Raise InputError if this is not an image classification data set."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    image, label = (features.get(key) for key in _keys(builder))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise InputError(f"data.name {name!r}: has no image with a class label; choose an image classification set")
    dtype, channels = image.np_dtype, list(image.shape)[-1]  # pyright: ignore[reportArgumentType]
    if dtype != np.uint8 or channels not in (1, 3):
        found = f"{dtype} with {channels} channels"
        raise InputError(f"data.name {name!r}: its images are {found}; choose a set of 8-bit gray or RGB images")
    return image, label


def _fit(name: str, stored: tuple, image_size: int) -> tuple[tuple[int, int, int], Fit]:
    """Return the shape of images as read, and Records.fit."""
    if None not in stored:
        shape = (image_size, image_size, stored[-1]) if image_size else stored
        return shape, "whole" if image_size else "stored"
    if not image_size:
        raise InputError(f"data.image_size 0: {name}'s images differ in size; give data.image_size, for example 224")
    return (image_size, image_size, stored[-1]), "photograph"


def _files(builder: Any, split: str, image_key: str) -> TfdsFiles:
    import tensorflow_datasets as tfds

    name = builder.info.full_name
    form = builder.info.file_format
    if form is None or form.value != "array_record":
        found = form.value if form else "an unknown format"
        raise InputError(f"data.name {name!r}: is prepared as {found}; prepare it as array_record in another folder")
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return TfdsFiles(builder.as_data_source(split, deserialize_method=raw), f"{name} {split}", image_key)
    except (RuntimeError, ValueError, OSError) as error:
        raise _unreadable(f"{name} {split}", error) from error


def _unreadable(split: str, error: Exception) -> InputError:
    return InputError(f"{split}: cannot be read ({' '.join(str(error).split())[:300]}); prepare it again")


def _default_dir() -> Path:
    """Return TFDS's folder: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    from tensorflow_datasets.core import constants

    return Path(constants.DATA_DIR)


def _versions(data_dir: str, pattern: str) -> Iterable[tuple[str, Path]]:
    """Yield (name or name/config, folder of the version) of prepared data sets whose name matches a glob pattern."""
    root = Path(data_dir) if data_dir else _default_dir()
    for depth in (f"{pattern}/*", f"{pattern}/*/*"):  # name/version and name/config/version
        for info in sorted(root.glob(f"{depth}/dataset_info.json")):
            version = info.parent
            if version.name.replace(".", "").isdigit():
                yield str(version.parent.relative_to(root)), version


def on_disk(data_dir: str) -> dict[str, Path]:
    """Return {name or name/config: folder} of all data sets that are prepared in data_dir, or else in TFDS's folder."""
    return dict(_versions(data_dir, "*"))


def describe(name: str, data_dir: str) -> str:
    """Describe a prepared data set in one line: numbers of images, shape and number of classes."""
    try:
        builder = _builder(name, data_dir)
        image, label = _features(name, builder)
    except InputError:
        return "not an image classification set"
    sizes = " + ".join(f"{split.num_examples:,}" for split in builder.info.splits.values())
    shape = "x".join("?" if side is None else str(side) for side in image.shape)
    return f"{sizes} images, {shape}, {label.num_classes} classes"


def _rows(data_dir: str) -> list[Listed]:
    found = on_disk(data_dir)
    return [Listed(name, "TFDS", describe(name, data_dir), str(folder)) for name, folder in found.items()]


SOURCE = DataSource(owns, load, _rows, facts)
