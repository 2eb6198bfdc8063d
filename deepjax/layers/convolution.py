"""Convolution and transposed convolution as Linen modules."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from deepjax import functional, initializers
from deepjax.errors import InputError


class Conv(nn.Module):
    """Apply `functional.conv` with a learned kernel, and a bias if `use_bias` is set.

    Parameters: `kernel` [*window, features_in // groups, features] and `bias` [features], in float32. Unlike
    `flax.linen.Conv`, it is fast inside a scan on CPU, and an integer `padding` means the same as in PyTorch.

    >>> import jax
    >>> y, variables = Conv(6, (5, 5), stride=2).init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> y.shape, variables["params"]["kernel"].shape
    ((1, 4, 4, 6), (5, 5, 3, 6))
    """

    features: int
    window: Sequence[int] = (3, 3)
    stride: int | Sequence[int] = 1
    padding: str | int | Sequence = "SAME"
    dilation: int | Sequence[int] = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Callable | None = None  # None: he_normal(mode="fan_out", groups=groups)
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: the dtype that x and the parameters promote to

    @nn.compact
    def __call__(self, x):
        """[batch, *spatial, features_in] -> [batch, *out, features]."""
        return functional.conv(
            *_operands(self, x),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class ConvTranspose(nn.Module):
    """Apply `functional.conv_transpose` with a learned kernel, and a bias if `use_bias` is set.

    Parameters: `kernel` [*window, features_in // groups, features] and `bias` [features], in float32. The output is
    that of PyTorch's ConvTranspose.

    >>> import jax
    >>> layer, x = ConvTranspose(3, (4, 4), stride=2, padding=1), jnp.ones((1, 5, 5, 2))
    >>> y, variables = jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), x))
    >>> y.shape, variables["params"]["kernel"].shape
    ((1, 10, 10, 3), (4, 4, 2, 3))
    """

    features: int
    window: Sequence[int] = (3, 3)
    stride: int | Sequence[int] = 1
    padding: int | Sequence = 0
    output_padding: int | Sequence[int] = 0
    dilation: int | Sequence[int] = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Callable | None = None  # None: he_normal(mode="fan_out", groups=groups)
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: the dtype that x and the parameters promote to

    @nn.compact
    def __call__(self, x):
        """[batch, *spatial, features_in] -> [batch, *out, features]."""
        return functional.conv_transpose(
            *_operands(self, x),
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
        )


def _operands(layer, x):
    """Return x, the kernel and the bias in the dtype of the computation. The layer's call owns the parameters."""
    if layer.groups < 1:
        raise InputError(f"{type(layer).__name__}: groups {layer.groups} must be at least 1")
    kernel_init = layer.kernel_init or initializers.he_normal(mode="fan_out", groups=layer.groups)
    kernel_shape = (*layer.window, x.shape[-1] // layer.groups, layer.features)
    kernel = layer.param("kernel", kernel_init, kernel_shape, jnp.float32)
    bias = layer.param("bias", layer.bias_init, (layer.features,), jnp.float32) if layer.use_bias else None
    return promote_dtype(x, kernel, bias, dtype=layer.dtype)
