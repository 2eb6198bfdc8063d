"""A data set and its splits: images in memory (Arrays) or images that are read one by one (Records)."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import numpy as np

from deepjax.data import images
from deepjax.errors import InputError

MEMORY_LIMIT = 2**30  # bytes of images: with data.placement auto, data sets up to this size are kept on the device

T = TypeVar("T")
Fit = Literal["stored", "whole", "photograph"]


@dataclass(frozen=True)
class Arrays:
    """Images and labels in memory."""

    images: np.ndarray
    """uint8 [N, H, W, C], or float32 [N, H, W, C] in [0, 1], or float32 [N, features]."""
    labels: np.ndarray
    """int32 [N]: classes; or float32 [N]: numbers, the targets of regression."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Arrays":
        """Return the subset with these indices, in their order."""
        return Arrays(self.images[indices], self.labels[indices])

    def map(self, function: Callable[[np.ndarray, np.ndarray], T]) -> list[T]:
        """Return function(indices, images) of successive chunks of up to 1,024 images."""
        chunks = (np.arange(start, min(start + 1024, len(self))) for start in range(0, len(self), 1024))
        return [function(chunk, self.images[chunk[0] : chunk[-1] + 1]) for chunk in chunks]

    def resized(self, size: int) -> "Arrays":
        """Return the images at size x size pixels, resized without cropping."""
        from PIL import Image

        def channel(pixels: np.ndarray) -> np.ndarray:
            return np.asarray(images.resize(Image.fromarray(pixels), size, size))

        out = np.empty((len(self), size, size, self.images.shape[-1]), self.images.dtype)
        for image, resized in zip(self.images, out):
            for c in range(image.shape[-1]):
                resized[..., c] = channel(np.ascontiguousarray(image[..., c]))
        return Arrays(out, self.labels)


class Files(Protocol):
    """The encoded images of Records. An instance must be picklable, for worker processes."""

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the encoded images with these indices."""
        ...

    def where(self, index: int) -> str:
        """Return the name of an image for error messages: its path, or split and number."""
        ...

    @property
    def remedy(self) -> str:
        """What else may help if an image cannot be decoded: the end of the message, or ""."""
        ...


@dataclass(frozen=True)
class Records:
    """Images that are read one by one, and decoded when they are read."""

    files: Files
    indices: np.ndarray
    """int64 [N]: image i is file indices[i]."""
    labels: np.ndarray
    """int32 [N]."""
    shape: tuple[int, int, int]
    """(H, W, C) of every image as read."""
    fit: Fit
    """How an image of another size gets this shape. stored: it is refused with InputError. whole: it is resized without
    cropping. photograph: its shorter side is resized to 256/224 of the shape's, then the center is cropped."""

    def __len__(self) -> int:
        return len(self.labels)

    def names(self) -> list[str]:
        """Return the names of the images, such as their paths."""
        return [self.files.where(int(index)) for index in self.indices]

    def take(self, indices: np.ndarray) -> "Records":
        """Return the subset with these indices, in their order. Reads no image."""
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])

    def read(
        self,
        indices: Sequence[int] | np.ndarray,
        area: tuple[float, float] | None = None,
        rng: Callable[[int], np.random.Generator] | None = None,
    ) -> np.ndarray:
        """Return these images, uint8 [n, H, W, C].

        Args:
          indices: indices of the images, [n].
          area: range of the fraction of the image that random-area crops cut out. None: no random crop.
          rng: with `area`: maps a position in `indices` to the random generator of its crop.

        Raise InputError, naming the file, for an image that cannot be decoded, or has another shape if fit is stored.
        """
        numbers = [int(number) for number in self.indices[indices]]
        out = np.empty((len(numbers), *self.shape), np.uint8)
        for position, encoded in enumerate(self.files.read(numbers)):
            generator = None if rng is None else rng(position)
            out[position] = self._decode(encoded, self.files.where(numbers[position]), area, generator)
        return out

    def in_memory(self) -> Arrays:
        """Read all images and return them as Arrays."""
        out = np.empty((len(self), *self.shape), np.uint8)

        def fill(part: np.ndarray, chunk: np.ndarray) -> None:
            out[part] = chunk

        self.map(fill)
        return Arrays(out, self.labels)

    def map(self, function: Callable[[np.ndarray, np.ndarray], T]) -> list[T]:
        """Return function(indices, images) of successive chunks of up to 64 images, computed in threads."""

        def call(start: int) -> T:
            part = np.arange(start, min(start + 64, len(self)))
            return function(part, self.read(part))

        with ThreadPoolExecutor(images.threads(self.shape)) as pool:
            return list(pool.map(call, range(0, len(self), 64)))

    def _decode(self, encoded: bytes, where: str, area, generator) -> np.ndarray:
        height, width, channels = self.shape
        try:
            image = images.decode(encoded, where, channels)
        except InputError as error:
            raise InputError(f"{error}{self.files.remedy}") from error
        if area is not None:
            image = images.random_area(image, height, width, area, generator)
        elif self.fit == "stored" and image.size != (width, height):
            size = f"{image.height}x{image.width} pixels, others have {height}x{width}"
            raise InputError(f"{where}: {size}; give data.image_size to resize all")
        else:
            image = images.to_shape(image, height, width, self.fit)
        return np.asarray(image, np.uint8).reshape(self.shape)


Split = Arrays | Records


@dataclass(frozen=True)
class Dataset:
    """Labeled images, or vectors of features, in three splits.

    Raise InputError if the training or the test split is empty, images in memory are neither uint8 nor floats, labels
    are not integers or have no class, or, without classes, labels are not finite floats.
    """

    name: str
    classes: tuple[str, ...]
    """Their names. Empty: the labels are numbers."""
    shape: tuple[int, ...]
    """(H, W, C), or (features,)."""
    train: Split
    validation: Split
    """May be empty."""
    test: Split
    fit: Fit = "whole"
    """How an image file is brought to `shape` for prediction; see Records.fit."""
    notes: tuple[str, ...] = ()
    """Lines that a user should read: what was left out, what was drawn at random."""
    drawn: bool = False
    """Whether the test split was drawn from all images, so that other images would lead to another split."""
    columns: tuple[str, ...] = ()
    """Names of the features, then of the target, if they are known."""

    def __post_init__(self):
        numbers = np.issubdtype(self.train.labels.dtype, np.floating) and len(self.train) > 0
        if not self.classes and not numbers:
            raise InputError(f"data set {self.name}: has no classes; its training split is empty, so add images")
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            labels = split.labels
            _check_types(f"data set {self.name}: {name}", split, numbers=not self.classes)
            if len(labels) == 0 and name != "validation":
                raise InputError(f"data set {self.name}: its {name} split is empty; add images")
            wrong = labels[(labels < 0) | (labels >= len(self.classes))]
            if self.classes and len(wrong):
                limit = f"must be 0 to {len(self.classes) - 1}, the training set's classes"
                raise InputError(f"data set {self.name}: label {wrong[0]} in {name}; {limit}")


def _check_types(where: str, split: Split, numbers: bool) -> None:
    """Raise InputError for images or labels whose values a conversion would change."""
    if not np.issubdtype(split.labels.dtype, np.floating if numbers else np.integer):
        raise InputError(f"{where} has labels of {split.labels.dtype}; give {'floats' if numbers else 'integers'}")
    if numbers and not np.isfinite(split.labels).all():
        raise InputError(f"{where} has labels that are not finite; remove those examples")
    dtype = split.images.dtype if isinstance(split, Arrays) else np.dtype(np.uint8)
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise InputError(f"{where} has images of {dtype}; give uint8, or float in [0, 1]")
