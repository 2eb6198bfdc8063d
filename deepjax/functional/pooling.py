"""Pooling over the pixels of x [batch, *spatial, features], for any number of spatial axes."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32
from deepjax.functional.windows import largest, total


def max_pool(
    x,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil=False,
):
    """Return the largest value in each window.

    Args:
      x: [batch, *spatial, features].
      window: size in pixels, an int or one per spatial axis.
      stride: pixels from one window to the next, an int or one per spatial axis. None: the window's size.
      padding: pixels on both sides, an int or one per spatial axis. Padding is never the largest value.
      ceil: True adds the windows that extend beyond the high side, if they start before the high padding. This is
        PyTorch's ceil_mode.

    Returns:
      [batch, *out, features], where out = (spatial + 2 padding - window) / stride + 1, rounded down, or up with `ceil`.

    Raises:
      InputError: a window larger than the padded x (with `ceil`, by the stride or more), a window or stride below 1, or
        a padding of more than half the window.

    >>> x = jnp.arange(5.0).reshape(1, 5, 1)
    >>> max_pool(x, 2).ravel().tolist(), max_pool(x, 2, ceil=True).ravel().tolist()
    ([1.0, 3.0], [1.0, 3.0, 4.0])
    """
    return largest(x, *_windows("max_pool", x, window, stride, padding, ceil))


def avg_pool(
    x,
    window: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil=False,
    count_padding=True,
):
    """Return the mean of each window. Sums are taken in at least float32.

    Args:
      x, window, stride, padding, ceil: as in `max_pool`.
      count_padding: True counts padding as zeros, as PyTorch does by default; False divides by the number of pixels of
        x in the window. Pixels that `ceil` adds beyond the padding never count.

    Returns:
      [batch, *out, features], with `out` as in `max_pool`. The mean of integers is float32.

    Raises:
      InputError: see `max_pool`.

    >>> x = jnp.ones((1, 3, 1))
    >>> avg_pool(x, 2, padding=1).ravel().tolist(), avg_pool(x, 2, padding=1, count_padding=False).ravel().tolist()
    ([0.5, 1.0], [1.0, 1.0])
    """
    dimensions, strides, pads = _windows("avg_pool", x, window, stride, padding, ceil)
    wide = at_least_float32(x)
    sums = total(wide, dimensions, strides, pads)
    if count_padding and all(low == high for low, high in pads):
        return (sums / np.prod(dimensions)).astype(_mean_dtype(x))
    counted, shape = pads, x.shape[1:-1]
    if count_padding:  # the padding of both sides counts, what `ceil` adds beyond it does not
        shape = tuple(size + 2 * low for size, (low, _) in zip(shape, pads[1:-1], strict=True))
        counted = ((0, 0), *((0, max(high - low, 0)) for low, high in pads[1:-1]), (0, 0))
    ones = np.ones((1, *shape, 1), np.float32)
    count = lax.reduce_window(ones, np.float32(0), lax.add, dimensions, strides, counted)
    return (sums / count.astype(wide.dtype)).astype(_mean_dtype(x))


def adaptive_avg_pool(x, size):
    """Return the means of a grid of windows whose size does not depend on x, as PyTorch's adaptive_avg_pool.

    On an axis of s pixels, window i of n extends from pixel floor(i s / n) to ceil((i + 1) s / n), exclusively.

    Args:
      x: [batch, *spatial, features].
      size: size of the output, an int or one per spatial axis.

    Returns:
      [batch, *size, features].

    Raises:
      InputError: a size below 1, or not one per spatial axis.

    >>> adaptive_avg_pool(jnp.arange(5.0).reshape(1, 5, 1), 2).ravel().tolist()
    [1.0, 3.0]
    """
    sizes = (size,) * (x.ndim - 2) if isinstance(size, int) else tuple(size)
    if len(sizes) != x.ndim - 2 or min(sizes) < 1:
        raise InputError(f"adaptive_avg_pool: size {size!r} must be at least 1, one per spatial axis of x {x.shape}")
    if sizes == x.shape[1:-1]:
        return avg_pool(x, 1)  # so that `summary` sees a pooling here, as at other sizes
    y = at_least_float32(x)
    for axis, n in enumerate(sizes, 1):
        s = x.shape[axis]
        if s == n:
            continue
        weights = np.zeros((n, s))
        for i in range(n):
            low, high = i * s // n, -(-(i + 1) * s // n)
            weights[i, low:high] = 1 / (high - low)
        y = jnp.moveaxis(jnp.tensordot(y, jnp.asarray(weights, y.dtype), (axis, 1)), -1, axis)
    return y.astype(_mean_dtype(x))


def global_avg_pool(x):
    """Return the mean over all spatial axes: [batch, *spatial, features] -> [batch, features].

    >>> global_avg_pool(jnp.arange(6.0).reshape(1, 3, 2)).tolist()
    [[2.0, 3.0]]
    """
    return x.mean(tuple(range(1, x.ndim - 1)))


def _mean_dtype(x):
    """Return the dtype of a mean of x: float32 for integers, else x's."""
    return x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32


def _windows(name, x, window, stride, padding, ceil):
    """Return the window, stride and padding of every axis of x for `lax.reduce_window`."""
    spatial = x.shape[1:-1]

    def per_axis(value):
        return (value,) * len(spatial) if isinstance(value, int) else tuple(value)

    window = per_axis(window)
    stride = window if stride is None else per_axis(stride)
    padding = per_axis(padding)
    for argument, value in (("window", window), ("stride", stride), ("padding", padding)):
        if len(value) != len(spatial):
            raise InputError(f"{name}: {argument} {value} must have {len(spatial)} entries for x of shape {x.shape}")
    pads = []
    for size, w, s, p in zip(spatial, window, stride, padding, strict=True):
        if w < 1 or s < 1 or not 0 <= p <= w // 2 or size + 2 * p + ceil * (s - 1) < w:
            raise InputError(
                f"{name}: window {w}, stride {s}, padding {p} do not fit an axis of {size} pixels; window and stride "
                f"must be at least 1, padding at most half the window, the window within the padded axis"
            )
        more = -(size + 2 * p - w) % s if ceil else 0
        starts_inside = size + 2 * p - w + more < size + p  # PyTorch omits a window that starts in the high padding
        pads.append((p, p + more if starts_inside else p))
    return (1, *window, 1), (1, *stride, 1), ((0, 0), *pads, (0, 0))
