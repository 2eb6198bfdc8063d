"""One, five or ten crops of an image, over which predictions are averaged (Krizhevsky et al. 2012, section 4.1)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepjax.data.images import SHORTER, decode, read_bytes
from deepjax.errors import InputError, choices

if TYPE_CHECKING:
    from PIL import Image

COUNTS = (1, 5, 10)
INTERPOLATIONS = ("bilinear", "bicubic")


def check_crops(count):
    """Raise InputError for a number of crops that is not one of COUNTS."""
    if count not in COUNTS:
        raise InputError(f"crops {count} must be 1 (center), 5 (corners and center) or 10 (these, and mirrored)")


def read_crops(path: Path, cut: Callable, shape: tuple[int, ...], count: int = 1) -> np.ndarray:
    """Read crops of an image file as uint8 [count, H, W, C].

    Args:
      path: path of the file.
      cut: function that returns the crops of a Pillow image: `photograph_crops`, or `resizing(...)`.
      shape: (H, W, C) of each crop.
      count: 1: the center. 5: the corners, then the center. 10: these five, then the same five of the mirror image.

    Raises:
      InputError: another count, or a file that cannot be read.
    """
    from PIL import ImageOps

    check_crops(count)
    height, width, channels = shape
    image = decode(read_bytes(path), str(path), channels)
    crops = cut(image, height, width, 1 if count == 1 else 5)
    if count == 10:
        crops += cut(ImageOps.mirror(image), height, width, 5)
    return np.stack([np.asarray(crop, np.uint8).reshape(shape) for crop in crops])


def resized_crops(resize: int, interpolation: str, image: "Image.Image", height: int, width: int, count: int):
    """Resize the shorter side to `resize` pixels, then crop: torchvision's Resize and CenterCrop.

    The order is that of torchvision's FiveCrop: top left, top right, bottom left, bottom right, center. Raises
    InputError for an unknown interpolation, and for crops that are larger than `resize`.
    """
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"interpolation {interpolation!r} is unknown; {choices(interpolation, INTERPOLATIONS)}")
    if resize < max(height, width):
        raise InputError(f"resize {resize} is smaller than the crops of {height}x{width} pixels; use a larger value")
    image = _shorter_side(image, resize, interpolation)
    right, bottom = image.width - width, image.height - height
    center = round(right / 2), round(bottom / 2)
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)] if count > 1 else []
    return [image.crop((left, top, left + width, top + height)) for left, top in (*corners, center)]


def _shorter_side(image, size, interpolation):
    from PIL import Image

    short, long = sorted(image.size)
    if short == size:
        return image
    longer = int(size * long / short)  # truncated, not rounded, as in torchvision
    shape = (size, longer) if image.width <= image.height else (longer, size)
    return image.resize(shape, Image.Resampling[interpolation.upper()])


def photograph_crops(image: "Image.Image", height: int, width: int, count: int):
    """Crop as `images.center` does: boxes of the source, each resampled once. The order is that of `resized_crops`."""
    from PIL import Image

    scale = SHORTER * max(height / image.height, width / image.width)
    box_width, box_height = min(width / scale, image.width), min(height / scale, image.height)
    right, bottom = image.width - box_width, image.height - box_height
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)] if count > 1 else []
    boxes = [(left, top, left + box_width, top + box_height) for left, top in (*corners, (right / 2, bottom / 2))]
    return [image.resize((width, height), Image.Resampling.BILINEAR, box=box) for box in boxes]


def resizing(resize: int, interpolation: str) -> Callable:
    """Return the function `cut` for `read_crops` that crops as `resized_crops` does."""
    return partial(resized_crops, resize, interpolation)
