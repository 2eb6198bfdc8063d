"""Depthwise convolution as a sum over the window's taps: x shifted, times one number for each feature.

A depthwise convolution multiplies little and reads much, and the kernels that XLA:CPU has for grouped convolutions do
not suit it: in a scan, an 8x14x14x96 array with windows of 3x3 takes 60 times as long for value and gradients, and
4 times as long for the value alone. `functional.conv` comes here on CPU. All functions take x
[batch, *spatial, features_in], a kernel [*window, 1, features] where feature i sees feature i // multiplier of x, and
(stride, padding, dilation) with one entry per spatial axis. Sums are taken in at least float32.
"""

import functools
import itertools
import math
import operator

import jax.numpy as jnp
from jax import lax

MOST_TAPS = 128  # each is an operation to compile


def forward(x, kernel, geometry):
    """y[o] = sum over k of x[o * stride + k * dilation - low] * kernel[k], repeated for each multiple."""
    stride, padding, dilation = geometry
    views = _views(_pad(x, padding, kernel.shape[-1]), kernel.shape[:-2], stride, dilation)
    return _sum_of_products(views, kernel).astype(x.dtype)


def gradients(geometry, x, kernel, dy):
    """(dx, dkernel) of `forward`."""
    return _input_gradient(geometry, x, kernel, dy), _kernel_gradient(geometry, x, kernel, dy)


def _input_gradient(geometry, x, kernel, dy):
    """dx[i] = sum over k of dy[(i + low - k * dilation) / stride] * kernel[k], where the division leaves no rest."""
    stride, padding, dilation = geometry
    spread = [
        (
            (window - 1) * d - low,  # where it is negative, these pixels are the forward's padding
            size + low - 1 - (out - 1) * s,
            s - 1,
        )
        for size, out, window, s, (low, _), d in zip(
            x.shape[1:-1], dy.shape[1:-1], kernel.shape[:-2], stride, padding, dilation, strict=True
        )
    ]
    spread_dy = _pad(dy, spread, dy.shape[-1])
    views = _views(spread_dy, kernel.shape[:-2], (1,) * len(stride), dilation)
    dx = _sum_of_products(views, jnp.flip(kernel, tuple(range(len(stride)))))
    return dx.reshape(*x.shape, dy.shape[-1] // x.shape[-1]).sum(-1).astype(x.dtype)


def _kernel_gradient(geometry, x, kernel, dy):
    """dkernel[k] = sum over o of x[o * stride + k * dilation - low] * dy[o]."""
    stride, padding, dilation = geometry
    views = _views(_pad(x, padding, kernel.shape[-1]), kernel.shape[:-2], stride, dilation)
    # first over rows, then over the last axis: on CPU faster than a sum over all at once (measured)
    sums = [(view * dy).sum(tuple(range(dy.ndim - 2))).sum(0) for view in views]
    return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def _pad(x, padding, features):
    """X in at least float32, its features repeated to `features`; padding is (low, high) or (low, high, between)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    spatial = [(low, high, *(between or [0])) for low, high, *between in padding]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])
    times = features // x.shape[-1]
    return padded if times == 1 else jnp.repeat(padded, times, -1)


def _views(x, window, stride, dilation):
    """For each tap of the window, the pixels of a padded x that it is multiplied by."""
    spans = [
        (size - (w - 1) * d - 1) // s * s + 1
        for size, w, s, d in zip(x.shape[1:-1], window, stride, dilation, strict=True)
    ]
    for tap in itertools.product(*map(range, window)):
        first = [t * d for t, d in zip(tap, dilation, strict=True)]
        end = [f + span for f, span in zip(first, spans, strict=True)]
        yield lax.slice(x, (0, *first, 0), (x.shape[0], *end, x.shape[-1]), (1, *stride, 1))


def _sum_of_products(views, kernel):
    taps = kernel.reshape(math.prod(kernel.shape[:-2]), *(1,) * (kernel.ndim - 1), kernel.shape[-1])
    products = (view * tap.astype(view.dtype) for view, tap in zip(views, taps, strict=True))
    return functools.reduce(operator.add, products)
