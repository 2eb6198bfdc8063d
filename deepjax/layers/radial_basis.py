"""Radial basis functions as a Linen module."""

import flax.linen as nn
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.functional.arrays import at_least_float32


class RadialBasis(nn.Module):
    """Compute exp(-|x - center_j|^2 / (2 width_j^2)) for each unit j (Broomhead & Lowe 1988).

    Parameters: `centers` [units, features_in], drawn from a standard normal distribution, and `widths` [units], which
    start at sqrt(features_in). Both suit standardized inputs; `init_from_data.rbf` places them by data.
    """

    units: int

    @nn.compact
    def __call__(self, x):
        """[batch, features_in] -> [batch, units]."""
        features = jnp.shape(x)[-1]
        centers = self.param("centers", initializers.gaussian(1.0), (self.units, features), jnp.float32)
        widths = self.param("widths", initializers.constant(features**0.5), (self.units,), jnp.float32)
        return functional.gaussian_kernel(at_least_float32(x), centers, width=widths).astype(x.dtype)
