"""Convolution of x [*batch, *spatial, features], with gradients that stay fast inside a scan on CPU.

XLA:CPU has a fast kernel for a convolution in canonical layout (batch first, features last). It brings a
convolution into that layout only outside of loops, and the gradients that JAX derives are not in it: inside
`lax.scan` the weight gradient is tens of times slower. Here both gradients are stated as canonical
convolutions or products; a depthwise convolution and its gradients are sums over the window's taps
(`depthwise.py`). Other platforms keep the gradients that JAX derives, which their backends know well; the choice
falls when the program is lowered, so one traced program serves every platform.

The price of a reverse rule of our own: with `groups=1`, or a group for each feature, there is no forward mode
(`jax.jvp`, `jax.jacfwd`, `jax.hessian`). Reverse over reverse works: `jax.jacrev(jax.grad(loss))` in place of
`jax.hessian(loss)`.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deepjax.errors import InputError, choices
from deepjax.functional import depthwise


class Geometry(NamedTuple):
    """How a window moves: one entry per spatial axis, all in pixels."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # (low, high)
    dilation: tuple[int, ...]


def conv(
    x,
    kernel,
    bias=None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
):
    """y[o] = bias + sum over k of x[o * stride + k * dilation - low] @ kernel[k]: the kernel is not flipped.

    Args:
      x: [*batch, *spatial, features_in], with 1, 2 or 3 spatial axes and at least one batch axis.
      kernel: [*window, features_in // groups, features_out].
      bias: [features_out], or None.
      stride: pixels between windows, an int or one per spatial axis.
      padding: pixels of zeros around x: an int for every side; an int or a (low, high) per spatial axis;
        "VALID" for none; "SAME" for out = ceil(spatial / stride), with the odd pixel on the high side.
        PyTorch pads both sides alike at any stride: give an int for its layers.
      dilation: pixels between the taps of a window, an int or one per spatial axis.
      groups: features_in and features_out are cut into this many parts; each part sees only its own.

    Returns:
      y [*batch, *out, features_out], where
      out = (low + spatial + high - (window - 1) * dilation - 1) // stride + 1.

    Raises:
      InputError: shapes or groups that do not match, a window larger than the padded x, a stride or dilation
        below 1, padding below 0.

    The arithmetic is Dumoulin & Visin's (2016), "A guide to convolution arithmetic for deep learning".
    """
    check_shapes(x, kernel, bias, groups)
    spatial = x.shape[1 - kernel.ndim : -1]
    geometry = _geometry(spatial, kernel.shape[:-2], stride, padding, dilation)
    x, kernel = _vary_alike(x, kernel)
    images = x.reshape(math.prod(x.shape[: 1 - kernel.ndim]), *x.shape[1 - kernel.ndim :])
    if groups == 1:
        y = _conv(images, kernel, geometry)
    elif kernel.shape[-2] == 1 and math.prod(kernel.shape[:-2]) <= depthwise.MOST_TAPS and not _is_explicit(images):
        y = _depthwise(images, kernel, geometry)
    else:
        y = _grouped(images, kernel, geometry, groups)
    y = y.reshape(*x.shape[: 1 - kernel.ndim], *y.shape[1:])
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def _grouped(x, kernel, geometry, groups):
    stride, padding, dilation = geometry
    return canonical(x, kernel, stride, padding, rhs_dilation=dilation, feature_group_count=groups)


def canonical(x, kernel, stride, padding, **options):
    """x NHWC, kernel HWIO -> NHWC, for any number of spatial axes."""
    last = kernel.ndim - 1
    activations = (0, last, *range(1, last))
    layout = lax.ConvDimensionNumbers(activations, (last, last - 1, *range(last - 1)), activations)
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=layout, **options)


def _vary_alike(x, kernel):
    """Inside a `shard_map`, a replicated kernel meets sharded x: the cast's transpose sums the gradient."""
    varying = [jax.typeof(a).manual_axis_type.varying for a in (x, kernel)]
    missing = [tuple(frozenset.union(*varying) - axes) for axes in varying]
    return [lax.pcast(a, m, to="varying") if m else a for a, m in zip((x, kernel), missing, strict=True)]


# Gradients of y[o] = sum_k x[o * stride + k * dilation - low] @ kernel[k]


def _forward(x, kernel, geometry):
    return _grouped(x, kernel, geometry, 1)


def _save(x, kernel, geometry):
    return _forward(x, kernel, geometry), (x, kernel)


def _gradients(geometry, saved, dy):
    x, kernel = saved
    ours, derived = partial(_canonical_gradients, geometry), partial(_derived_gradients, geometry)
    if _is_explicit(dy):  # there, our transposes and reshapes would need shardings
        return derived(x, kernel, dy)
    return lax.platform_dependent(x, kernel, dy, cpu=ours, default=derived)


_conv = jax.custom_vjp(_forward, nondiff_argnums=(2,))
_conv.defvjp(_save, _gradients)


def _is_explicit(x):
    return bool(jax.typeof(x).sharding.mesh.explicit_axes)


def _derived_gradients(geometry, x, kernel, dy):
    return jax.vjp(partial(_forward, geometry=geometry), x, kernel)[1](dy)


# Of depthwise convolutions


def _depthwise_forward(x, kernel, geometry):
    by_taps = partial(depthwise.forward, geometry=geometry)
    return lax.platform_dependent(x, kernel, cpu=by_taps, default=partial(_one_each, geometry=geometry))


def _one_each(x, kernel, geometry):
    return _grouped(x, kernel, geometry, x.shape[-1])


def _depthwise_save(x, kernel, geometry):
    return _depthwise_forward(x, kernel, geometry), (x, kernel)


def _depthwise_gradients(geometry, saved, dy):
    def derived(x, kernel, dy):
        return jax.vjp(partial(_one_each, geometry=geometry), x, kernel)[1](dy)

    return lax.platform_dependent(*saved, dy, cpu=partial(depthwise.gradients, geometry), default=derived)


_depthwise = jax.custom_vjp(_depthwise_forward, nondiff_argnums=(2,))
_depthwise.defvjp(_depthwise_save, _depthwise_gradients)


# By canonical convolutions


def _canonical_gradients(geometry, x, kernel, dy):
    if math.prod(kernel.shape[:-2]) == 1 and not any(map(any, geometry.padding)):
        return _pointwise_gradients(geometry, x, kernel, dy)
    return _input_gradient(geometry, x, kernel, dy), _kernel_gradient(geometry, x, kernel, dy)


def _input_gradient(geometry, x, kernel, dy):
    """dx[i] = sum_k dy[(i + low - k * dilation) / stride] kernel[k].T, where the division leaves no rest."""
    axes = tuple(range(kernel.ndim - 2))
    padding, first = [], []
    for size, out, window, stride, (low, _), dilation in zip(
        x.shape[1:-1], dy.shape[1:-1], kernel.shape[:-2], *geometry, strict=True
    ):
        before = (window - 1) * dilation - low
        after = size + low - 1 - (out - 1) * stride
        padding.append((max(before, 0), max(after, 0)))
        first.append(max(-before, 0))  # the pixels before it are the forward's padding
    flipped = jnp.flip(kernel, axes).swapaxes(-1, -2)
    one = (1,) * len(axes)
    dx = canonical(dy, flipped, one, padding, lhs_dilation=geometry.stride, rhs_dilation=geometry.dilation)
    return dx[(slice(None), *(slice(f, f + n) for f, n in zip(first, x.shape[1:-1], strict=True)))]


def _kernel_gradient(geometry, x, kernel, dy):
    """dkernel[k] = sum_o x[o * stride + k * dilation - low].T @ dy[o]: dy as kernel, images as features."""
    padding, used = [], []
    for size, out, window, stride, (low, _), dilation in zip(
        x.shape[1:-1], dy.shape[1:-1], kernel.shape[:-2], *geometry, strict=True
    ):
        reach = (window - 1) * dilation + (out - 1) * stride + 1 - low  # the pixels of x that any window saw
        padding.append((low + min(reach, 0), max(reach - size, 0)))
        used.append(slice(0, max(reach, 0)))
    x = x[(slice(None), *used)]
    parts = _parts(len(x))
    x, dy = (a.reshape(len(a) // parts, parts, *a.shape[1:]).swapaxes(0, 1) for a in (x, dy))
    dkernel = sum(
        canonical(
            x[part].swapaxes(0, -1),
            jnp.moveaxis(dy[part], 0, -2),
            geometry.dilation,
            padding,
            rhs_dilation=geometry.stride,
        )
        for part in range(parts)
    )
    return jnp.moveaxis(dkernel, 0, -2)


def _parts(batch):
    """Into how many equal parts a batch is best cut: about 16 images are a good count of features (measured).

    At most 16 parts, because each is one more operation to compile.
    """
    return max((p for p in range(1, 17) if batch % p == 0 and batch // p >= 16), default=1)


def _pointwise_gradients(geometry, x, kernel, dy):
    """A window of one pixel makes every pixel a row of a matrix product."""
    matrix = kernel.reshape(kernel.shape[-2:])
    spread = [
        (0, size - 1 - (out - 1) * stride, stride - 1)
        for size, out, stride in zip(x.shape[1:-1], dy.shape[1:-1], geometry.stride, strict=True)
    ]
    dx = lax.pad(dy @ matrix.T, jnp.zeros((), dy.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    x = x[(slice(None), *(slice(None, None, s) for s in geometry.stride))]
    # a product batched over two halves of the rows runs on two cores, a plain one with few columns on one
    halves = 2 if math.prod(x.shape[:-1]) % 2 == 0 else 1
    x, dy = (a.reshape(halves, math.prod(a.shape[:-1]) // halves, a.shape[-1]) for a in (x, dy))
    return dx, jnp.einsum("hri,hro->hio", x, dy).sum(0).reshape(kernel.shape)


# Checks


def check_shapes(x, kernel, bias, groups, name="conv"):
    """Raises InputError, in the name of a function, unless x, kernel and bias go together in this many groups."""
    spatial = kernel.ndim - 2
    if not 1 <= spatial <= 3:
        raise InputError(f"{name}: kernel of shape {kernel.shape} needs 3, 4 or 5 axes: [*window, features_in, out]")
    if x.ndim < spatial + 2:
        raise InputError(
            f"{name}: x of shape {x.shape} needs a batch axis, {spatial} spatial axes and features, "
            f"to match a kernel of shape {kernel.shape}"
        )
    if not isinstance(groups, int) or groups < 1 or kernel.shape[-1] % groups:
        raise InputError(f"{name}: groups {groups!r} must be at least 1 and divide the {kernel.shape[-1]} features_out")
    if x.shape[-1] != kernel.shape[-2] * groups:
        raise InputError(
            f"{name}: x has {x.shape[-1]} features, but a kernel of shape {kernel.shape} in {groups} "
            f"groups takes {kernel.shape[-2] * groups}"
        )
    if bias is not None and bias.shape != kernel.shape[-1:]:
        raise InputError(f"{name}: bias of shape {bias.shape} must be {kernel.shape[-1:]}, one per feature of y")


def _geometry(spatial, window, stride, padding, dilation):
    stride, dilation = (per_axis(n, v, len(spatial)) for n, v in (("stride", stride), ("dilation", dilation)))
    extent = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    padding = low_high(padding, spatial, extent, stride)
    for size, (low, high), pixels in zip(spatial, padding, extent, strict=True):
        if pixels > low + size + high:
            raise InputError(
                f"conv: a window of {window}, dilation {dilation}, spans {extent} pixels, x {spatial} "
                f"with padding {padding} has fewer: pad more or take a smaller kernel"
            )
    return Geometry(stride, padding, dilation)


def per_axis(argument, value, axes, name="conv"):
    """An int or one per axis -> one per axis. Raises InputError, in the name of a function, for any below 1."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes or not all(isinstance(v, int) and v >= 1 for v in values):
        raise InputError(f"{name}: {argument} {value!r} must be an int of at least 1, or {axes} of them")
    return values


def low_high(padding, spatial, extent, stride, name="conv"):
    """What `conv` takes as padding -> (low, high) pixels per axis. Raises InputError in the name of a function."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise InputError(f"{name}: padding {padding!r}: {choices(padding, ('SAME', 'VALID'))}")
        return tuple(lax.padtype_to_pads(spatial, extent, stride, padding))
    sides = tuple(padding) if isinstance(padding, Sequence) else (padding,) * len(spatial)
    pairs = [tuple(p) if isinstance(p, Sequence) else (p, p) for p in sides]
    pixels = [p for pair in pairs for p in pair]
    if [len(pair) for pair in pairs] != [2] * len(spatial) or not all(isinstance(p, int) and p >= 0 for p in pixels):
        raise InputError(
            f"{name}: padding {padding!r} must be 'SAME', 'VALID', an int of at least 0, or {len(spatial)} "
            "ints or (low, high) pairs"
        )
    return tuple((low, high) for low, high in pairs)
