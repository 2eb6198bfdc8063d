"""Random changes to a batch of training images, pure JAX, inside the jitted step."""

import jax
import jax.numpy as jnp

from deepjax import config
from deepjax.errors import InputError


def check(augment: config.Augment, shape: tuple[int, ...]) -> None:
    """Raises InputError where `augment` cannot apply to images of `shape` (H, W, C)."""
    if augment != config.Augment() and len(shape) != 3:
        raise InputError(f"data.augment: needs images, the data have shape {shape}; leave data.augment unset")
    if augment == config.Augment():
        return
    side = min(shape[:2])
    for name, limit in (("crop", side), ("translate", side), ("scale", 1)):
        value = getattr(augment, name)
        if not 0 <= value < limit:
            raise InputError(f"data.augment.{name} {value}: must be at least 0 and less than {limit}")
    if augment.area is not None and not 0 < augment.area[0] <= augment.area[1] <= 1:
        raise InputError(f"data.augment.area {augment.area}: must be two fractions, 0 < least <= most <= 1")


def augment(key: jax.Array, images: jax.Array, augment: config.Augment) -> jax.Array:
    """Float [B, H, W, C] -> the same shape, each image changed by its own draws.

    Images are standardized already: what comes in from outside is 0, the mean colour. `augment.area` is not
    applied here but where images are read.
    """
    if augment.flip:
        images = _flip(jax.random.fold_in(key, 0), images)
    if augment.crop:
        images = _crop(jax.random.fold_in(key, 1), images, augment.crop)
    if augment.translate or augment.scale:
        images = _move(jax.random.fold_in(key, 2), images, augment.translate, augment.scale)
    return images


def _flip(key, images):
    mirrored = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def _crop(key, images, pad):
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * pad + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def _move(key, images, translate, scale):
    """Zoom about the centre, then shift: one bilinear resampling, 0 where the source lies outside."""
    batch, height, width, _ = images.shape
    shifts = jax.random.uniform(jax.random.fold_in(key, 0), (batch, 2), minval=-translate, maxval=translate)
    zooms = jax.random.uniform(jax.random.fold_in(key, 1), (batch, 1), minval=1 - scale, maxval=1 + scale)
    offsets = shifts + (1 - zooms) * jnp.array([[height / 2, width / 2]])

    def resample(image, zoom, offset):
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), jnp.broadcast_to(zoom, (2,)), offset, method="linear", antialias=False
        )

    return jax.vmap(resample)(images, zooms, offsets).astype(images.dtype)
