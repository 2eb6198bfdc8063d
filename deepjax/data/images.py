"""From one encoded image to an array: decode, resize, crop. Uses Pillow only."""

import contextlib
import io
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepjax.errors import InputError
from deepjax.foreign import reading

if TYPE_CHECKING:
    from PIL import Image

# Formats are listed because Pillow otherwise loads and tries some forty plugins.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
ASPECT = (3 / 4, 4 / 3)  # of random-area crops, width over height (Szegedy et al. 2015)
SHORTER = 256 / 224  # shorter side before the center crop, as a multiple of the crop (Krizhevsky et al. 2012)
ORIENTATION = 0x0112  # EXIF tag: how a stored image is turned to be shown
TURNS = {  # {its value: name of Pillow's transposition}
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
PILLOW = r"PIL\."  # modules whose warnings are not shown
QUIET = ("ignore", None, Warning, re.compile(PILLOW), 0)  # as `warnings.filters` stores this


def threads(shape: tuple[int, ...]) -> int:
    """Return the number of threads that decode images of this shape fastest.

    It is 1 up to 64x64x3, because decoding is so short that threads wait for each other (measured: two threads take
    1.7 times as long as one for 28x28 PNG).
    """
    return 1 if math.prod(shape) <= 64 * 64 * 3 else min(os.cpu_count() or 1, 16)


def decode(encoded: bytes, where: str, channels: int) -> "Image.Image":
    """Decode an image to a Pillow image with 1 or 3 channels of 8 bits, and rotate it by its EXIF orientation.

    Gray values of 16 bits are divided by 257, floating point gray values in [0, 1] are multiplied by 255. EXIF data
    that cannot be read are ignored, as viewers do. Raise InputError, naming `where`, for bytes that are not an image,
    and for gray values outside of these ranges.
    """
    from PIL import Image

    with _reading(where):
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        image.load()
        turned = _orientation(image)
        if image.mode.startswith(("I", "F")):
            image = _gray_of_8_bits(image)
        if turned in TURNS:
            image = image.transpose(Image.Transpose[TURNS[turned]])
        mode = "L" if channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)


def read_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file as `decode` returns it, from the file's header.

    Raise InputError for a file that cannot be read.
    """
    from PIL import Image

    with _reading(str(path)), Image.open(path, formats=FORMATS) as image:
        # In a PNG file the orientation may follow the pixels; those are not read here.
        turned = (image.format != "PNG" or "exif" in image.info) and _orientation(image) > 4
        return (image.width, image.height) if turned else (image.height, image.width)


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Raise what Pillow raises as one InputError, and keep its warnings from the user.

    Pillow warns of large images and of damaged metadata, which are read or ignored here. The filter stays, because
    `warnings.catch_warnings` is not for threads.
    """
    from PIL import UnidentifiedImageError

    if warnings.filters[:1] != [QUIET]:
        warnings.filterwarnings("ignore", module=PILLOW)
    with reading(f"{where}: cannot be read as an image", "replace or remove it"):
        try:
            yield
        except UnidentifiedImageError:  # its message names an object in memory
            raise ValueError(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file") from None


def _orientation(image: "Image.Image") -> int:
    """Return how a stored image is turned: 1 to 8, as in EXIF. 1 for data that cannot be read."""
    try:
        turned = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow parses the bytes of a camera; the pixels are not affected
        return 1
    return turned if turned in TURNS else 1


def _gray_of_8_bits(image: "Image.Image") -> "Image.Image":
    """Return a gray image of 8 bits. Pillow's own conversion clips at 255."""
    from PIL import Image

    values = np.asarray(image)
    largest = 65535 if image.mode.startswith("I") else 1
    if not (values.min() >= 0 and values.max() <= largest):  # NaN is in no range
        raise ValueError(f"its gray values are {values.min()} to {values.max()}, but must be 0 to {largest}")
    return Image.fromarray(np.rint(values * (255 / largest)).astype(np.uint8))


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
