"""Activations with parameters, as Linen modules."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import variance_scaling

from deepjax import functional, initializers
from deepjax.errors import InputError


class PReLU(nn.Module):
    """Apply `functional.prelu` with a learned slope: one for all features, or one per feature.

    Parameter: `slope` [] or [features]. Weight decay applies to kernels only, so it does not change the slope, as He et
    al. 2015 ("Delving deep", section 2.1) recommend.

    >>> import jax
    >>> PReLU(per_feature=True).init(jax.random.key(0), jnp.ones((2, 3)))["params"]["slope"].tolist()
    [0.25, 0.25, 0.25]
    """

    per_feature: bool = False
    slope_init: Callable = initializers.constant(0.25)
    dtype: jnp.dtype | None = None  # of the computation; None: the dtype that x and the parameters promote to

    @nn.compact
    def __call__(self, x):
        """[..., features] -> the same shape."""
        slope = self.param("slope", self.slope_init, x.shape[-1:] if self.per_feature else (), jnp.float32)
        x, slope = promote_dtype(x, slope, dtype=self.dtype)
        return functional.prelu(x, slope)


class Maxout(nn.Module):
    """Apply `functional.maxout`: the largest of `pieces` dense layers, for each feature.

    Parameters: `kernel` [features_in, pieces, features] and `bias` [pieces, features]. `kernel_init` gets the shape
    [features_in, pieces * features], so that the fan_in of every initializer is right. The default is normal, with the
    variance that a stack of Maxout layers preserves.

    >>> import jax
    >>> y, variables = jax.eval_shape(Maxout(5, pieces=3).init_with_output, jax.random.key(0), jnp.ones((2, 4)))
    >>> y.shape, variables["params"]["kernel"].shape, variables["params"]["bias"].shape
    ((2, 5), (4, 3, 5), (3, 5))
    """

    features: int
    pieces: int = 2
    use_bias: bool = True
    kernel_init: Callable | None = None  # None: normal, variance gain("maxout", pieces=pieces) / features_in
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: the dtype that x and the parameters promote to

    @nn.compact
    def __call__(self, x):
        """[..., features_in] -> [..., features]. Raise InputError if features or pieces are below 1."""
        for name, count in (("features", self.features), ("pieces", self.pieces)):
            if count < 1:
                raise InputError(f"Maxout: {name} {count} must be at least 1")
        shape = (x.shape[-1], self.pieces, self.features)
        kernel = self.param("kernel", self._kernel, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape[1:], jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return functional.maxout(x, kernel, bias)

    def _kernel(self, key, shape, dtype):
        features_in, pieces, features = shape
        init = self.kernel_init or variance_scaling(functional.gain("maxout", pieces=pieces), "fan_in", "normal")
        return init(key, (features_in, pieces * features), dtype).reshape(shape)
