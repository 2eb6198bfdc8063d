"""A depthwise convolution as a sum over the taps of its window: shifted x times one number per feature, for XLA:CPU.

A depthwise convolution computes little and reads much, which does not suit XLA:CPU's kernels for grouped
convolutions. Inside a scan, they take 60 times as long for the value and the gradients of an 8x14x14x96 array with a
window of 3x3, and 4 times as long for the value alone. Kernels are [*window, 1, features], where feature i reads
feature i // multiplier of x. Sums are taken in at least float32. For the arguments see `maps.py`.
"""

import functools
import itertools
import math
import operator

import jax.numpy as jnp
from jax import lax

from deepjax.functional.arrays import at_least_float32


def forward(x, kernel, form):
    """y[o] = sum over k of x[o * stride + k * dilation - low] * kernel[k]."""
    return _sum_of_products(_forward_views(x, kernel.shape[-1], form), kernel).astype(x.dtype)


def input_gradient(dy, kernel, form):
    """dx[i] = sum over k of dy[(i + low - k * dilation) / stride] * kernel[k], over the k that divide exactly."""
    spread = [
        (
            a.reach - a.low,  # where it is negative, these pixels are the forward pass's padding
            a.size + a.low - 1 - (out - 1) * a.stride,
            a.stride - 1,
        )
        for a, out in zip(form.axes, dy.shape[1:-1], strict=True)
    ]
    views = _views(_pad(dy, spread), form, stride=(1,) * len(spread))
    dx = _sum_of_products(views, jnp.flip(kernel, tuple(range(len(spread)))))
    return dx.reshape(*dx.shape[:-1], form.groups, dx.shape[-1] // form.groups).sum(-1).astype(dy.dtype)


def kernel_gradient(x, dy, form):
    """dkernel[k] = sum over o of x[o * stride + k * dilation - low] * dy[o]."""
    # Sum over rows first, then over the last axis: on CPU this is faster than a sum over all at once (measured).
    sums = [(view * dy).sum(tuple(range(dy.ndim - 2))).sum(0) for view in _forward_views(x, dy.shape[-1], form)]
    dkernel = jnp.stack(sums).reshape(*(a.window for a in form.axes), 1, dy.shape[-1])
    return dkernel.astype(x.dtype)


def _forward_views(x, features, form):
    padded = _pad(x, [(a.low, a.high, 0) for a in form.axes])
    multiplier = features // x.shape[-1]
    padded = padded if multiplier == 1 else jnp.repeat(padded, multiplier, -1)
    return _views(padded, form, stride=[a.stride for a in form.axes])


def _pad(x, padding):
    """Pad x in at least float32 by (low, high, between) pixels per spatial axis."""
    x = at_least_float32(x)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *padding, (0, 0, 0)])


def _views(padded, form, stride):
    """For each tap of the window, yield the pixels that it multiplies."""
    spans = [
        (size - a.reach - 1) // s * s + 1 for size, a, s in zip(padded.shape[1:-1], form.axes, stride, strict=True)
    ]
    for tap in itertools.product(*(range(a.window) for a in form.axes)):
        first = [t * a.dilation for t, a in zip(tap, form.axes, strict=True)]
        end = [f + span for f, span in zip(first, spans, strict=True)]
        yield lax.slice(padded, (0, *first, 0), (padded.shape[0], *end, padded.shape[-1]), (1, *stride, 1))


def _sum_of_products(views, kernel):
    taps = kernel.reshape(math.prod(kernel.shape[:-2]), *(1,) * (kernel.ndim - 1), kernel.shape[-1])
    products = (view * tap.astype(view.dtype) for view, tap in zip(views, taps, strict=True))
    return functools.reduce(operator.add, products)
