"""The pixels that a unit depends on: which it can (theoretical), and how much it does (effective receptive field)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def influence(maps: Callable, images, key):
    """Return how much each pixel influences the central unit of a feature map (Luo et al. 2016, section 2).

    This is the mean over images of the sum, over the unit's features and the pixel's channels, of the squared
    derivative. The sum over features is estimated with random cotangents, which is unbiased: E (v^T J)^2 = sum_k J_k^2
    for v of N(0, I).

    Args:
      maps: function images -> feature map [B, h, w, features].
      images: float [B, H, W, channels].
      key: PRNG key of the cotangents.

    Returns:
      float [H, W], at least 0.
    """
    y, back = jax.vjp(maps, jnp.asarray(images))
    center = (slice(None), y.shape[1] // 2, y.shape[2] // 2)
    v = jax.random.normal(key, (y.shape[0], y.shape[-1]), y.dtype)
    (gradients,) = back(jnp.zeros_like(y).at[center].set(v))
    return (gradients**2).sum(-1).mean(0)


def spread(influence):
    """Return the standard deviation of an influence [H, W] around its mean, in pixels: [along H, along W]."""
    influence = jnp.asarray(influence)

    def deviation(profile):
        weights, pixels = profile / profile.sum(), jnp.arange(len(profile))
        return jnp.sqrt((weights * (pixels - (weights * pixels).sum()) ** 2).sum())

    return jnp.stack([deviation(influence.sum(1)), deviation(influence.sum(0))])
