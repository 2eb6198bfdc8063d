"""Image sets that TensorFlow Datasets has prepared as array_record, read without TensorFlow."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepjax.data.records import Dataset, Fit, Records
from deepjax.errors import InputError, choices


@dataclass(frozen=True)
class TfdsFiles:
    """A prepared split as the bytes of Records."""

    source: Any
    """tfds.core.data_sources.ArrayRecordDataSource of raw records."""
    split: str
    image_key: str

    def _examples(self, indices: Sequence[int]):
        # Parsed here, because TFDS's own way from record to dict takes five times as long.
        from tensorflow_datasets.proto import tf_example_pb2

        parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
        try:
            for record in self.source.__getitems__(indices):
                yield parse(record).features.feature
        # What the reader in C++ raises for damaged files.
        except (RuntimeError, ValueError, OSError) as error:
            raise _unreadable(self.split, error) from error

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The encoded images with these numbers."""
        return [feature[self.image_key].bytes_list.value[0] for feature in self._examples(indices)]

    def where(self, index: int) -> str:
        """Split and number."""
        return f"{self.split}, image {index}"

    def labels(self, key: str) -> np.ndarray:
        """All labels, int32 [N], without decoding an image."""
        size = len(self.source)
        chunks = (range(start, min(start + 1024, size)) for start in range(0, size, 1024))
        values = (f[key].int64_list.value[0] for chunk in chunks for f in self._examples(list(chunk)))
        return np.fromiter(values, np.int32, size)


def load(name: str, data_dir: str, image_size: int, others: Iterable[str]) -> Dataset:
    """The prepared set as Records. The test split is "test", or "validation" where there is no labelled test.

    `others` are names of sets from elsewhere, for the hint at an unknown name. Images of one stored shape
    are resized whole to image_size; photographs of many shapes as Records.fit "photograph" says, and need it.
    Raises InputError for a set that is unknown, not prepared, or not for image classification.
    """
    builder = _builder(name, data_dir, others)
    image_key, label_key = builder.info.supervised_keys or ("image", "label")
    image, label = _features(name, builder, image_key, label_key)
    shape, fit = _fit(name, image.shape, image_size)

    def records(split: str) -> Records:
        files = _files(builder, split, image_key)
        labels = files.labels(label_key)
        return Records(files, np.arange(len(labels)), labels, shape, fit)

    splits = {split: records(split) for split in ("train", "validation", "test") if split in builder.info.splits}
    if "test" in splits and (splits["test"].labels < 0).all():  # ImageNet's test labels are secret
        del splits["test"]
    if "train" not in splits or not {"test", "validation"} & set(splits):
        found = ", ".join(builder.info.splits) or "nothing"
        raise InputError(f"data.name {name!r}: needs the splits train and test or validation, it has {found}")
    test = splits["test"] if "test" in splits else splits.pop("validation")
    validation = splits.get("validation") or splits["train"].take(np.arange(0))
    return Dataset(name, tuple(label.names), shape, splits["train"], validation, test)


class About(NamedTuple):
    """What TFDS has written of a prepared set."""

    shape: tuple[int, int, int]  # of an image as read
    classes: int
    examples: dict[str, int]  # of each split


def about(name: str, data_dir: str, image_size: int, others: Iterable[str]) -> About:
    """What is known of a prepared set without reading it. Arguments and errors as of `load`."""
    builder = _builder(name, data_dir, others)
    image, label = _features(name, builder, *(builder.info.supervised_keys or ("image", "label")))
    shape, _ = _fit(name, image.shape, image_size)
    return About(shape, label.num_classes, {split: s.num_examples for split, s in builder.info.splits.items()})


def _builder(name: str, data_dir: str, others: Iterable[str]) -> Any:
    """The builder from the prepared files alone, never from generating code, which may want TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        base = name.split("/")[0].split(":")[0]
        public = tfds.list_builders(with_community_datasets=False)
        if base in public:
            where = f"data_dir {data_dir!r}" if data_dir else str(_default_dir())
            option = f" --data-dir {data_dir}" if data_dir else ""
            raise InputError(
                f"data.name {name!r}: not prepared in {where}; run: deepjax datasets prepare {name}{option}"
            ) from error
        hint = nearest(base, {*others, *on_disk(data_dir)})
        raise InputError(f"data.name {name!r}: no such set, folder with train/, or .npz file; {hint}") from error


def nearest(name: str, near: Iterable[str]) -> str:
    """The closest name among `near` and TFDS's own; where none is close, the list of `near`."""
    import tensorflow_datasets as tfds

    near = set(near)
    everything = near.union(tfds.list_builders(with_community_datasets=False))
    # TFDS's hundreds of names are offered only where one is close.
    return choices(name, everything if difflib.get_close_matches(name, everything, cutoff=0.5) else near)


def _features(name: str, builder: Any, image_key: str, label_key: str) -> tuple[Any, Any]:
    """The image's and the label's feature. Raises InputError where this is no image classification set."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    image, label = features.get(image_key), features.get(label_key)
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise InputError(f"data.name {name!r}: has no image with a class label; choose an image classification set")
    dtype, channels = image.np_dtype, list(image.shape)[-1]  # pyright: ignore[reportArgumentType]
    if dtype != np.uint8 or channels not in (1, 3):
        found = f"{dtype} with {channels} channels"
        raise InputError(f"data.name {name!r}: its images are {found}; choose a set of 8-bit grey or RGB images")
    return image, label


def _fit(name: str, stored: tuple, image_size: int) -> tuple[tuple[int, int, int], Fit]:
    """The shape as read, and Records.fit."""
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
    """TFDS's folder: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    from tensorflow_datasets.core import constants

    return Path(constants.DATA_DIR)


def on_disk(data_dir: str) -> dict[str, Path]:
    """name, or name/config -> its folder, of all sets prepared in data_dir or else in TFDS's folder."""
    root = Path(data_dir) if data_dir else _default_dir()
    found = {}
    for depth in ("*/*", "*/*/*"):  # name/version and name/config/version
        for info in sorted(root.glob(f"{depth}/dataset_info.json")):
            version = info.parent
            if version.name.replace(".", "").isdigit():
                found[str(version.parent.relative_to(root))] = version
    return found


def describe(name: str, data_dir: str) -> str:
    """Numbers of images, shape and classes of a prepared set in one line."""
    builder = _builder(name, data_dir, ())
    try:
        image, label = _features(name, builder, *(builder.info.supervised_keys or ("image", "label")))
    except InputError:
        return "not an image classification set"
    sizes = " + ".join(f"{split.num_examples:,}" for split in builder.info.splits.values())
    shape = "x".join("?" if side is None else str(side) for side in image.shape)
    return f"{sizes} images, {shape}, {label.num_classes} classes"
