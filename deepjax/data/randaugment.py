"""RandAugment (Cubuk et al. 2020) with torchvision's 14 operations and magnitudes, on images in [0, 1], in pure JAX."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from deepjax.data import color

STRONGEST = 30  # magnitudes are 0 to 30


@partial(jnp.vectorize, signature="(h,w,c),(n)->(h,w,c)")
def affine(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Resample images [..., H, W, C] by the nearest pixel. `matrix` [..., 6] is that of Pillow's affine transform.

    The pixel with center (x, y), from the left and the top, is taken from (a x + b y + c, d x + e y + f). It is black
    if that point is outside the image.

    >>> jax.jit(affine)(jnp.arange(3.0).reshape(1, 3, 1), jnp.array([1, 0, 1, 0, 1, 0])).ravel().tolist()
    [1.0, 2.0, 0.0]
    """
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    column, row = (jnp.floor(place).astype(jnp.int32) for place in (a * x + b * y + c, d * x + e * y + f))
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return jnp.where(inside[..., None], image[jnp.where(inside, row, 0), jnp.where(inside, column, 0)], 0)


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Return the matrix for `affine` that turns images counterclockwise about their center."""
    sine, cosine = jnp.sin(jnp.deg2rad(degrees)), jnp.cos(jnp.deg2rad(degrees))
    x, y = width / 2, height / 2
    return jnp.stack([cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y])


def operations(magnitude: int, height: int, width: int) -> dict[str, Callable]:
    """Return torchvision's 14 operations at a magnitude from 0 to 30, as {name: (image, sign) -> image}.

    sign is 1 or -1: the direction of a movement, or more or less of a property. Posterize, Solarize and operations
    without a magnitude ignore it. Magnitude 30 shears by 0.3 pixels per pixel, shifts by 150/331 of the side (in whole
    pixels), turns by 30 degrees, has the factors 1.9 and 0.1, keeps 4 bits, and inverts everything. Pixels from outside
    the image are black.

    >>> jax.jit(operations(30, 8, 8)["TranslateX"])(jnp.ones((8, 8, 1)), 1)[0, :, 0].tolist()
    [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    strength = magnitude / STRONGEST
    shear, enhance = 0.3 * strength, 0.9 * strength
    right, down = (int(150 / 331 * side * strength) for side in (width, height))
    return {
        "Identity": lambda image, sign: image,
        "ShearX": lambda image, sign: affine(image, _matrix(1, sign * shear, 0, 0, 1, 0)),
        "ShearY": lambda image, sign: affine(image, _matrix(1, 0, 0, sign * shear, 1, 0)),
        "TranslateX": lambda image, sign: affine(image, _matrix(1, 0, -sign * right, 0, 1, 0)),
        "TranslateY": lambda image, sign: affine(image, _matrix(1, 0, 0, 0, 1, -sign * down)),
        "Rotate": lambda image, sign: affine(image, rotation(30 * strength * sign, height, width)),
        "Brightness": lambda image, sign: color.brightness(image, 1 + enhance * sign),
        "Color": lambda image, sign: color.saturation(image, 1 + enhance * sign),
        "Contrast": lambda image, sign: color.contrast(image, 1 + enhance * sign),
        "Sharpness": lambda image, sign: color.sharpness(image, 1 + enhance * sign),
        "Posterize": lambda image, sign: color.posterize(image, 8 - round(4 * strength)),
        "Solarize": lambda image, sign: color.solarize(image, 1 - strength),
        "AutoContrast": lambda image, sign: color.autocontrast(image),
        "Equalize": lambda image, sign: color.equalize(image),
    }


def _matrix(*numbers):
    return jnp.stack([jnp.asarray(number, jnp.float32) for number in numbers])


def randaugment(key: jax.Array, images: jax.Array, count: int, magnitude: int) -> jax.Array:
    """Apply `count` random operations, one after the other, to each image of [B, H, W, C], C = 1 or 3.

    Each of the 14 operations is equally likely, and so are its two directions.

    >>> jax.eval_shape(lambda key, x: randaugment(key, x, 2, 9), jax.random.key(0), jnp.ones((5, 8, 8, 3))).shape
    (5, 8, 8, 3)
    """
    table = list(operations(magnitude, *images.shape[1:3]).values())
    shape = (len(images), count)
    choices = jax.random.randint(jax.random.fold_in(key, 0), shape, 0, len(table))
    signs = jax.random.rademacher(jax.random.fold_in(key, 1), shape, jnp.float32)

    def change(image, choices, signs):
        for k in range(count):
            image = jax.lax.switch(choices[k], table, image, signs[k])
        return image

    return jax.vmap(change)(images, choices, signs)
