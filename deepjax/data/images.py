"""One encoded image to an array: decode, resize, crop. Pillow only."""

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepjax.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

ASPECT = (3 / 4, 4 / 3)  # of random-area crops, width over height (Szegedy et al. 2015)
SHORTER = 256 / 224  # shorter side before the centre crop, as a multiple of the crop (Krizhevsky et al. 2012)


def threads(shape: tuple[int, ...]) -> int:
    """How many threads decode images of this shape fastest.

    One up to 64x64x3: Pillow's work on them is so short that threads only wait for each other (measured: two
    take 1.7 times as long as one for 28x28 PNG).
    """
    return 1 if math.prod(shape) <= 64 * 64 * 3 else min(os.cpu_count() or 1, 16)


def decode(encoded: bytes, where: str, channels: int) -> "Image.Image":
    """Encoded bytes -> a Pillow image with 1 or 3 channels. Raises InputError naming `where`."""
    from PIL import Image

    try:
        # Formats are named because Pillow otherwise loads and tries some forty plugins.
        image = Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "BMP", "GIF", "WEBP"))
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: cannot be read as an image ({error}); replace or remove it") from error
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def resize(image: "Image.Image", height: int, width: int) -> "Image.Image":
    """The whole image at another size, bilinear, antialiased where it shrinks."""
    from PIL import Image

    return image.resize((width, height), Image.Resampling.BILINEAR)


def centre(image: "Image.Image", height: int, width: int) -> "Image.Image":
    """ImageNet's evaluation: shorter side to 256/224 of the crop's, aspect ratio kept, the centre cut out."""
    from PIL import Image

    scale = SHORTER * max(height / image.height, width / image.width)
    # The crop's box in the source's pixels: one resampling, no intermediate image.
    box_width, box_height = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def to_shape(image: "Image.Image", height: int, width: int, fit: str) -> "Image.Image":
    """As Records.fit says: "photograph" by `centre`, else resized whole; left alone if it has this size."""
    if image.size == (width, height):
        return image
    return (centre if fit == "photograph" else resize)(image, height, width)


def random_area(
    image: "Image.Image", height: int, width: int, area: tuple[float, float], rng: np.random.Generator
) -> "Image.Image":
    """Cut out a box of random area (fraction of the image, uniform) and aspect (log-uniform), then resize it.

    After ten boxes that do not fit (long, thin images) the largest central box of an allowed aspect is taken.
    """
    from PIL import Image

    box_width, box_height = image.width, image.height
    for _ in range(10):
        pixels = image.width * image.height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_width, box_height = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < box_width <= image.width and 0 < box_height <= image.height:
            left = int(rng.integers(image.width - box_width + 1))
            top = int(rng.integers(image.height - box_height + 1))
            break
    else:
        box_width = min(image.width, round(image.height * ASPECT[1]))
        box_height = min(image.height, round(image.width / ASPECT[0]))
        left, top = (image.width - box_width) // 2, (image.height - box_height) // 2
    box = (left, top, left + box_width, top + box_height)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def read_bytes(path: Path) -> bytes:
    """A file's contents. Raises InputError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); replace or remove it") from error


def read_image(path: Path, shape: tuple[int, ...], fit: str) -> np.ndarray:
    """An image file as uint8 of shape (H, W, C), brought to it as `fit` says (see Records.fit).

    Raises InputError for a file that cannot be read.
    """
    height, width, channels = shape
    image = decode(read_bytes(path), str(path), channels)
    image = to_shape(image, height, width, fit)
    return np.asarray(image, np.uint8).reshape(shape)
