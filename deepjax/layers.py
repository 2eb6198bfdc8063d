"""Linen modules around the pure functions: they own names, shapes and state, and no formula.

`train` says whether batch statistics are taken from the batch. `mask` (bool [batch], or None) marks the rows that are
examples: a batch that was padded to keep its shape must not let the padding into its statistics.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
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
    kernel_init: Callable = initializers.he_normal_fan_out()
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


class BatchNorm(nn.Module):
    """Batch normalization. Running moments live in `batch_stats` as `mean` and `var`, as in Flax."""

    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Callable = initializers.ones
    bias_init: Callable = initializers.zeros
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ..., features] -> the same shape and dtype."""
        features = x.shape[-1:]
        scale = self.param("scale", self.scale_init, features, jnp.float32)
        bias = self.param("bias", self.bias_init, features, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        y, moments = functional.batch_norm(
            x,
            scale,
            bias,
            functional.Moments(mean.value, var.value),
            train=train,
            mask=mask,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=None if self.is_initializing() else self.axis_name,
        )
        if train and not self.is_initializing():
            mean.value, var.value = moments
        return y
