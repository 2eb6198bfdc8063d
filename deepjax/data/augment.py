"""Random changes to a batch of training images, pure JAX, inside the jitted step: which, and in which order."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import config
from deepjax.data import color
from deepjax.data.randaugment import STRONGEST, randaugment
from deepjax.errors import InputError

# The numbers of channels that each color operation can work on; brightness takes any.
CHANNELS = {"contrast": (1, 3), "saturation": (3,), "hue": (3,), "lighting": (3,), "randaugment": (1, 3)}


def check(augment: config.Augment, shape: tuple[int, ...]) -> None:
    """Raises InputError where `augment` cannot apply to inputs of `shape`, (H, W, C) or (features,)."""
    default = config.Augment()
    _at_least_0(augment, ("mixup", "cutmix"), math.inf)
    if replace(augment, mixup=0.0) == default:
        return
    if len(shape) != 3:
        raise InputError(f"data.augment: needs images, the data have shape {shape}; leave data.augment unset")
    side = min(shape[:2])
    _at_least_0(augment, ("crop", "translate"), side)
    _at_least_0(augment, ("scale",), 1)
    _at_least_0(augment, ("brightness", "contrast", "saturation", "lighting", "randaugment"), math.inf)
    if not 0 <= augment.hue <= 0.5:
        raise InputError(f"data.augment.hue {augment.hue}: must be at least 0 and at most 0.5, half the circle")
    if not 0 <= augment.magnitude <= STRONGEST:
        raise InputError(f"data.augment.magnitude {augment.magnitude}: must be at least 0 and at most {STRONGEST}")
    if augment.magnitude != default.magnitude and not augment.randaugment:
        raise InputError(f"data.augment.magnitude {augment.magnitude}: is for data.augment.randaugment; set that, too")
    if not 0 <= augment.cutout < 2 * side:
        raise InputError(f"data.augment.cutout {augment.cutout}: must be at least 0 and less than {2 * side}")
    if augment.area is not None and not 0 < augment.area[0] <= augment.area[1] <= 1:
        raise InputError(f"data.augment.area {augment.area}: must be two fractions, 0 < least <= most <= 1")
    for name, channels in CHANNELS.items():
        if getattr(augment, name) and shape[2] not in channels:
            needed = " or ".join(map(str, channels))
            raise InputError(f"data.augment.{name}: needs {needed} channels, the images have {shape[2]}; leave it 0")


def _at_least_0(augment, names, limit):
    for name in names:
        value = getattr(augment, name)
        if not 0 <= value < limit:
            below = "finite" if limit == math.inf else f"less than {limit}"
            raise InputError(f"data.augment.{name} {value}: must be at least 0 and {below}")


# The key of a step is folded with a number for each use, which must stay, or resumed runs would differ: 0 to 3 are
# taken by `augment`, 4 to 6 by `change_colors`.


def change_colors(
    key: jax.Array, images: jax.Array, augment: config.Augment, components: np.ndarray | None = None
) -> jax.Array:
    """[B, H, W, C] as stored -> in [0, 1], each image changed by its own draws; without any such change, as they came.

    RandAugment, then brightness, contrast, saturation and hue, then PCA lighting, which needs its `components`
    (of `lighting_components`). For images before they are standardized; uint8 is divided by 255 first.
    """
    jittered = any(getattr(augment, name) for name in color.JITTER)
    if not (jittered or augment.lighting or augment.randaugment):
        return images
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    if augment.randaugment:
        images = randaugment(jax.random.fold_in(key, 4), images, augment.randaugment, augment.magnitude)
    if jittered:
        images = color.jitter(jax.random.fold_in(key, 5), images, augment)
    if augment.lighting:
        if components is None:
            raise InputError("change_colors: augment.lighting needs components, as of lighting_components")
        images = color.lighting(jax.random.fold_in(key, 6), images, augment.lighting, components)
    return images


def augment(key: jax.Array, images: jax.Array, augment: config.Augment) -> jax.Array:
    """Float [B, H, W, C] -> the same shape, each image changed by its own draws: all that moves or covers pixels.

    Images are standardized already: what comes in from outside is 0, the mean color (with data.standardize min_max
    the value 0). `augment.area` is not applied here but where images are read.
    """
    if augment.flip:
        images = _flip(jax.random.fold_in(key, 0), images)
    if augment.crop:
        images = _crop(jax.random.fold_in(key, 1), images, augment.crop)
    if augment.translate or augment.scale:
        images = _move(jax.random.fold_in(key, 2), images, augment.translate, augment.scale)
    if augment.cutout:
        images = cutout(jax.random.fold_in(key, 3), images, augment.cutout)
    return images


def cutout(key: jax.Array, images: jax.Array, side: int) -> jax.Array:
    """A square with sides of `side` pixels set to 0 in each image [B, H, W, C], around a pixel drawn uniformly.

    DeVries and Taylor 2017. What reaches over the border is cut off. With an even side, the pixel is the one below and
    to the right of the centre.

    >>> int((cutout(jax.random.key(0), jnp.ones((1, 9, 9, 1)), 1) == 0).sum())
    1
    """
    batch, height, width, _ = images.shape
    rows, columns = (
        _pieces(jax.random.fold_in(key, axis), batch, side, size) for axis, size in enumerate((height, width))
    )
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, images)


def _pieces(key, batch, length, size):
    """bool [batch, size]: a piece of this length around a uniformly drawn place, cut off at the ends."""
    first = jax.random.randint(key, (batch, 1), 0, size) - length // 2
    places = jnp.arange(size)[None]
    return (places >= first) & (places < first + length)


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
