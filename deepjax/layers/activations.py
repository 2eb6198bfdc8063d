"""Activations that have parameters, as Linen modules."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import variance_scaling

from deepjax import functional, initializers
from deepjax.errors import InputError


class PReLU(nn.Module):
    """x where x > 0, else slope * x; `slope` is learned, one for all features or one per feature.

    Weight decay is for kernels, so it leaves the slope alone, as He et al. 2015 (rectifiers, section 2.1) ask.

    >>> import jax
    >>> PReLU(per_feature=True).init(jax.random.key(0), jnp.ones((2, 3)))["params"]["slope"].tolist()
    [0.25, 0.25, 0.25]
    """

    per_feature: bool = False
    slope_init: Callable = initializers.constant(0.25)
    dtype: jnp.dtype | None = None  # of the computation; None: as the input's and the parameters'

    @nn.compact
    def __call__(self, x):
        """[..., features] -> the same shape."""
        slope = self.param("slope", self.slope_init, x.shape[-1:] if self.per_feature else (), jnp.float32)
        x, slope = promote_dtype(x, slope, dtype=self.dtype)
        return functional.prelu(x, slope)


class Maxout(nn.Module):
    """The largest of `pieces` dense layers, for each feature. Parameters: `kernel` [in, pieces, features], `bias`.

    `kernel_init` sees the kernel as the matrix [in, pieces * features], so that any initializer's fan in is right.
    By default the kernel is normal with the variance that keeps the variance from one Maxout to the next.

    >>> import jax
    >>> y, variables = Maxout(5, pieces=3).init_with_output(jax.random.key(0), jnp.ones((2, 4)))
    >>> y.shape, variables["params"]["kernel"].shape, variables["params"]["bias"].shape
    ((2, 5), (4, 3, 5), (3, 5))
    """

    features: int
    pieces: int = 2
    use_bias: bool = True
    kernel_init: Callable | None = None  # None: normal, variance gain("maxout", pieces=pieces) / in
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: as the input's and the parameters'

    @nn.compact
    def __call__(self, x):
        """[..., features_in] -> [..., features]. Raises InputError unless features and pieces are at least 1."""
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
