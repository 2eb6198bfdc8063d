"""Views of the images of a batch: their center, or several, over which predictions are averaged."""

import jax
import jax.numpy as jnp

from deepjax import config
from deepjax.errors import InputError

COUNTS = (1, 2, 5, 10)
CROP = 224 / 256  # side of a crop, as a fraction of the image's side (Krizhevsky et al. 2012, section 4.1)


def check(data: config.Data, shape: tuple[int, ...]) -> None:
    """Raise InputError if data.center_crop does not fit inputs of `shape`."""
    size, pixels = data.center_crop, shape[:2]
    if size and (len(shape) != 3 or data.standardize == "pca"):
        raise InputError(f"data.center_crop {size}: needs images, and the inputs are vectors; leave it 0")
    if size > min(pixels):
        raise InputError(f"data.center_crop {size} must be at most {min(pixels)} for images of this size")


def center_crop(images: jax.Array, size: int) -> jax.Array:
    """Return the center [B, size, size, C] of images [B, H, W, C], as torchvision does. With size 0 all pixels.

    >>> center_crop(jnp.arange(5.0).reshape(1, 1, 5, 1).repeat(3, 1), 3)[0, 0].ravel().tolist()
    [1.0, 2.0, 3.0]
    """
    if not size:
        return images
    top, left = (round((side - size) / 2) for side in images.shape[1:3])
    return images[:, top : top + size, left : left + size]


def cropped_shape(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return the shape that `center_crop` gives one input of `shape`."""
    return (size, size, shape[2]) if size else tuple(shape)


def view(images: jax.Array, index: jax.Array | int, count: int) -> jax.Array:
    """Return one view of each image [B, H, W, C], as float [B, H, W, C] with uint8 values divided by 255.

    Args:
      images: uint8, or float.
      index: number of the view, from 0 to count - 1; may be traced.
      count: 1: the image. 2: the image and its mirror image. 5: the corners and the center of the image, 7/8 of its
        sides, enlarged to its size. 10: these and their mirror images.

    >>> image = jnp.arange(3.0).reshape(1, 1, 3, 1)
    >>> jax.jit(view, static_argnums=2)(image, 1, 2).ravel().tolist()
    [2.0, 1.0, 0.0]
    """
    images = images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
    if count >= 5:
        images = _crop(images, index % 5)
    mirrored = (index == 1) if count == 2 else (index >= 5)
    return jnp.where(mirrored, images[:, :, ::-1], images)


def _crop(images, place):
    """Enlarge a crop of each image: top left, top right, bottom left, bottom right, center."""
    batch, height, width, features = images.shape
    corner = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5]])[place]
    size = jnp.array([height, width], jnp.float32)
    scale = jnp.full(2, 1 / CROP)
    shift = -corner * (1 - CROP) * size * scale
    shape = (batch, height, width, features)
    return jax.image.scale_and_translate(images, shape, (1, 2), scale, shift, method="linear", antialias=False)
