"""Sets that lie in files of the user: original IDX and CIFAR files, .npz, folders of images."""

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepjax.data.records import Arrays, Dataset, Fit, Records
from deepjax.errors import InputError, first_line

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_BATCH = 10_000  # images in each of CIFAR-10's six files
CIFAR100_SIZES = {"train": 50_000, "test": 10_000}
ORIGINAL = {
    "mnist": "70,000 handwritten digits, 28x28x1, 10 classes",
    "fashion_mnist": "70,000 pieces of clothing, 28x28x1, 10 classes",
    "cifar10": "60,000 photographs, 32x32x3, 10 classes",
    "cifar100": "60,000 photographs, 32x32x3, 100 classes",
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def original_folder(name: str, data_dir: str) -> Path | None:
    """Where in data_dir the publisher's files of one of ORIGINAL lie. None where they do not."""
    if not data_dir:
        return None
    within, first = {
        "mnist": ("", "train-images-idx3-ubyte"),
        "fashion_mnist": ("", "train-images-idx3-ubyte"),
        "cifar10": ("cifar-10-batches-bin", "data_batch_1.bin"),
        "cifar100": ("cifar-100-binary", "train.bin"),
    }[name]
    root = Path(data_dir)
    # The set's own folder first, since mnist and fashion_mnist name their files alike.
    folders = (root / name / within, root / name, root / within, root)
    found = (folder for folder in folders if (folder / first).exists() or _idx_path(folder, first))
    return next(found, None)


def original(name: str, folder: Path) -> Dataset:
    """One of ORIGINAL from its publisher's files in this folder.

    Raises InputError for a file that is missing beside the others, truncated or of another format.
    """
    read = {"mnist": _mnist, "fashion_mnist": _mnist, "cifar10": _cifar10, "cifar100": _cifar100}[name]
    return read(name, folder)


def _nothing(like: Arrays) -> Arrays:
    return like.take(np.arange(0))


def _idx_path(folder: Path, stem: str) -> Path | None:
    """Plain or .gz, with the publisher's hyphen or the dot that some unpackers write."""
    dotted = stem.replace("-idx", ".idx")
    paths = (folder / (spelling + suffix) for spelling in (stem, dotted) for suffix in ("", ".gz"))
    return next((path for path in paths if path.exists()), None)


def _mnist(name: str, folder: Path) -> Dataset:
    splits = []
    for prefix in ("train", "t10k"):
        parts: list[np.ndarray] = []
        for kind, axes in (("images", 3), ("labels", 1)):
            stem = f"{prefix}-{kind}-idx{axes}-ubyte"
            path = _idx_path(folder, stem)
            if path is None:
                raise InputError(f"{folder / stem}: not found (nor .gz) beside {name}'s other files; add it")
            parts.append(read_idx(path, axes))
        splits.append(_arrays(parts[0], parts[1], str(folder)))
    train, test = splits
    classes = DIGITS if name == "mnist" else FASHION
    return Dataset(name, classes, train.images.shape[1:], train, _nothing(train), test)


def read_idx(path: Path, axes: int) -> np.ndarray:
    """uint8 array with so many axes from an IDX file, plain or gzip. Raises InputError for other content."""
    data, whole = path.read_bytes(), True
    if data[:2] == b"\x1f\x8b":
        # Unlike gzip.decompress, this gives what a truncated file still holds, for the message below.
        unpacker = zlib.decompressobj(wbits=31)
        try:
            data = unpacker.decompress(data)
        except zlib.error as error:
            raise InputError(f"{path}: broken gzip file ({error}); download it again") from error
        whole = unpacker.eof
    header = 4 + 4 * axes
    if len(data) < header or data[:4] != bytes((0, 0, 8, axes)):
        raise InputError(f"{path}: not an IDX file of bytes with {axes} axes; download it again")
    shape = struct.unpack(f">{axes}I", data[4:header])
    _check_size(path, len(data), header + math.prod(shape))
    if not whole:
        raise InputError(f"{path}: the last bytes of the gzip file are missing; download it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _check_size(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise InputError(f"{path}: {found:,} bytes, expected {expected:,}; download it again")


def _cifar10(name: str, folder: Path) -> Dataset:
    batches = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    parts = [_read_cifar(folder / batch, CIFAR10_BATCH, label_bytes=1) for batch in batches]
    train = Arrays(np.concatenate([p.images for p in parts[:5]]), np.concatenate([p.labels for p in parts[:5]]))
    return Dataset(name, CIFAR10, (32, 32, 3), train, _nothing(train), parts[5])


def _cifar100(name: str, folder: Path) -> Dataset:
    train, test = (_read_cifar(folder / f"{k}.bin", n, label_bytes=2) for k, n in CIFAR100_SIZES.items())
    names = folder / "fine_label_names.txt"
    classes = tuple(names.read_text().split()) if names.exists() else tuple(str(k) for k in range(100))
    return Dataset(name, classes, (32, 32, 3), train, _nothing(train), test)


def _read_cifar(path: Path, count: int, label_bytes: int) -> Arrays:
    """Rows of label bytes (the last is the class) and 3,072 pixels as red, green and blue planes."""
    if not path.exists():
        raise InputError(f"{path}: not found, but the set's other files are there; add it")
    row = label_bytes + 3072
    _check_size(path, path.stat().st_size, count * row)
    rows = np.fromfile(path, np.uint8).reshape(count, row)
    images = rows[:, label_bytes:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(np.ascontiguousarray(images), rows[:, label_bytes - 1].astype(np.int32))


def npz(path: str) -> Dataset:
    """x_train, y_train, x_test, y_test and perhaps x_validation, y_validation of an .npz file.

    Images are uint8 [N, H, W] or [N, H, W, C], features float [N, features], labels integers [N] or [N, 1].
    """
    try:
        # Opened here, because np.load leaves a file that it cannot read open.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            stored = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise InputError(f"data.name {path}: cannot be read as .npz ({first_line(error)}); save it again") from error
    splits = {}
    for split in ("train", "validation", "test"):
        keys = (f"x_{split}", f"y_{split}")
        missing = [key for key in keys if key not in stored]
        if split == "validation" and len(missing) == 2:
            continue
        if missing:
            found = ", ".join(stored) or "nothing"
            raise InputError(f"data.name {path}: lacks {', '.join(missing)}; it has {found}")
        splits[split] = _arrays(stored[keys[0]], stored[keys[1]], f"data.name {path}: {keys[0]}")
    train, test = splits["train"], splits["test"]
    validation = splits.get("validation", _nothing(train))
    for split, arrays in splits.items():
        if arrays.images.shape[1:] != train.images.shape[1:]:
            shapes = f"{arrays.images.shape[1:]}, x_train {train.images.shape[1:]}"
            raise InputError(f"data.name {path}: images of x_{split} have shape {shapes}; make them equal")
    classes = tuple(str(label) for label in range(train.labels.max(initial=-1) + 1))
    return Dataset(Path(path).stem, classes, train.images.shape[1:], train, validation, test)


def _arrays(images: np.ndarray, labels: np.ndarray, what: str) -> Arrays:
    """Arrays in their canonical types. Raises InputError for other types and for unequal lengths."""
    if images.dtype == np.uint8 and images.ndim in (3, 4):
        images = images[..., None] if images.ndim == 3 else images
    elif np.issubdtype(images.dtype, np.floating) and images.ndim == 2:
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise InputError(f"{what}: has values that are not finite numbers; remove those rows")
    else:
        found = f"{images.dtype} with {images.ndim} axes"
        raise InputError(f"{what}: is {found}; give uint8 [N, H, W], uint8 [N, H, W, C] or float [N, features]")
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras stores CIFAR's
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise InputError(f"{what}: its labels are {found}; give {len(images)} integers, one per image")
    return Arrays(images, labels.astype(np.int32))


@dataclass(frozen=True)
class FolderFiles:
    """Image files as the bytes of Records."""

    paths: tuple[Path, ...]

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The contents of these files. Raises InputError naming the one that cannot be read."""
        try:
            return [self.paths[index].read_bytes() for index in indices]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check the file") from error

    def where(self, index: int) -> str:
        """The path."""
        return str(self.paths[index])


def folder(path: str, image_size: int) -> Dataset:
    """A folder with train/CLASS/*.png|jpg|jpeg, perhaps val or validation, perhaps test, as Records in RGB.

    The test split is test/, or else the validation folder; one of them must exist. With image_size, images of
    another size are resized and cropped as Records.fit "photograph" says. Without, all must have one size.
    """
    root = Path(path)
    held_out = [root / name for name in ("val", "validation") if (root / name).is_dir()]
    tests = [root / "test"] if (root / "test").is_dir() else held_out[:1]
    if not (root / "train").is_dir() or not tests:
        missing = "test/ and no val/" if (root / "train").is_dir() else "train/"
        raise InputError(f"data.name {path}: has no {missing}; put images into train/CLASS and test/CLASS or val/CLASS")
    classes = tuple(sorted(entry.name for entry in _subfolders(root / "train")))
    listed = {"train": _listed(root / "train", classes), "test": _listed(tests[0], classes)}
    if held_out and tests != held_out[:1]:
        listed["validation"] = _listed(held_out[0], classes)
    paths = [path for split_paths, _ in listed.values() for path in split_paths]
    height, width = (image_size, image_size) if image_size else _common_size(paths)
    fit: Fit = "photograph" if image_size else "stored"

    def records(split_paths: list[Path], labels: list[int]) -> Records:
        numbers = np.array(labels, np.int32)
        return Records(FolderFiles(tuple(split_paths)), np.arange(len(labels)), numbers, (height, width, 3), fit)

    splits = {split: records(*parts) for split, parts in listed.items()}
    validation = splits.get("validation") or splits["train"].take(np.arange(0))
    return Dataset(root.name, classes, (height, width, 3), splits["train"], validation, splits["test"])


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _listed(split: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Sorted paths and labels of one split. Raises InputError for an unknown or an empty class."""
    paths, labels = [], []
    for folder in _subfolders(split):
        if folder.name not in classes:
            raise InputError(f"{folder}: class {folder.name!r} is not in train/; add it there or remove it here")
        found = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and f.name[0] != ".")
        if not found:
            raise InputError(f"{folder}: has no {', '.join(IMAGE_SUFFIXES)} files; add images or remove the folder")
        paths += found
        labels += [classes.index(folder.name)] * len(found)
    return paths, labels


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """(height, width) of all these images, from their headers. Raises InputError where they differ."""
    from PIL import Image

    def size(path: Path) -> tuple[int, int]:
        try:
            with Image.open(path) as image:
                return image.height, image.width
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(
                f"{path}: cannot be read as an image ({first_line(error)}); replace or remove it"
            ) from error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(size, paths))
    for path, (height, width) in zip(paths, sizes):
        if (height, width) != sizes[0]:
            first = f"{paths[0]} has {sizes[0][0]}x{sizes[0][1]} pixels"
            raise InputError(f"data.image_size 0: {first}, {path} {height}x{width}; give data.image_size to resize all")
    return sizes[0] if sizes else (0, 0)
