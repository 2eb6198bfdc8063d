"""Convolutions of a special form: depthwise, separable, factorized, transposed.

As in `conv`, x is [*batch, *spatial, features_in], and a kernel is never flipped.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from deepjax.errors import InputError
from deepjax.functional.convolution import canonical, check_shapes, conv, low_high, per_axis


def depthwise_conv(
    x,
    kernel,
    bias=None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence = "SAME",
    dilation: int | Sequence[int] = 1,
):
    """Each feature convolved by itself: feature i of y comes from feature i // multiplier of x alone.

    Args:
      x: [*batch, *spatial, features_in].
      kernel: [*window, 1, features_in * multiplier].
      bias: [features_in * multiplier], or None.
      stride, padding, dilation: as of `conv`.

    Returns:
      [*batch, *out, features_in * multiplier].

    Raises:
      InputError: a kernel of another shape; whatever `conv` raises.

    >>> x, kernel = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 1, 2))
    >>> depthwise_conv(x, kernel, padding="VALID").shape
    (1, 3, 3, 2)
    """
    features = x.shape[-1]
    if kernel.ndim < 3 or kernel.shape[-2] != 1 or kernel.shape[-1] % features:
        raise InputError(
            f"depthwise_conv: kernel of shape {kernel.shape} must be [*window, 1, features], a "
            f"multiple of the {features} features of x"
        )
    return conv(x, kernel, bias, stride=stride, padding=padding, dilation=dilation, groups=features)


def separable_conv(
    x,
    depthwise,
    pointwise,
    bias=None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence = "SAME",
    dilation: int | Sequence[int] = 1,
):
    """A depthwise convolution, then one of windows of a single pixel that mixes the features.

    With c features in, d out and windows of k pixels it has c (k + d) weights, where `conv` has c k d (Howard et al.
    2017, MobileNets, section 3.1). It is a `conv` with kernel[k, i, o] = sum over m of depthwise[k, 0, i, m]
    pointwise[i, m, o], where (i, m) counts the features between the two.

    Args:
      x: [*batch, *spatial, features_in].
      depthwise: [*window, 1, features_in * multiplier].
      pointwise: [*ones, features_in * multiplier, features_out].
      bias: [features_out], or None.
      stride, padding, dilation: of the depthwise convolution, as of `conv`.

    Returns:
      [*batch, *out, features_out].

    Raises:
      InputError: kernels that do not match; whatever `conv` raises.

    >>> x = jnp.ones((1, 8, 8, 2))
    >>> separable_conv(x, jnp.ones((3, 3, 1, 2)), jnp.ones((1, 1, 2, 5)), stride=2).shape
    (1, 4, 4, 5)
    """
    ones = (1,) * (depthwise.ndim - 2)
    if pointwise.shape[:-1] != (*ones, depthwise.shape[-1]):
        raise InputError(
            f"separable_conv: pointwise of shape {pointwise.shape} must be [{', '.join('1' * len(ones))}, "
            f"{depthwise.shape[-1]}, features_out] after depthwise of shape {depthwise.shape}"
        )
    y = depthwise_conv(x, depthwise, stride=stride, padding=padding, dilation=dilation)
    return conv(y, pointwise, bias, padding="VALID")


def factorized_conv(
    x,
    across,
    down,
    bias=None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence = "SAME",
    dilation: int | Sequence[int] = 1,
):
    """A convolution with windows of 1 x n pixels, then one of n x 1 (Szegedy et al. 2016, section 3.2).

    It is a `conv` whose kernel is, at row i and column j, the product across[0, j] @ down[i, 0] of two matrices.

    Args:
      x: [*batch, height, width, features_in].
      across: [1, columns, features_in, features_between].
      down: [rows, 1, features_between, features_out].
      bias: [features_out], or None.
      stride, padding, dilation: of the whole, as of `conv`: those of the width go to the first convolution, those of
        the height to the second.

    Returns:
      [*batch, *out, features_out].

    Raises:
      InputError: kernels that do not match; whatever `conv` raises.

    >>> x = jnp.ones((1, 9, 9, 2))
    >>> factorized_conv(x, jnp.ones((1, 7, 2, 3)), jnp.ones((7, 1, 3, 4)), stride=2).shape
    (1, 5, 5, 4)
    """
    if across.ndim != 4 or down.ndim != 4 or across.shape[0] != 1 or down.shape[1] != 1:
        raise InputError(
            f"factorized_conv: across {across.shape} must be [1, columns, features_in, between], down {down.shape} "
            "[rows, 1, between, features_out]"
        )
    if across.shape[-1] != down.shape[-2]:
        raise InputError(
            f"factorized_conv: across gives {across.shape[-1]} features, down takes {down.shape[-2]}: make them equal"
        )
    (rows, columns), (tall, wide) = (
        per_axis(n, v, 2, name="factorized_conv") for n, v in (("stride", stride), ("dilation", dilation))
    )
    if isinstance(padding, str):
        first = second = padding
    else:
        above, beside = low_high(padding, (0, 0), (), (), name="factorized_conv")
        first, second = ((0, 0), beside), (above, (0, 0))
    x = conv(x, across, stride=(1, columns), padding=first, dilation=(1, wide))
    return conv(x, down, bias, stride=(rows, 1), padding=second, dilation=(tall, 1))


def conv_transpose(
    x,
    kernel,
    bias=None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
):
    """y[i * stride + k * dilation - low] += x[i] @ kernel[k]: the transpose of a convolution's matrix, plus bias.

    Without bias it is the gradient of `conv` in its input: that of a conv of the same stride, padding, dilation and
    groups from y's shape to x's, whose kernel has features in and out exchanged. It is PyTorch's ConvTranspose, whose
    weight [features_in, features_out // groups, *window] is here kernel[*window, features_in // groups, features_out],
    as of `conv`: for one group its first two axes come last, and stay in order.

    Args:
      x: [*batch, *spatial, features_in], with 1, 2 or 3 spatial axes and at least one batch axis.
      kernel: [*window, features_in // groups, features_out].
      bias: [features_out], or None.
      stride: pixels of y between the windows of neighbours in x, an int or one per spatial axis.
      padding: pixels cut off from y, an int for every side; an int or a (low, high) per spatial axis.
      output_padding: pixels more at y's high end, less than the stride or the dilation: a conv that leaves a rest
        maps several sizes to one, and this says which of them y has. An int or one per spatial axis.
      dilation: pixels of y between the taps of a window, an int or one per spatial axis.
      groups: features_in and features_out are cut into this many parts; each part sees only its own.

    Returns:
      y [*batch, *out, features_out], where
      out = (spatial - 1) * stride - low - high + (window - 1) * dilation + output_padding + 1.

    Raises:
      InputError: shapes or groups that do not match, a stride or dilation below 1, padding below 0 or so large that
        nothing is left of y, an output_padding that is not less than the stride or the dilation.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_transpose(x, kernel, stride=2, padding=1, output_padding=1).shape
    (1, 8, 8, 5)
    """
    axes = kernel.ndim - 2
    stride, padding, dilation, more = _transposed_geometry(
        x, kernel, bias, stride, padding, output_padding, dilation, groups
    )
    reach = [(window - 1) * d for window, d in zip(kernel.shape, dilation)]
    margins = [(r - low, r - high + m) for r, (low, high), m in zip(reach, padding, more, strict=True)]
    images = x.reshape(math.prod(x.shape[: -1 - axes]), *x.shape[-1 - axes :])
    y = canonical(
        images,
        jnp.flip(kernel, tuple(range(axes))),
        (1,) * axes,
        [(max(low, 0), max(high, 0)) for low, high in margins],
        lhs_dilation=stride,
        rhs_dilation=dilation,
        feature_group_count=groups,
    )
    cut = [(min(low, 0), min(high, 0), 0) for low, high in margins]
    y = lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *cut, (0, 0, 0)])
    y = y.reshape(*x.shape[: -1 - axes], *y.shape[1:])
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def _transposed_geometry(x, kernel, bias, stride, padding, output_padding, dilation, groups):
    """Stride, padding (low, high), dilation and output padding, one entry per spatial axis, all checked."""
    name = "conv_transpose"
    check_shapes(x, kernel, bias, groups, name=name)
    axes = kernel.ndim - 2
    stride, dilation = (per_axis(n, v, axes, name=name) for n, v in (("stride", stride), ("dilation", dilation)))
    if isinstance(padding, str):
        raise InputError(
            f"{name}: padding {padding!r} must be an int of at least 0, or {axes} ints or (low, high) pairs"
        )
    spatial = x.shape[-1 - axes : -1]
    padding = low_high(padding, spatial, (), (), name=name)
    more = tuple(output_padding) if isinstance(output_padding, Sequence) else (output_padding,) * axes
    if len(more) != axes or not all(
        isinstance(m, int) and 0 <= m < max(s, d) for m, s, d in zip(more, stride, dilation)
    ):
        raise InputError(
            f"{name}: output_padding {output_padding!r} must be an int, or one per spatial axis, of at least 0 and "
            f"less than stride {stride} or dilation {dilation}"
        )
    out = tuple(
        (size - 1) * s - sum(p) + (window - 1) * d + m + 1
        for size, s, p, window, d, m in zip(spatial, stride, padding, kernel.shape[:-2], dilation, more, strict=True)
    )
    if min(out) < 1:
        raise InputError(f"{name}: padding {padding} leaves nothing of y, whose size would be {out}; pad less")
    return stride, padding, dilation, more
