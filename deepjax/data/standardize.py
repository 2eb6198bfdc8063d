"""Zero mean and unit variance per channel."""

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.data.records import Arrays, Split


def channel_statistics(source: Split) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, each float32 [C], over all images and pixels.

    uint8 in units of [0, 1] (values / 255); float features as they are. The standard deviation of a constant
    channel is given as 1, so that standardizing it gives 0 and not 0/0.
    """
    if isinstance(source, Arrays) and source.images.dtype != np.uint8:
        mean = source.images.mean(0, dtype=np.float64)
        std = source.images.std(0, dtype=np.float64)
    else:
        counts = _histogram(source)  # exact, and one pass suffices for the mean and the variance
        levels = np.arange(256) / 255
        pixels = counts.sum(1)
        mean = counts @ levels / pixels
        std = np.sqrt(np.sum(counts * (levels - mean[:, None]) ** 2, 1) / pixels)
    return mean.astype(np.float32), np.where(std == 0, 1, std).astype(np.float32)


def _histogram(source: Split) -> np.ndarray:
    """Counts of each value, int64 [C, 256]."""

    def count(_, chunk: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(chunk[..., c].ravel(), minlength=256) for c in range(chunk.shape[-1])])

    if isinstance(source, Arrays):
        chunks = np.array_split(source.images, -(-len(source) // 1024))  # bincount makes int64 of each
        return np.sum([count(None, chunk) for chunk in chunks], 0)
    return np.sum(source.map(count), 0)


def standardize(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """x [..., C], mean and std [C] -> (x - mean) / std, float32 [..., C]; uint8 is divided by 255 first."""
    values = x.astype(jnp.float32)
    if x.dtype == jnp.uint8:
        values = values / 255
    shape = (1,) * (x.ndim - 1) + (-1,)
    return (values - jnp.reshape(mean, shape)) / jnp.reshape(std, shape)
