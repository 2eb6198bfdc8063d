"""Convolutions made of `conv`: depthwise, separable and factorized. Kernels are not flipped."""

from collections.abc import Sequence

import jax.numpy as jnp  # noqa: F401  the examples use it

from deepjax.errors import InputError
from deepjax.functional.convolution.form import low_high, per_axis
from deepjax.functional.convolution.functions import conv


def depthwise_conv(
    x,
    kernel,
    bias=None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence = "SAME",
    dilation: int | Sequence[int] = 1,
):
    """Convolve each feature by itself: feature i of y depends on feature i // multiplier of x alone.

        y[o, i] = bias[i] + sum over k of x[o * stride + k * dilation - low, i // multiplier] * kernel[k, 0, i]

    Args:
      x: [*batch, *spatial, features_in].
      kernel: [*window, 1, features_in * multiplier].
      bias: [features_in * multiplier], or None.
      stride, padding, dilation: as in `conv`.

    Returns:
      [*batch, *out, features_in * multiplier], with `out` as in `conv`.

    Raises:
      InputError: a kernel of another shape, or arguments that `conv` refuses.

    >>> import jax
    >>> x, kernel = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 1, 2))
    >>> jax.eval_shape(lambda: depthwise_conv(x, kernel, padding="VALID")).shape
    (1, 3, 3, 2)
    """
    features = x.shape[-1]
    if kernel.ndim < 3 or kernel.shape[-2] != 1 or kernel.shape[-1] % features:
        raise InputError(
            f"depthwise_conv: kernel of shape {kernel.shape} must be [*window, 1, features], where features is a "
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
    """Convolve each feature by itself, then mix the features of each pixel by a window of one pixel.

    With c features in, d features out and windows of k pixels it has c (k + d) weights, where `conv` has c k d (Howard
    et al. 2017, "MobileNets", section 3.1). It equals a `conv` with the kernel

        kernel[k, i, o] = sum over m of depthwise[k, 0, (i, m)] * pointwise[(i, m), o],

    where (i, m) = i * multiplier + m counts the features between the two convolutions.

    Args:
      x: [*batch, *spatial, features_in].
      depthwise: [*window, 1, features_in * multiplier].
      pointwise: [1, ..., 1, features_in * multiplier, features_out], with as many axes as `depthwise`.
      bias: [features_out], or None.
      stride, padding, dilation: of the depthwise convolution, as in `conv`.

    Returns:
      [*batch, *out, features_out], with `out` as in `conv`.

    Raises:
      InputError: kernels that do not match, or arguments that `conv` refuses.

    >>> import jax
    >>> x = jnp.ones((1, 8, 8, 2))
    >>> kernel, pointwise = jnp.ones((3, 3, 1, 2)), jnp.ones((1, 1, 2, 5))
    >>> jax.eval_shape(lambda: separable_conv(x, kernel, pointwise, stride=2)).shape
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
    """Convolve with windows of 1 x n pixels, then with windows of n x 1 (Szegedy et al. 2016, section 3.2).

    It equals a `conv` whose kernel at row i and column j is the matrix product across[0, j] @ down[i, 0].

    Args:
      x: [*batch, height, width, features_in].
      across: [1, columns, features_in, features_between].
      down: [rows, 1, features_between, features_out].
      bias: [features_out], or None.
      stride, padding, dilation: of the whole, as in `conv`. The entries for the width apply to the first convolution,
        those for the height to the second.

    Returns:
      [*batch, *out, features_out], with `out` as in `conv`.

    Raises:
      InputError: kernels that do not match, or arguments that `conv` refuses.

    >>> x = jnp.ones((1, 9, 9, 2))
    >>> factorized_conv(x, jnp.ones((1, 7, 2, 3)), jnp.ones((7, 1, 3, 4)), stride=2).shape
    (1, 5, 5, 4)
    """
    if across.ndim != 4 or down.ndim != 4 or across.shape[0] != 1 or down.shape[1] != 1:
        raise InputError(
            f"factorized_conv: across {across.shape} must be [1, columns, features_in, between] and down {down.shape} "
            "must be [rows, 1, between, features_out]"
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
