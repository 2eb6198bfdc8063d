"""The dense layer as a Linen module."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from deepjax import initializers
from deepjax.functional.arrays import spread
from deepjax.functional.products import product


class Dense(nn.Module):
    """Compute x @ kernel + bias. It differs from `flax.linen.Dense` in the gradient of the bias.

    That gradient is a sum over all rows of x, which is taken in at least float32. Flax takes it in the dtype of the
    computation: in bfloat16 on CPU, the sum stops growing after some hundreds of rows.

    Parameters: `kernel` [features_in, features] and `bias` [features], in float32.

    >>> import jax
    >>> y, variables = Dense(3).init_with_output(jax.random.key(0), jnp.ones((2, 5)))
    >>> y.shape, jax.tree.map(jnp.shape, variables["params"])
    ((2, 3), {'bias': (3,), 'kernel': (5, 3)})
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable = initializers.lecun_normal()
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: the dtype that x and the parameters promote to

    @nn.compact
    def __call__(self, x):
        """[..., features_in] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (jnp.shape(x)[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = product(x, kernel)
        return y if bias is None else y + spread(bias, y)
