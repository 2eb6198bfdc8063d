"""Operations on the colors of images in [0, 1], in pure JAX: those of torchvision's `ColorJitter`, and PCA lighting.

An image is [..., H, W, C]. A number such as `factor` is a scalar for all images, or [...], one for each image. Gray is
defined by ITU-R BT.601, as in Pillow. Operations that mix channels need C = 3 (RGB); for C = 1, gray is the image.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import config
from deepjax.data.records import Split
from deepjax.data.standardize import channel_covariance

GRAY = (0.299, 0.587, 0.114)

# Operations are written for one image; these decorators add leading axes.
_by_image = partial(jnp.vectorize, signature="(h,w,c)->(h,w,c)")
_by_image_and_number = partial(jnp.vectorize, signature="(h,w,c),()->(h,w,c)")


def gray(image: jax.Array) -> jax.Array:
    """Convert images [..., C], C = 3 or 1, to gray [..., 1].

    >>> gray(jnp.array([1.0, 0.0, 0.0])).tolist()
    [0.29...]
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = (weight * image[..., c : c + 1] for c, weight in enumerate(GRAY))
    return red + green + blue


def _between(other, image, factor):
    factor = factor.astype(image.dtype)
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


@_by_image_and_number
def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply every color by a factor of at least 0. A factor of 1 returns the image."""
    return _between(jnp.zeros_like(image), image, factor)


@_by_image_and_number
def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the distance from the image's mean gray by a factor of at least 0."""
    return _between(jnp.broadcast_to(gray(image).mean(), image.shape), image, factor)


@_by_image_and_number
def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the distance from each pixel's gray by a factor of at least 0: Pillow's `Color`."""
    return _between(jnp.broadcast_to(gray(image), image.shape), image, factor)


@_by_image_and_number
def hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Turn the hue by a fraction of the circle. Saturation and value (of HSV) do not change. C = 3.

    >>> jax.jit(hue)(np.array([[[1.0, 0.0, 0.0]]]), 1 / 3).round(4).tolist()
    [[[0.0, 1.0, 0.0]]]
    """
    red, green, blue = (image[..., c] for c in range(3))
    value = image.max(-1)
    chroma = value - image.min(-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # The distance of the hue from the hue at which each channel is darkest, in sixths of the circle.
    distance = [(n + sixth + 6 * turn.astype(image.dtype)) % 6 for n in (5, 3, 1)]
    return jnp.stack([value - chroma * jnp.clip(jnp.minimum(d, 4 - d), 0, 1) for d in distance], -1)


@_by_image_and_number
def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the distance from the image, smoothed by a 3x3 kernel (5 at the center, 1 around), by a factor >= 0.

    Pixels at the border do not change, as in Pillow.
    """
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    around = sum(image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    smooth = image.at[1:-1, 1:-1].set((around + 4 * image[1:-1, 1:-1]) / 13)
    return _between(smooth, image, factor)


@_by_image_and_number
def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Round each color to 256 levels, and keep the upper bits (0 to 8)."""
    step = 2 ** (8 - bits.astype(jnp.int32))
    return (_levels(image) // step * step).astype(image.dtype) / 255


@_by_image_and_number
def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert colors of at least `threshold`, in [0, 1]."""
    # The tolerance makes a color that equals the threshold up to rounding be inverted.
    return jnp.where(image >= threshold.astype(image.dtype) - 1e-5, 1 - image, image)


@_by_image
def autocontrast(image: jax.Array) -> jax.Array:
    """Scale each channel so that its minimum is 0 and its maximum 1. A constant channel does not change."""
    least = image.min((0, 1), keepdims=True)
    span = image.max((0, 1), keepdims=True) - least
    return jnp.where(span > 0, (image - least) / jnp.where(span > 0, span, 1), image)


@_by_image
def equalize(image: jax.Array) -> jax.Array:
    """Map the 256 levels of each channel so that all are about equally frequent, by Pillow's integer formula."""
    return jax.vmap(_equalize_channel, in_axes=-1, out_axes=-1)(image)


def _equalize_channel(channel):
    levels = _levels(channel)
    counts = jnp.zeros(256, jnp.int32).at[levels].add(1)
    last = 255 - jnp.argmax(counts[::-1] > 0)
    step = (channel.size - counts[last]) // 255
    table = (jnp.cumsum(counts) - counts + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(table, 0, 255)[levels].astype(channel.dtype) / 255, channel)


def _levels(image):
    return jnp.clip(jnp.round(255 * image), 0, 255).astype(jnp.int32)


JITTER = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}


def jitter(key: jax.Array, images: jax.Array, augment: config.Augment) -> jax.Array:
    """Change brightness, contrast, saturation and hue of images [B, H, W, C], in random order for each image.

    Factors are uniform in [max(0, 1 - strength), 1 + strength], turns of the hue in [-strength, strength]. Operations
    with strength 0 in `augment` are left out.

    >>> images = jnp.full((2, 4, 4, 3), 0.5)
    >>> y = jax.jit(jitter, static_argnums=2)(jax.random.key(0), images, config.Augment(brightness=0.5))
    >>> bool((y == images).any())
    False
    """
    strengths = {name: getattr(augment, name) for name in JITTER if getattr(augment, name)}
    operations = [JITTER[name] for name in strengths]
    least = jnp.array([-s if name == "hue" else max(0.0, 1 - s) for name, s in strengths.items()], images.dtype)
    most = jnp.array([s if name == "hue" else 1 + s for name, s in strengths.items()], images.dtype)
    shape = (len(images), len(strengths))
    orders = jnp.argsort(jax.random.uniform(jax.random.fold_in(key, 0), shape))
    draws = jax.random.uniform(jax.random.fold_in(key, 1), shape, images.dtype)
    numbers = least[None] + draws * (most - least)[None]

    def change(image, order, numbers):
        for k in range(len(operations)):
            image = jax.lax.switch(order[k], operations, image, numbers[order[k]])
        return image

    return jax.vmap(change)(images, orders, numbers)


def lighting_components(split: Split) -> np.ndarray:
    """Return the eigenvectors of the channels' covariance in columns, times their eigenvalues: float32 [C, C].

    The covariance is over all images and pixels of a training set, of values in [0, 1].
    """
    variances, vectors = np.linalg.eigh(channel_covariance(split))
    return (vectors * variances).astype(np.float32)


def lighting(key: jax.Array, images: jax.Array, std: float, components: jax.Array | np.ndarray) -> jax.Array:
    """Add a random color to all pixels of each image [B, H, W, C]: PCA lighting, Krizhevsky et al. 2012, section 4.1.

    The color is components @ a, with `components` of `lighting_components`. Each image draws a [C] from the normal
    distribution with standard deviation std (0.1 in the paper). Results may be outside [0, 1].

    >>> image = np.zeros((1, 2, 2, 3))
    >>> jax.jit(lighting)(jax.random.key(0), image, 0.1, np.zeros((3, 3))).max().item()
    0.0
    """
    draws = std * jax.random.normal(key, (len(images), images.shape[-1]), images.dtype)
    colors = jnp.matmul(draws, components.T, precision=jax.lax.Precision.HIGHEST)
    return images + colors.astype(images.dtype)[:, None, None, :]
