"""Well-known data sets in the files of their publishers: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100."""

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepjax.data.images import read_bytes
from deepjax.data.records import Arrays, Dataset
from deepjax.data.sources import prepared
from deepjax.data.sources.arrays import checked_split
from deepjax.data.sources.source import DataSource, Facts, Listed, Wanted
from deepjax.errors import InputError
from deepjax.foreign import reading

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_BATCH = 10_000  # images in each of CIFAR-10's six files
CIFAR100_SIZES = {"train": 50_000, "test": 10_000}


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Return the uint8 array of an IDX file, plain or gzip. Raise InputError unless it has this number of axes."""
    data, complete = read_bytes(path), True
    if data[:2] == b"\x1f\x8b":
        # gzip.decompress raises for a truncated file; this returns what is left, so that the message names its size.
        unpacker = zlib.decompressobj(wbits=31)
        with reading(f"{path}: broken gzip file", "download it again"):
            data = unpacker.decompress(data)
        complete = unpacker.eof
    header = 4 + 4 * axes
    if len(data) < header or data[:4] != bytes((0, 0, 8, axes)):
        raise InputError(f"{path}: not an IDX file of bytes with {axes} axes; download it again")
    shape = struct.unpack(f">{axes}I", data[4:header])
    _check_size(path, len(data), header + math.prod(shape))
    if not complete:
        raise InputError(f"{path}: the last bytes of the gzip file are missing; download it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _check_size(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise InputError(f"{path}: {found:,} bytes, expected {expected:,}; download it again")


def _idx_path(folder: Path, stem: str) -> Path | None:
    """Find a file, plain or .gz, with the publisher's hyphen or the dot that some unpackers write."""
    dotted = stem.replace("-idx", ".idx")
    paths = (folder / (spelling + suffix) for spelling in (stem, dotted) for suffix in ("", ".gz"))
    return next((path for path in paths if path.exists()), None)


def _mnist(name: str, folder: Path, classes: tuple[str, ...]) -> Dataset:
    splits = []
    for prefix in ("train", "t10k"):
        parts: list[np.ndarray] = []
        for kind, axes in (("images", 3), ("labels", 1)):
            stem = f"{prefix}-{kind}-idx{axes}-ubyte"
            path = _idx_path(folder, stem)
            if path is None:
                raise InputError(f"{folder / stem}: not found (nor .gz), but {name}'s other files are there; add it")
            parts.append(read_idx(path, axes))
        splits.append(checked_split(parts[0], parts[1], str(folder), prefix))
    return _dataset(name, classes, *splits)


def _cifar10(name: str, folder: Path, classes: tuple[str, ...]) -> Dataset:
    batches = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    parts = [_read_cifar(folder / batch, CIFAR10_BATCH, label_bytes=1) for batch in batches]
    train = Arrays(np.concatenate([p.images for p in parts[:5]]), np.concatenate([p.labels for p in parts[:5]]))
    return _dataset(name, classes, train, parts[5])


def _cifar100(name: str, folder: Path, classes: tuple[str, ...]) -> Dataset:
    train, test = (_read_cifar(folder / f"{k}.bin", n, label_bytes=2) for k, n in CIFAR100_SIZES.items())
    names = folder / "fine_label_names.txt"
    if names.exists():
        with reading(f"{names}: cannot be read", "download it again"):
            found = tuple(names.read_text(encoding="utf-8").split())
        if len(found) != len(classes):
            raise InputError(f"{names}: {len(found)} names, expected {len(classes)}; download it again")
        classes = found
    return _dataset(name, classes, train, test)


def _read_cifar(path: Path, count: int, label_bytes: int) -> Arrays:
    """Read rows of label bytes (the last one is the class) and 3,072 pixels as red, green and blue planes."""
    if not path.exists():
        raise InputError(f"{path}: not found, but the data set's other files are there; add it")
    row = label_bytes + 3072
    content = read_bytes(path)
    _check_size(path, len(content), count * row)
    rows = np.frombuffer(content, np.uint8).reshape(count, row)
    images = rows[:, label_bytes:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(np.ascontiguousarray(images), rows[:, label_bytes - 1].astype(np.int32))


def _dataset(name: str, classes: tuple[str, ...], train: Arrays, test: Arrays) -> Dataset:
    return Dataset(name, classes, train.images.shape[1:], train, train.take(np.arange(0)), test)


class Original(NamedTuple):
    """Facts about a data set, and the function that reads its files."""

    what: str
    facts: Facts
    folder: str
    """Subfolder with the files in the data set's folder, as in the publisher's archive. Empty: none."""
    first: str
    """A file by which the folder is recognized."""
    classes: tuple[str, ...]
    read: Callable[[str, Path, tuple[str, ...]], Dataset]


def _facts(shape: tuple[int, int, int], classes: int, train: int) -> Facts:
    return Facts(shape, classes, {"train": train, "test": 10_000})


IDX = "train-images-idx3-ubyte"
ORIGINAL = {
    "mnist": Original(
        "70,000 handwritten digits, 28x28x1, 10 classes", _facts((28, 28, 1), 10, 60_000), "", IDX, DIGITS, _mnist
    ),
    "fashion_mnist": Original(
        "70,000 pieces of clothing, 28x28x1, 10 classes", _facts((28, 28, 1), 10, 60_000), "", IDX, FASHION, _mnist
    ),
    "cifar10": Original(
        "60,000 photographs, 32x32x3, 10 classes",
        _facts((32, 32, 3), 10, 50_000),
        "cifar-10-batches-bin",
        "data_batch_1.bin",
        CIFAR10,
        _cifar10,
    ),
    "cifar100": Original(
        "60,000 photographs, 32x32x3, 100 classes",
        _facts((32, 32, 3), 100, 50_000),
        "cifar-100-binary",
        "train.bin",
        tuple(str(k) for k in range(100)),  # without the file of names
        _cifar100,
    ),
}


def original_folder(name: str, data_dir: str) -> Path | None:
    """Return the folder in data_dir that has the publisher's files of a data set, or None."""
    if not data_dir or name not in ORIGINAL:
        return None
    found, root = ORIGINAL[name], Path(data_dir)
    # The data set's own folder is searched first, because mnist and fashion_mnist have files of the same names.
    folders = (root / name / found.folder, root / name, root / found.folder, root)
    return next((path for path in folders if (path / found.first).exists() or _idx_path(path, found.first)), None)


def original(name: str, folder: Path) -> Dataset:
    """Load one of ORIGINAL from its publisher's files in a folder.

    Raise InputError for a missing or truncated file, or one of another format.
    """
    return ORIGINAL[name].read(name, folder, ORIGINAL[name].classes)


def _owns(wanted: Wanted) -> bool:
    return original_folder(wanted.name, wanted.data_dir) is not None


def _load(wanted: Wanted) -> Dataset:
    return original(wanted.name, original_folder(wanted.name, wanted.data_dir) or Path(wanted.data_dir))


def _rows(data_dir: str) -> list[Listed]:
    """List ORIGINAL: where their files are, or how TFDS prepares them. TFDS itself lists those that it has prepared."""
    rows, on_disk = [], prepared.on_disk(data_dir)
    option = f" --data-dir {data_dir}" if data_dir else ""
    for name, known in ORIGINAL.items():
        folder = original_folder(name, data_dir)
        if folder is not None:
            rows.append(Listed(name, "original files", known.what, str(folder)))
        elif name not in on_disk:
            rows.append(Listed(name, "TFDS", known.what, f"deepjax datasets prepare {name}{option}"))
    return rows


def _known(wanted: Wanted) -> Facts | None:
    known = ORIGINAL.get(wanted.name)
    if known is None:
        return None
    size = wanted.image_size
    return known.facts._replace(shape=(size, size, known.facts.shape[-1])) if size else known.facts


SOURCE = DataSource(_owns, _load, _rows, _known)
