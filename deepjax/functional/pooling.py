"""Pooling over windows of x [batch, *spatial, features], for any number of spatial axes."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from deepjax.errors import InputError


def max_pool(x, window, *, stride=None, padding=0):
    """Largest value in each window.

    Args:
      x: [batch, *spatial, features].
      window: pixels, an int or one per spatial axis.
      stride: pixels between windows; None: the window's size.
      padding: pixels on both sides, an int or one per spatial axis; padding never wins.

    Returns:
      [batch, *out, features] with out = (spatial + 2 padding - window) // stride + 1.

    Raises:
      InputError: a window larger than the padded input, or padding of more than half the window.
    """
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(x, np.asarray(lowest, x.dtype), lax.max, *_windows("max_pool", x, window, stride, padding))


def avg_pool(x, window, *, stride=None, padding=0):
    """Mean of each window; padding counts as zeros, as in PyTorch. Arguments as in `max_pool`."""
    dimensions, strides, pads = _windows("avg_pool", x, window, stride, padding)
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, dimensions, strides, pads) / np.prod(dimensions)


def global_avg_pool(x):
    """Mean over all spatial axes: [batch, *spatial, features] -> [batch, features]."""
    return x.mean(tuple(range(1, x.ndim - 1)))


def _windows(name, x, window, stride, padding):
    """Window, stride and padding of every axis of x, as `lax.reduce_window` wants them."""
    spatial = x.shape[1:-1]

    def per_axis(value):
        return (value,) * len(spatial) if isinstance(value, int) else tuple(value)

    window = per_axis(window)
    stride = window if stride is None else per_axis(stride)
    padding = per_axis(padding)
    for argument, value in (("window", window), ("stride", stride), ("padding", padding)):
        if len(value) != len(spatial):
            raise InputError(f"{name}: {argument} {value} needs {len(spatial)} entries for x of shape {x.shape}")
    for size, w, s, p in zip(spatial, window, stride, padding, strict=True):
        if w < 1 or s < 1 or not 0 <= p <= w // 2 or size + 2 * p < w:
            raise InputError(
                f"{name}: window {w}, stride {s}, padding {p} do not fit an axis of {size} pixels; window and stride "
                f"must be at least 1, padding at most half the window, the window within the padded axis"
            )
    return (1, *window, 1), (1, *stride, 1), ((0, 0), *((p, p) for p in padding), (0, 0))
