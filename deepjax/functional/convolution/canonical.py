"""The gradients of a dense convolution as convolutions in canonical layout, or as matrix products, for XLA:CPU.

XLA:CPU has a fast kernel for a convolution in canonical layout: batch first, features last. Outside of loops it
brings other layouts into this form. Inside `lax.scan` it does not, and the kernel gradient that JAX derives is tens of
times slower. For the arguments see `maps.py`.
"""

import math

import jax.numpy as jnp
from jax import lax

from deepjax.functional.arrays import float32_or_wider
from deepjax.functional.convolution import backend
from deepjax.functional.convolution.backend import channels_last

# A product batched over two halves of the rows runs on two cores; a plain one with few columns runs on one.
HALVES = 2


def forward(x, kernel, form):
    """Compute y. A window of one pixel gets a third axis, because XLA:CPU then does not take YNNPACK's slow kernel."""
    if len(form.axes) == 2 and _is_pointwise(form):
        x = x[(slice(None), *(slice(None, None, a.stride) for a in form.axes))]
        return channels_last(x[:, None], kernel[None], (1, 1, 1), [(0, 0)] * 3)[:, 0]
    return backend.forward(x, kernel, form)


def input_gradient(dy, kernel, form):
    """dx[i] = sum over k of dy[(i + low - k * dilation) / stride] @ kernel[k].T, over the k that divide exactly."""
    if _is_pointwise(form):
        return _pointwise_input_gradient(dy, kernel, form)
    padding, first = [], []
    for a, out in zip(form.axes, dy.shape[1:-1], strict=True):
        before, after = a.reach - a.low, a.size + a.low - 1 - (out - 1) * a.stride
        padding.append((max(before, 0), max(after, 0)))
        first.append(max(-before, 0))  # the pixels before it are the forward pass's padding
    flipped = jnp.flip(kernel, tuple(range(len(form.axes)))).swapaxes(-1, -2)
    dx = channels_last(
        dy,
        flipped,
        (1,) * len(form.axes),
        padding,
        lhs_dilation=[a.stride for a in form.axes],
        rhs_dilation=[a.dilation for a in form.axes],
    )
    return dx[(slice(None), *(slice(f, f + a.size) for f, a in zip(first, form.axes, strict=True)))]


def kernel_gradient(x, dy, form):
    """dkernel[k] = sum over o of x[o * stride + k * dilation - low].T @ dy[o].

    This is a convolution of x with dy as its kernel, in which the examples take the place of the features.
    """
    if _is_pointwise(form):
        return _pointwise_kernel_gradient(x, dy, form)
    padding, used = [], []
    for a, out in zip(form.axes, dy.shape[1:-1], strict=True):
        seen = a.reach + (out - 1) * a.stride + 1 - a.low  # the pixels of x that are in some window
        padding.append((a.low + min(seen, 0), max(seen - a.size, 0)))
        used.append(slice(0, max(seen, 0)))
    x = x[(slice(None), *used)]
    parts = parts_of_batch(len(x))
    x, dy = (a.reshape(len(a) // parts, parts, *a.shape[1:]).swapaxes(0, 1) for a in (x, dy))
    wide = float32_or_wider(x.dtype)  # the sum of the parts would be rounded as often as there are parts
    dkernel = sum(
        channels_last(
            x[part].swapaxes(0, -1),
            jnp.moveaxis(dy[part], 0, -2),
            [a.dilation for a in form.axes],
            padding,
            rhs_dilation=[a.stride for a in form.axes],
            preferred_element_type=wide,
        )
        for part in range(parts)
    )
    return jnp.moveaxis(dkernel, 0, -2).astype(x.dtype)


def parts_of_batch(batch):
    """Return into how many equal parts to cut a batch: parts of about 16 examples are fastest (measured).

    At most 16 parts, because each part is one more operation to compile.
    """
    return max((p for p in range(1, 17) if batch % p == 0 and batch // p >= 16), default=1)


# A window of one pixel without padding: every pixel is a row of a matrix product.


def _is_pointwise(form):
    return all(a.window == 1 and a.low == a.high == 0 for a in form.axes)


def _pointwise_input_gradient(dy, kernel, form):
    spread = [
        (0, a.size - 1 - (out - 1) * a.stride, a.stride - 1) for a, out in zip(form.axes, dy.shape[1:-1], strict=True)
    ]
    dx = dy @ kernel.reshape(kernel.shape[-2:]).T
    return lax.pad(dx, jnp.zeros((), dy.dtype), [(0, 0, 0), *spread, (0, 0, 0)])


def _pointwise_kernel_gradient(x, dy, form):
    x = x[(slice(None), *(slice(None, None, a.stride) for a in form.axes))]
    parts = HALVES if math.prod(x.shape[:-1]) % HALVES == 0 else 1
    x, dy = (a.reshape(parts, math.prod(a.shape[:-1]) // parts, a.shape[-1]) for a in (x, dy))
    wide = float32_or_wider(x.dtype)
    if x.shape[-1] > dy.shape[-1]:  # a product is faster if its result has few rows
        dkernel = jnp.einsum("hro,hri->hoi", dy, x, preferred_element_type=wide).sum(0).T
    else:
        dkernel = jnp.einsum("hri,hro->hio", x, dy, preferred_element_type=wide).sum(0)
    return dkernel.reshape(*(1,) * len(form.axes), *dkernel.shape).astype(x.dtype)
