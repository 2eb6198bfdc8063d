"""Image data sets that TensorFlow Datasets (TFDS) has prepared as array_record, read without TensorFlow."""

import difflib
import glob
import io
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepjax.data.records import Dataset, Fit, Records
from deepjax.data.sources.arrays import checked_labels
from deepjax.data.sources.source import DataSource, Facts, Listed, Wanted
from deepjax.errors import InputError, choices
from deepjax.foreign import reading


@dataclass(frozen=True)
class TfdsFiles:
    """The bytes of a prepared split, for Records."""

    source: Any
    """tfds.core.data_sources.ArrayRecordDataSource of raw records."""
    split: str
    image_key: str

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the encoded images with these numbers."""
        return self._values(indices, self.image_key, "bytes_list")

    def where(self, index: int) -> str:
        """Return the split and the number of an image, for messages."""
        return f"{self.split}, image {index}"

    @property
    def remedy(self) -> str:
        """Return "": a prepared data set has no option for damaged images."""
        return ""

    def labels(self, key: str) -> np.ndarray:
        """Return all labels, int32 [N], without decoding an image."""
        size, values = len(self.source), []
        for start in range(0, size, 1024):
            values += self._values(range(start, min(start + 1024, size)), key, "int64_list")
        return checked_labels(np.array(values, np.int64), size, self.split)

    def _values(self, indices: Sequence[int], key: str, kind: str) -> list:
        """Return the only value of a field of each example."""
        # Records are parsed here, because TFDS's own conversion of a record to a dict takes five times as long.
        from tensorflow_datasets.proto import tf_example_pb2

        parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
        with _reading(self.split):
            records = self.source.__getitems__(list(indices))
            fields = (parse(record).features.feature[key] for record in records)
            values = [list(getattr(field, kind).value) for field in fields]
        for index, found in zip(indices, values, strict=True):
            if len(found) != 1:
                raise InputError(f"{self.where(index)}: has {len(found)} values of {key}, not one; prepare it again")
        return [found[0] for found in values]


class Prepared(NamedTuple):
    """What TFDS has recorded about a prepared data set."""

    builder: Any
    """tfds.core.DatasetBuilder."""
    format: str
    """Of its files."""
    splits: dict[str, int]
    """Number of examples of each."""
    keys: tuple[str, str]
    """Of image and label in an example."""
    stored: tuple[int | None, int | None, int]
    """Height, width and channels of the images. None: they differ."""
    classes: tuple[str, ...]


def read_info(name: str, data_dir: str) -> Prepared:
    """Return what TFDS has recorded, from the prepared files alone, never from code that generates the data set.

    Raise InputError for a data set that is not prepared, whose records are damaged, or that is not for image
    classification.
    """
    import tensorflow_datasets as tfds

    where = f"data_dir {data_dir!r}" if data_dir else str(_default_dir())
    again = f"deepjax datasets prepare {name}{f' --data-dir {data_dir}' if data_dir else ''}"
    # TFDS prints a page where a record makes it import TensorFlow.
    with _reading(f"data.name {name!r} in {where}"), redirect_stdout(io.StringIO()):
        try:
            dtype, found = _recorded(name, data_dir)
        except tfds.core.DatasetNotFoundError:
            raise InputError(f"data.name {name!r}: not prepared in {where}; run: {again}") from None
    if len(found.stored) != 3 or dtype != np.uint8 or found.stored[-1] not in (1, 3):
        kind = f"{dtype} of shape {found.stored}"
        raise InputError(f"data.name {name!r}: its images are {kind}; choose a set of 8-bit gray or RGB images")
    if not all(side is None or side > 0 for side in found.stored):
        raise InputError(f"data.name {name!r}: its images have the shape {found.stored}; prepare it again")
    return found


def _recorded(name: str, data_dir: str) -> tuple[np.dtype, Prepared]:
    """Return the type of the images and what TFDS has recorded. Raise whatever TFDS raises for damaged files."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    builder: Any = read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    info = builder.info
    splits = {split: int(facts.num_examples) for split, facts in info.splits.items()}
    keys = info.supervised_keys or ("image", "label")
    features: Any = dict(info.features or {})
    image, label = (features.get(key) for key in keys)
    if not all(map(isinstance, (image, label), (tfds.features.Image, tfds.features.ClassLabel))):
        raise InputError(f"data.name {name!r}: has no image with a class label; choose an image classification set")
    form = info.file_format.value if info.file_format else "an unknown format"
    return np.dtype(image.np_dtype), Prepared(builder, form, splits, keys, tuple(image.shape), tuple(label.names or ()))


def load(wanted: Wanted) -> Dataset:
    """Load a prepared data set as Records.

    The test split is "test", or "validation" if there is no labeled test split. Images that are all stored with one
    shape are resized to wanted.image_size without cropping. Photographs of many shapes need image_size, and are resized
    and cropped (`Records.fit` "photograph").

    Raise InputError for a data set that is not prepared, damaged, or not for image classification.
    """
    check_data_dir(wanted.data_dir)
    name, info = wanted.name, read_info(wanted.name, wanted.data_dir)
    shape, fit = _fit(name, info.stored, wanted.image_size)

    def records(split: str) -> Records:
        files = _files(info, split)
        labels = files.labels(info.keys[1])
        return Records(files, np.arange(len(labels)), labels, shape, fit)

    splits = {split: records(split) for split in ("train", "validation", "test") if split in info.splits}
    if "test" in splits and (splits["test"].labels < 0).all():  # ImageNet's test labels are secret, stored as -1
        del splits["test"]
    if "train" not in splits or not {"test", "validation"} & set(splits):
        found = ", ".join(info.splits) or "nothing"
        raise InputError(f"data.name {name!r}: needs the splits train and test or validation, it has {found}")
    test = splits["test"] if "test" in splits else splits.pop("validation")
    validation = splits.get("validation") or splits["train"].take(np.arange(0))
    return Dataset(name, info.classes, shape, splits["train"], validation, test)


def facts(wanted: Wanted) -> Facts | None:
    """Return TFDS's records of a prepared data set, or None if TFDS does not have it. Raise the errors of `load`."""
    if not owns(wanted):
        return None
    check_data_dir(wanted.data_dir)
    info = read_info(wanted.name, wanted.data_dir)
    shape, _ = _fit(wanted.name, info.stored, wanted.image_size)
    return Facts(shape, len(info.classes), info.splits)


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


def nearest(name: str, near: Iterable[str]) -> str:
    """Return a hint: the closest name of `near` and of TFDS's data sets, or if none is close, all of `near`."""
    near = set(near)
    everything = near.union(_public())
    # TFDS's hundreds of names are offered only if one is close.
    return choices(name, everything if difflib.get_close_matches(name, everything, cutoff=0.5) else near)


def _fit(name: str, stored: tuple, image_size: int) -> tuple[tuple[int, int, int], Fit]:
    """Return the shape of images as read, and Records.fit."""
    if None not in stored:
        shape = (image_size, image_size, stored[-1]) if image_size else stored
        return shape, "whole" if image_size else "stored"
    if not image_size:
        raise InputError(f"data.image_size 0: {name}'s images differ in size; give data.image_size, for example 224")
    return (image_size, image_size, stored[-1]), "photograph"


def _files(info: Prepared, split: str) -> TfdsFiles:
    import tensorflow_datasets as tfds

    name = f"{info.builder.info.full_name} {split}"
    if info.format != "array_record":
        raise InputError(f"data.name {name!r}: is prepared as {info.format}; prepare it as array_record elsewhere")
    with _reading(name):
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        source = info.builder.as_data_source(split, deserialize_method=raw)
        _check_complete(name, map(str, info.builder.info.splits[split].filepaths), len(source))
    return TfdsFiles(source, name, info.keys[0])


def _check_complete(name: str, paths: Iterable[str], expected: int) -> None:
    """Raise InputError unless the files of a split have as many records as dataset_info.json says."""
    from array_record.python.array_record_module import ArrayRecordReader

    found = 0
    for path in paths:
        if not Path(path).is_file():  # its reader would find no records
            raise InputError(f"{name}: {path} is missing; prepare it again")
        found += ArrayRecordReader(path).num_records()
    if found != expected:
        raise InputError(f"{name}: has {found:,} records, dataset_info.json says {expected:,}; prepare it again")


def _reading(what: str) -> AbstractContextManager[None]:
    return reading(f"{what}: cannot be read", "prepare it again")


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
    """Describe a prepared data set in one line: numbers of images, shape and number of classes; or what is wrong."""
    try:
        info = read_info(name, data_dir)
    except InputError as error:
        return str(error).partition(": ")[2]
    sizes = " + ".join(f"{size:,}" for size in info.splits.values())
    shape = "x".join("?" if side is None else str(side) for side in info.stored)
    return f"{sizes} images, {shape}, {len(info.classes)} classes"


def _rows(data_dir: str) -> list[Listed]:
    found = on_disk(data_dir)
    return [Listed(name, "TFDS", describe(name, data_dir), str(folder)) for name, folder in found.items()]


SOURCE = DataSource(owns, load, _rows, facts)
