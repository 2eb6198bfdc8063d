"""Recurrent layers as Linen modules."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from deepjax import initializers
from deepjax.functional.recurrent import lstm


class LSTM(nn.Module):
    """Compute a long short-term memory over a whole sequence; see `deepjax.functional.lstm`.

    Parameters: `kernel` [features_in, 4 * features], `recurrent_kernel` [features, 4 * features] and `bias`
    [4 * features], in float32. The gates are input, forget, cell, output.

    >>> import jax
    >>> (y, (h, c)), _ = LSTM(3).init_with_output(jax.random.key(0), jnp.ones((2, 7, 5)))
    >>> y.shape, h.shape, c.shape
    ((2, 7, 3), (2, 3), (2, 3))
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable = initializers.lecun_normal()
    recurrent_kernel_init: Callable = initializers.orthogonal()
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: the dtype that x and the parameters promote to

    @nn.compact
    def __call__(self, x, state=None):
        """x [batch, time, features_in], (h, c) each [batch, features] or None for zeros -> (y of all steps, (h, c))."""
        gates = 4 * self.features
        kernel = self.param("kernel", self.kernel_init, (jnp.shape(x)[-1], gates), jnp.float32)
        recurrent = self.param("recurrent_kernel", self.recurrent_kernel_init, (self.features, gates), jnp.float32)
        bias = self.param("bias", self.bias_init, (gates,), jnp.float32) if self.use_bias else None
        x, kernel, recurrent, bias = promote_dtype(x, kernel, recurrent, bias, dtype=self.dtype)
        if state is None:
            zeros = jnp.zeros((*x.shape[:1], self.features), x.dtype)
            state = zeros, zeros
        return lstm(x, kernel, recurrent, bias, tuple(each.astype(x.dtype) for each in state))
