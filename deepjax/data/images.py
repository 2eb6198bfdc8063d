"""From one encoded image to an array: decode, resize, crop. Uses Pillow only."""

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepjax.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

# Formats are listed because Pillow otherwise loads and tries some forty plugins.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
ASPECT = (3 / 4, 4 / 3)  # of random-area crops, width over height (Szegedy et al. 2015)
SHORTER = 256 / 224  # shorter side before the center crop, as a multiple of the crop (Krizhevsky et al. 2012)
ORIENTATION = 0x0112  # EXIF tag: how a stored image is turned to be shown


def threads(shape: tuple[int, ...]) -> int:
    """Return the number of threads that decode images of this shape fastest.

    It is 1 up to 64x64x3, because decoding is so short that threads wait for each other (measured: two threads take
    1.7 times as long as one for 28x28 PNG).
    """
    return 1 if math.prod(shape) <= 64 * 64 * 3 else min(os.cpu_count() or 1, 16)


def decode(encoded: bytes, where: str, channels: int) -> "Image.Image":
    """Decode an image to a Pillow image with 1 or 3 channels of 8 bits, and rotate it by its EXIF orientation.

    Gray values of 16 bits are divided by 257. Raise InputError, naming `where`, for bytes that are not an image.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(where, error) from error
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # Pillow's own conversion to 8 bits clips at 255
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def read_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file as `decode` returns it, from the file's header.

    Raise InputError for a file that cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            # In a PNG file the orientation may follow the pixels; those are not read here.
            turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(ORIENTATION, 1) > 4
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(str(path), error) from error


def _unreadable(where: str, error: BaseException) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{where}: cannot be read as an image ({reason}); replace or remove it")


def resize(image: "Image.Image", height: int, width: int) -> "Image.Image":
    """Resize an image without cropping, bilinear, with antialiasing if it shrinks."""
    from PIL import Image

    return image.resize((width, height), Image.Resampling.BILINEAR)


def center(image: "Image.Image", height: int, width: int) -> "Image.Image":
    """Crop the center as in ImageNet's evaluation: resize the shorter side to 256/224 of the crop's, then crop."""
    from PIL import Image

    scale = SHORTER * max(height / image.height, width / image.width)
    # The box of the crop in pixels of the source, so that the image is resampled only once.
    box_width, box_height = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def to_shape(image: "Image.Image", height: int, width: int, fit: str) -> "Image.Image":
    """Resize an image: by `center` if fit is "photograph", else by `resize`. An image of this size is unchanged."""
    if image.size == (width, height):
        return image
    return (center if fit == "photograph" else resize)(image, height, width)


def random_area(
    image: "Image.Image", height: int, width: int, area: tuple[float, float], rng: np.random.Generator
) -> "Image.Image":
    """Cut out a box at a random place, and resize it.

    Its area is a uniform fraction of the image in the range `area`, its aspect ratio log-uniform in ASPECT. If ten
    boxes do not fit (long, thin images), the largest central box of an allowed aspect ratio is cut out.
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
    """Return the contents of a file. Raise InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); replace or remove it") from error


def read_image(path: Path, shape: tuple[int, ...], fit: str) -> np.ndarray:
    """Read an image file as uint8 of shape (H, W, C), resized according to `fit` (see Records.fit).

    Raise InputError for a file that cannot be read.
    """
    height, width, channels = shape
    image = decode(read_bytes(path), str(path), channels)
    image = to_shape(image, height, width, fit)
    return np.asarray(image, np.uint8).reshape(shape)
