"""Random changes of a batch of training images, in pure JAX, inside the jitted step: which, and in which order."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import config
from deepjax.data import color
from deepjax.data.operations import bilinear_to_border
from deepjax.data.policies import augmix, randaugment, trivialaugment
from deepjax.errors import InputError

# The numbers of channels that each color operation supports. brightness supports any.
CHANNELS = {"contrast": (1, 3), "saturation": (3,), "hue": (3,), "lighting": (3,)}
CHANNELS |= dict.fromkeys(("randaugment", "trivialaugment", "augmix"), (1, 3))


def check(augment: config.Augment, shape: tuple[int, ...]) -> None:
    """Raise InputError if `augment` cannot be applied to inputs of `shape`, (H, W, C) or (features,)."""
    default = config.Augment()
    config.check(augment, "data.augment.")
    if replace(augment, mixup=0.0) == default:
        return
    if len(shape) != 3:
        raise InputError(f"data.augment: needs images, but the inputs have shape {shape}; leave data.augment unset")
    side = min(shape[:2])
    for name, limit in (("crop", side), ("translate", side), ("cutout", 2 * side)):
        if getattr(augment, name) >= limit:
            raise InputError(f"data.augment.{name} {getattr(augment, name)} must be less than {limit} for these images")
    if augment.magnitude != default.magnitude and not augment.randaugment:
        raise InputError(f"data.augment.magnitude {augment.magnitude}: is for data.augment.randaugment; set that too")
    if augment.area is not None and augment.area[0] > augment.area[1]:
        raise InputError(f"data.augment.area {augment.area} must be two fractions, the lower one first")
    for name, channels in CHANNELS.items():
        if getattr(augment, name) and shape[2] not in channels:
            needed = " or ".join(map(str, channels))
            raise InputError(f"data.augment.{name}: needs {needed} channels, the images have {shape[2]}; leave it 0")


# The PRNG key of a step is folded with a number for each use. The numbers must not change, or resumed runs would
# differ: `augment` uses 0 to 3 and 9, `change_colors` 4 to 8.


def change_colors(
    key: jax.Array, images: jax.Array, augment: config.Augment, components: np.ndarray | None = None
) -> jax.Array:
    """Change the colors of each image of [B, H, W, C] at random, before standardization.

    The order is RandAugment, TrivialAugment, AugMix, then brightness, contrast, saturation and hue, then PCA lighting,
    which needs `components` (of `lighting_components`). uint8 images are first divided by 255; float images must be in
    [0, 1]. If `augment` has none of these changes, the images are returned unchanged.
    """
    jittered = any(getattr(augment, name) for name in color.JITTER)
    if not (jittered or augment.lighting or augment.randaugment or augment.trivialaugment or augment.augmix):
        return images
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    if augment.randaugment:
        images = randaugment(jax.random.fold_in(key, 4), images, augment.randaugment, augment.magnitude)
    if augment.trivialaugment:
        images = trivialaugment(jax.random.fold_in(key, 7), images)
    if augment.augmix:
        images = augmix(jax.random.fold_in(key, 8), images, augment.augmix)
    if jittered:
        images = color.jitter(jax.random.fold_in(key, 5), images, augment)
    if augment.lighting:
        if components is None:
            raise InputError("change_colors: augment.lighting needs components; pass those of lighting_components")
        images = color.lighting(jax.random.fold_in(key, 6), images, augment.lighting, components)
    return images


def augment(key: jax.Array, images: jax.Array, augment: config.Augment) -> jax.Array:
    """Flip, crop, rotate, zoom, shift, cut out and erase images float [B, H, W, C] at random, after standardization.

    Pixels from outside the image are 0: the mean color, except with data.standardize min_max. `augment.area` is not
    applied here, but when images are read.
    """
    if augment.flip:
        images = _flip(jax.random.fold_in(key, 0), images)
    if augment.crop:
        images = _crop(jax.random.fold_in(key, 1), images, augment.crop)
    if augment.translate or augment.scale or augment.rotate:
        images = _move(jax.random.fold_in(key, 2), images, augment)
    if augment.cutout:
        images = cutout(jax.random.fold_in(key, 3), images, augment.cutout)
    if augment.erasing:
        images = erase(jax.random.fold_in(key, 9), images, augment.erasing)
    return images


def cutout(key: jax.Array, images: jax.Array, side: int) -> jax.Array:
    """Set a square of side x side pixels, at a uniformly drawn pixel, to 0 in each image [B, H, W, C].

    DeVries and Taylor 2017. The part outside the image is cut off. If side is even, the drawn pixel is the one
    below and to the right of the square's center.

    >>> y = jax.jit(cutout, static_argnums=2)(jax.random.key(0), np.ones((1, 9, 9, 1)), 1)
    >>> int((y == 0).sum())
    1
    """
    batch, height, width, _ = images.shape
    rows, columns = (
        _intervals(jax.random.fold_in(key, axis), batch, side, size) for axis, size in enumerate((height, width))
    )
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, images)


def _intervals(key, batch, length, size):
    """Return bool [batch, size]: an interval of this length around a uniformly drawn position, cut off at the ends."""
    first = jax.random.randint(key, (batch, 1), 0, size) - length // 2
    positions = jnp.arange(size)[None]
    return (positions >= first) & (positions < first + length)


def erase(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Set a random rectangle to 0 in each image [B, H, W, C], with this probability.

    Zhong et al. 2020 with torchvision's usual numbers: the area is 2 to 33 % of the image, the ratio of height to width
    is 0.3 to 3.3, uniform in its logarithm. Of ten rectangles the first that is smaller than the image is taken, if
    there is one; its place is uniform.
    """
    batch, height, width, _ = images.shape
    keys = [jax.random.fold_in(key, number) for number in range(4)]
    area = height * width * jax.random.uniform(keys[0], (batch, 10), minval=0.02, maxval=0.33)
    ratio = jnp.exp(jax.random.uniform(keys[1], (batch, 10), minval=np.log(0.3), maxval=np.log(3.3)))
    heights, widths = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (heights < height) & (widths < width)
    sizes = jnp.take_along_axis(jnp.stack([heights, widths], -1), fits.argmax(1)[:, None, None], 1)[:, 0]
    corners = jnp.floor(jax.random.uniform(keys[2], (batch, 2)) * (jnp.array([[height, width]]) - sizes + 1))

    def interval(axis, length):
        position = jnp.arange(length)[None]
        return (position >= corners[:, axis, None]) & (position < (corners + sizes)[:, axis, None])

    erased = jax.random.bernoulli(keys[3], probability, (batch,)) & fits.any(1)
    rectangle = interval(0, height)[:, :, None] & interval(1, width)[:, None, :]
    return jnp.where((erased[:, None, None] & rectangle)[..., None], 0, images)


def _flip(key, images):
    mirrored = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def _crop(key, images, pad):
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * pad + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def _move(key, images, augment):
    """Rotate and zoom about the center, then shift, in one bilinear resampling. Pixels from outside the image are 0."""

    def draws(number, limit, shape=()):
        shape = (len(images), *shape)
        return jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-limit, maxval=limit)

    shifts, zooms, degrees = draws(0, augment.translate, (2,)), 1 + draws(1, augment.scale), draws(2, augment.rotate)
    matrices = _sources(degrees, zooms, shifts, *images.shape[1:3])
    return bilinear_to_border(images, matrices).astype(images.dtype)


def _sources(degrees, zooms, shifts, height, width):
    """Return the matrices [B, 6] of `operations` that take a pixel p from center + R (p - center - shift) / zoom.

    R turns the image counterclockwise. Shifts [B, 2] are in pixels, down and to the right.
    """
    a, b = jnp.cos(jnp.deg2rad(degrees)) / zooms, -jnp.sin(jnp.deg2rad(degrees)) / zooms
    y, x = height / 2 + shifts[:, 0], width / 2 + shifts[:, 1]
    return jnp.stack([a, b, width / 2 - a * x - b * y, -b, a, height / 2 + b * x - a * y], -1)
