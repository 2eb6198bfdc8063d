"""Convolution, and its transpose, as Linen modules."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from deepjax import functional, initializers


class Conv(nn.Module):
    """Convolution of [batch, *spatial, features] with a kernel [*window, features_in / groups, features].

    Unlike `flax.linen.Conv`, it is fast inside a scan on CPU, and an integer `padding` is PyTorch's.
    """

    features: int
    window: Sequence[int] = (3, 3)
    stride: int | Sequence[int] = 1
    padding: str | int | Sequence = "SAME"
    dilation: int | Sequence[int] = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Callable = initializers.he_normal(mode="fan_out")
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: as the input's and the parameters'

    @nn.compact
    def __call__(self, x):
        """[batch, *spatial, features_in] -> [batch, *out, features]."""
        kernel_shape = (*self.window, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, kernel_shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return functional.conv(
            x,
            kernel,
            bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class ConvTranspose(nn.Module):
    """Transposed convolution of [batch, *spatial, features], `functional.conv_transpose`: PyTorch's.

    >>> import jax
    >>> layer, x = ConvTranspose(3, (4, 4), stride=2, padding=1), jnp.ones((1, 5, 5, 2))
    >>> y, variables = layer.init_with_output(jax.random.key(0), x)
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
    kernel_init: Callable = initializers.he_normal(mode="fan_out")
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: as the input's and the parameters'

    @nn.compact
    def __call__(self, x):
        """[batch, *spatial, features_in] -> [batch, *out, features]."""
        kernel_shape = (*self.window, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, kernel_shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return functional.conv_transpose(
            x,
            kernel,
            bias,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
        )
