"""Folders of images: CLASS/*.jpg, or train/CLASS/*.jpg with val/ or test/ in the same folder."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepjax.data.images import SUFFIXES, decode, read_bytes, read_size
from deepjax.data.listing import describe_skipped, find_images, is_hidden
from deepjax.data.records import Dataset, Fit, Records
from deepjax.data.sources.source import DataSource, Wanted
from deepjax.data.splits import stratified
from deepjax.errors import InputError

TEST = 0.2  # fraction of the images, for folders without a test split
SPLITS = ("train", "val", "validation", "test")
NAMED = 10  # broken images that are named one by one


@dataclass(frozen=True)
class FolderFiles:
    """The bytes of image files, for Records."""

    paths: tuple[Path, ...]

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the contents of these files. Raise InputError naming a file that cannot be read."""
        return [read_bytes(self.paths[index]) for index in indices]

    def where(self, index: int) -> str:
        """Return the path of a file."""
        return str(self.paths[index])

    @property
    def remedy(self) -> str:
        """Return what else helps against a damaged image."""
        return ", or set --data.skip-broken to leave such images out"


class Listing:
    """The images of a folder in splits: {split: (paths, labels)}, and notes on what a user should know of them."""

    def __init__(self, root: Path):
        self.root, self.skipped, self.notes = root, Counter(), []
        self.divided = bool(_subfolders(root / "train"))
        top = root / "train" if self.divided else root
        self.classes = tuple(entry.name for entry in _subfolders(top))
        if set(self.classes) <= set(SPLITS):  # also for train/*.jpg, without classes
            raise InputError(f"data.name {root}: has no classes; put images into CLASS/*.jpg or train/CLASS/*.jpg")
        if not self.divided and (held := [name for name in self.classes if name in SPLITS[1:]]):
            raise InputError(f"{root / held[0]}: {root} has no train/ with classes; move the classes into train/")
        held_out = [root / name for name in ("val", "validation") if self.divided and (root / name).is_dir()]
        tests = [root / "test"] if self.divided and (root / "test").is_dir() else held_out[:1]
        self.splits = {"train": self._listed(top)}
        if tests:
            self.splits["test"] = self._listed(tests[0])
        if held_out and tests != held_out[:1]:
            self.splits["validation"] = self._listed(held_out[0])
        self._note_beside()

    def _listed(self, split: Path) -> tuple[list[Path], list[int]]:
        """Return sorted paths and labels of one split. Raise InputError for an unknown class or one without images."""
        paths, labels = [], []
        for folder in _subfolders(split):
            if folder.name not in self.classes:
                raise InputError(f"{folder}: class {folder.name!r} is not in train/; add it there or remove it here")
            found, skipped = find_images(folder)
            if not found:
                why = f" ({describe_skipped(skipped)})" if skipped else ""
                raise InputError(f"{folder}: has no {', '.join(SUFFIXES)} files{why}; add images or remove the folder")
            self.skipped += skipped
            paths += found
            labels += [self.classes.index(folder.name)] * len(found)
        return paths, labels

    def note_missing(self):
        """Note classes without images in a split. Raise InputError for a class without training images."""
        for split, (_, labels) in self.splits.items():
            present = set(labels)
            missing = [name for i, name in enumerate(self.classes) if i not in present]
            if missing and split == "train":
                raise InputError(f"{self.root}: class {missing[0]!r} has no image that can be read; add images")
            if missing:
                self.notes.append(f"the {split} split has no images of {_few(missing)}")

    def _note_beside(self):
        """Note images and folders that are in no class."""
        used = SPLITS if self.divided else self.classes
        beside = [
            entry for entry in sorted(self.root.iterdir()) if entry.name not in used and not is_hidden(entry.name)
        ]
        ignored = [entry.name for entry in beside if entry.is_dir() or entry.suffix.lower() in SUFFIXES]
        if ignored:
            self.notes.append(f"not read, because they are in no class: {_few(ignored)} of {self.root}")

    def drop_broken(self):
        """Leave out images that cannot be decoded, and note them."""
        broken = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for split, (paths, labels) in self.splits.items():
                problems = list(pool.map(_problem, paths))
                kept = [i for i, problem in enumerate(problems) if not problem]
                self.splits[split] = [paths[i] for i in kept], [labels[i] for i in kept]
                broken += [problem for problem in problems if problem]
        self.notes += [f"left out: {problem}" for problem in broken[:NAMED]]
        if len(broken) > NAMED:
            self.notes.append(f"left out: {len(broken) - NAMED:,} more images that cannot be read")

    def draw_test(self, fraction: float | None, seed: int) -> bool:
        """Take the test images from the training images, if there is no test split. Return whether there is none."""
        if "test" in self.splits:
            if fraction is not None:
                raise InputError(f"data.test {fraction}: {self.root} has its own test split; leave it unset")
            return False
        fraction = TEST if fraction is None else fraction
        paths, labels = self.splits["train"]
        parts = stratified(np.array(labels, np.int32), fraction, seed, "data.test")
        for split, indices in zip(("train", "test"), parts):
            self.splits[split] = [paths[i] for i in indices], [labels[i] for i in indices]
        self.notes.append(f"{len(parts[1]):,} of {len(labels):,} images were drawn for testing, with seed {seed}")
        return True


def folder(path: str, wanted: Wanted) -> Dataset:
    """Load a folder of images as Records in RGB. Images may be in subfolders of their class's folder.

    With train/CLASS/IMAGE, the test split is test/, or if there is none, val/ or validation/. With CLASS/IMAGE, or
    without a folder for testing, the fraction `wanted.test` of each class is drawn for testing.

    Args:
      path: path of the folder.
      wanted: with image_size, images of another size are resized and cropped (`Records.fit` "photograph"). With 0, all
        images must have one size. With skip_broken, images that cannot be decoded are left out.

    Raise InputError if there are no classes, a class is empty, or sizes differ without image_size.
    """
    root = Path(path)
    listing = Listing(root)
    if wanted.skip_broken:
        listing.drop_broken()
    drawn = listing.draw_test(wanted.test, wanted.seed)
    listing.note_missing()
    if skipped := describe_skipped(listing.skipped):
        listing.notes.append(skipped)
    size = wanted.image_size
    paths = [path for split_paths, _ in listing.splits.values() for path in split_paths]
    height, width = (size, size) if size else _common_size(paths)
    fit: Fit = "photograph" if size else "stored"

    def records(split_paths: list[Path], labels: list[int]) -> Records:
        numbers = np.array(labels, np.int32)
        return Records(FolderFiles(tuple(split_paths)), np.arange(len(labels)), numbers, (height, width, 3), fit)

    splits = {split: records(*parts) for split, parts in listing.splits.items()}
    validation = splits.get("validation") or splits["train"].take(np.arange(0))
    shape, notes = (height, width, 3), tuple(listing.notes)
    return Dataset(
        root.name, listing.classes, shape, splits["train"], validation, splits["test"], notes=notes, drawn=drawn
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _subfolders(folder: Path) -> list[Path]:
    """Return the sorted folders in a folder; [] if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def _problem(path: Path) -> str:
    """Return why an image cannot be read, or ""."""
    try:
        decode(read_bytes(path), str(path), 3)
    except InputError as error:
        return str(error).rpartition("; ")[0]
    return ""


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Return (height, width) of all these images, from their headers. Raise InputError if they differ."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(read_size, paths))
    for path, (height, width) in zip(paths, sizes):
        if (height, width) != sizes[0]:
            first = f"{paths[0]} has {sizes[0][0]}x{sizes[0][1]} pixels"
            raise InputError(f"data.image_size 0: {first}, {path} {height}x{width}; give data.image_size to resize all")
    return sizes[0] if sizes else (0, 0)


def is_folder(name: str) -> bool:
    """Return whether a name is the path of an existing folder of images.

    A name without a slash is one only if the folder contains train/, because ./mnist may be TFDS's folder.
    """
    path = Path(name).expanduser()
    return (path / "train").is_dir() or ("/" in name and path.is_dir())


def _owns(wanted: Wanted) -> bool:
    path = Path(wanted.name).expanduser()
    return wanted.name == "folder" or is_folder(wanted.name) or (path.is_absolute() and path.suffix != ".npz")


def _load(wanted: Wanted) -> Dataset:
    if wanted.name == "folder":
        if not wanted.data_dir:
            raise InputError("data.name folder: needs --data-dir, a folder with CLASS/*.jpg or train/CLASS/*.jpg")
        if not Path(wanted.data_dir).is_dir():
            raise InputError(f"data_dir {wanted.data_dir}: no such folder; check the path")
        return folder(wanted.data_dir, wanted)
    path = Path(wanted.name).expanduser()
    if not path.is_dir():
        raise InputError(f"data.name {wanted.name}: no such file or folder; check the path")
    return folder(str(path), wanted)


SOURCE = DataSource(_owns, _load, options=("test", "test_seed", "skip_broken"))
