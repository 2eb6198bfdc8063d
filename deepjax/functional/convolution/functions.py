"""Convolution and transposed convolution of x [*batch, *spatial, features]."""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from deepjax.functional.arrays import spread
from deepjax.functional.convolution import maps
from deepjax.functional.convolution.form import conv_form, transposed_form


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
    """Convolve x with a kernel, which is not flipped:

        y[o] = bias + sum over k of x[o * stride + k * dilation - low] @ kernel[k],

    where o is a pixel of y, k a tap of the window, and x is 0 outside of its pixels. The arithmetic is that of
    Dumoulin & Visin (2016), "A guide to convolution arithmetic for deep learning", section 2.

    Args:
      x: [*batch, *spatial, features_in], with 1, 2 or 3 spatial axes and at least one batch axis.
      kernel: [*window, features_in // groups, features_out].
      bias: [features_out], or None.
      stride: pixels from one window to the next, an int or one per spatial axis.
      padding: pixels of zeros around x. An int pads every side; a sequence holds an int or a (low, high) pair per
        spatial axis. "VALID" pads nothing. "SAME" pads so that out = ceil(spatial / stride), with the odd pixel on
        the high side. PyTorch pads both sides equally at every stride: use an int for its layers.
      dilation: pixels from one tap of a window to the next, an int or one per spatial axis.
      groups: number of equal parts into which the features are split. Each part of y depends only on its part of x.

    Returns:
      y [*batch, *out, features_out], where
      out = (low + spatial + high - (window - 1) * dilation - 1) // stride + 1.

    Raises:
      InputError: shapes or groups that do not match, a window larger than the padded x, a stride or dilation
        below 1, or a padding below 0.

    >>> x = jnp.arange(4.0).reshape(1, 4, 1)  # one example, 4 pixels, one feature
    >>> conv(x, jnp.array([[[1.0]], [[10.0]]]), padding="VALID").ravel().tolist()
    [10.0, 21.0, 32.0]
    """
    form = conv_form(x, kernel, bias, stride, padding, dilation, groups)
    y = _over_batch("forward", x, kernel, form)
    return y if bias is None else y + spread(bias, y)


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
    """Multiply x by the transpose of a convolution's matrix. Each pixel i of x adds to one window of y:

        y[i * stride + k * dilation - low] += x[i] @ kernel[k], and y += bias.

    Without bias, this is the gradient of a `conv` in its input: of the conv from y's shape to x's with the same
    stride, padding, dilation and groups, whose kernel has features in and out exchanged (Dumoulin & Visin 2016,
    section 4). It equals PyTorch's ConvTranspose, whose weight is [features_in, features_out // groups, *window].
    With one group, move the first two axes of that weight to the end to get this kernel.

    Args:
      x: [*batch, *spatial, features_in], with 1, 2 or 3 spatial axes and at least one batch axis.
      kernel: [*window, features_in // groups, features_out].
      bias: [features_out], or None.
      stride: pixels of y from the window of one pixel of x to that of the next, an int or one per spatial axis.
      padding: pixels to cut off from y. An int cuts every side; a sequence holds an int or a (low, high) pair per
        spatial axis.
      output_padding: pixels to add at y's high end, an int or one per spatial axis; less than the stride or the
        dilation. A conv with a stride maps several input sizes to one output size, and this selects among them.
      dilation: pixels of y from one tap of a window to the next, an int or one per spatial axis.
      groups: number of equal parts into which the features are split. Each part of y depends only on its part of x.

    Returns:
      y [*batch, *out, features_out], where
      out = (spatial - 1) * stride - low - high + (window - 1) * dilation + output_padding + 1.

    Raises:
      InputError: shapes or groups that do not match, a stride or dilation below 1, a padding below 0 or so large that
        nothing is left of y, or an output_padding that is not less than the stride or the dilation.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> conv_transpose(x, kernel, stride=2, padding=1, output_padding=1).shape
    (1, 8, 8, 5)
    """
    form = transposed_form(x, kernel, bias, stride, padding, output_padding, dilation, groups)
    y = _over_batch("input_gradient", x, _exchange(kernel, groups), form)
    return y if bias is None else y + spread(bias, y)


def _over_batch(name, x, kernel, form):
    """Apply a map with all batch axes of x as one."""
    batch = x.shape[: 1 - kernel.ndim]
    y = maps.apply(name, x.reshape(math.prod(batch), *x.shape[len(batch) :]), kernel, form)
    return y.reshape(*batch, *y.shape[1:])


def _exchange(kernel, groups):
    """Exchange features in and out: [*window, in // groups, out] -> [*window, out // groups, in]."""
    *window, part, features = kernel.shape
    parts = kernel.reshape(*window, part, groups, features // groups)
    return jnp.moveaxis(parts, -3, -1).swapaxes(-3, -2).reshape(*window, features // groups, groups * part)
