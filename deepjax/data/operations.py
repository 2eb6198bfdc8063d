"""The operations of RandAugment, TrivialAugment and AugMix, as torchvision's, on images in [0, 1], in pure JAX."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from deepjax.data import color

Sample = Callable[[jax.Array, jax.Array], jax.Array]

_by_matrix = partial(jnp.vectorize, signature="(h,w,c),(n)->(h,w,c)")


@_by_matrix
def nearest(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Resample images [..., H, W, C] by the nearest pixel. `matrix` [..., 6] is that of Pillow's affine transform.

    The pixel with center (x, y), from the left and the top, is taken from (a x + b y + c, d x + e y + f). It is black
    if that point is outside the image.

    >>> jax.jit(nearest)(jnp.arange(3.0).reshape(1, 3, 1), jnp.array([1, 0, 1, 0, 1, 0])).ravel().tolist()
    [1.0, 2.0, 0.0]
    """
    height, width, _ = image.shape
    column, row = (jnp.floor(place).astype(jnp.int32) for place in _sources(height, width, matrix))
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return jnp.where(inside[..., None], image[jnp.where(inside, row, 0), jnp.where(inside, column, 0)], 0)


@_by_matrix
def bilinear(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Resample images as `nearest`, but interpolate between four pixels. Those outside the image are black.

    >>> jax.jit(bilinear)(jnp.arange(3.0).reshape(1, 3, 1), jnp.array([1, 0, 0.5, 0, 1, 0])).ravel().tolist()
    [0.5, 1.5, 1.0]
    """
    height, width, _ = image.shape
    column, row = (place - 0.5 for place in _sources(height, width, matrix))

    def channel(pixels):
        return map_coordinates(pixels, [row, column], order=1, mode="constant")

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


@_by_matrix
def bilinear_to_border(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Resample images as `bilinear`, but pixels at the border reach to the border of the image, as in Pillow.

    >>> jax.jit(bilinear_to_border)(jnp.arange(3.0).reshape(1, 3, 1), jnp.array([1, 0, 0.5, 0, 1, 0])).ravel().tolist()
    [0.5, 1.5, 0.0]
    """
    height, width, _ = image.shape
    column, row = _sources(height, width, matrix)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)

    def channel(pixels):
        return jnp.where(inside, map_coordinates(pixels, [row - 0.5, column - 0.5], order=1, mode="nearest"), 0)

    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


def _sources(height, width, matrix):
    """Return x and y, both [H, W], from which the matrix takes each pixel.

    A matrix product is computed once. XLA may compute a sum twice with different rounding: once for the index of a
    pixel, once for its weight, and then 11.999 has the index 12 and the weight of 11 + 0.999.
    """
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    points = np.stack([x, y, np.ones_like(x)]).astype(np.float32)
    return tuple(jnp.einsum("rk,khw->rhw", matrix.reshape(2, 3), points, precision=jax.lax.Precision.HIGHEST))


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Return the matrix for `nearest` that turns images counterclockwise about their center."""
    sine, cosine = jnp.sin(jnp.deg2rad(degrees)), jnp.cos(jnp.deg2rad(degrees))
    x, y = width / 2, height / 2
    return jnp.stack([cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y])


def operations(sample: Sample, height: int, width: int) -> dict[str, Callable]:
    """Return the 14 operations, as {name: (image, magnitude) -> image}; some ignore the magnitude.

    Magnitudes are those of torchvision: pixels per pixel (shear), whole pixels to the right and down (translation),
    degrees (rotation), a factor minus 1 (brightness, color, contrast, sharpness), bits (posterize), and the least color
    to invert, in [0, 1] (solarize). Pixels from outside the image are black.

    Args:
      sample: `nearest` or `bilinear`.
      height, width: of the images.

    >>> jax.jit(operations(nearest, 8, 8)["TranslateX"])(jnp.ones((8, 8, 1)), 3)[0, :, 0].tolist()
    [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def moved(image, *numbers):
        return sample(image, jnp.stack([jnp.asarray(number, jnp.float32) for number in numbers]))

    return {
        "Identity": lambda image, m: image,
        "ShearX": lambda image, m: moved(image, 1, m, 0, 0, 1, 0),
        "ShearY": lambda image, m: moved(image, 1, 0, 0, m, 1, 0),
        "TranslateX": lambda image, m: moved(image, 1, 0, -m, 0, 1, 0),
        "TranslateY": lambda image, m: moved(image, 1, 0, 0, 0, 1, -m),
        "Rotate": lambda image, m: sample(image, rotation(m, height, width)),
        "Brightness": lambda image, m: color.brightness(image, 1 + m),
        "Color": lambda image, m: color.saturation(image, 1 + m),
        "Contrast": lambda image, m: color.contrast(image, 1 + m),
        "Sharpness": lambda image, m: color.sharpness(image, 1 + m),
        "Posterize": lambda image, m: color.posterize(image, m),
        "Solarize": lambda image, m: color.solarize(image, m),
        "AutoContrast": lambda image, m: color.autocontrast(image),
        "Equalize": lambda image, m: color.equalize(image),
    }
