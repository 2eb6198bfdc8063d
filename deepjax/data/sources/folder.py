"""Folders of images: train/CLASS/*.png, and val/ or test/ in the same folder."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepjax.data.images import SUFFIXES, read_size
from deepjax.data.records import Dataset, Fit, Records
from deepjax.data.sources.source import DataSource, Wanted
from deepjax.errors import InputError


@dataclass(frozen=True)
class FolderFiles:
    """The bytes of image files, for Records."""

    paths: tuple[Path, ...]

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the contents of these files. Raise InputError naming a file that cannot be read."""
        try:
            return [self.paths[index].read_bytes() for index in indices]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check the file") from error

    def where(self, index: int) -> str:
        """Return the path of a file."""
        return str(self.paths[index])


def folder(path: str, image_size: int) -> Dataset:
    """Load a folder with train/CLASS/IMAGE, optionally val/ or validation/, optionally test/, as Records in RGB.

    The test split is test/. If there is none, the validation folder is the test split; one of them must exist.

    Args:
      path: path of the folder.
      image_size: height and width. Images of another size are resized and cropped (`Records.fit` "photograph").
        0: all images must have one size.

    Raise InputError if a split or a class is missing or empty, and if sizes differ without image_size.
    """
    root = Path(path)
    held_out = [root / name for name in ("val", "validation") if (root / name).is_dir()]
    tests = [root / "test"] if (root / "test").is_dir() else held_out[:1]
    if not (root / "train").is_dir() or not tests:
        missing = "test/ and no val/" if (root / "train").is_dir() else "train/"
        raise InputError(f"data.name {path}: has no {missing}; put images into train/CLASS and test/CLASS or val/CLASS")
    classes = tuple(entry.name for entry in _subfolders(root / "train"))
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
    """Return sorted paths and labels of one split. Raise InputError for an unknown or an empty class."""
    paths, labels = [], []
    for folder in _subfolders(split):
        if folder.name not in classes:
            raise InputError(f"{folder}: class {folder.name!r} is not in train/; add it there or remove it here")
        found = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.name[0] != ".")
        if not found:
            raise InputError(f"{folder}: has no {', '.join(SUFFIXES)} files; add images or remove the folder")
        paths += found
        labels += [classes.index(folder.name)] * len(found)
    return paths, labels


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Return (height, width) of all these images, from their headers. Raise InputError if they differ."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(read_size, paths))
    for path, (height, width) in zip(paths, sizes):
        if (height, width) != sizes[0]:
            first = f"{paths[0]} has {sizes[0][0]}x{sizes[0][1]} pixels"
            raise InputError(f"data.image_size 0: {first}, {path} {height}x{width}; give data.image_size to resize all")
    return sizes[0] if sizes else (0, 0)


def _owns(wanted: Wanted) -> bool:
    """Return whether the name is "folder", or the path of a folder of images.

    A name without a slash is a folder of images only if it contains train/, because ./mnist may be TFDS's folder.
    """
    path = Path(wanted.name).expanduser()
    if wanted.name == "folder" or (path / "train").is_dir() or ("/" in wanted.name and path.is_dir()):
        return True
    return path.is_absolute() and path.suffix != ".npz"


def _load(wanted: Wanted) -> Dataset:
    if wanted.name == "folder":
        if not wanted.data_dir:
            raise InputError("data.name folder: needs --data-dir, a folder with train/CLASS/*.jpg and val/ or test/")
        return folder(wanted.data_dir, wanted.image_size)
    path = Path(wanted.name).expanduser()
    if not path.is_dir():
        raise InputError(f"data.name {wanted.name}: no such file or folder; check the path")
    return folder(str(path), wanted.image_size)


SOURCE = DataSource(_owns, _load)
