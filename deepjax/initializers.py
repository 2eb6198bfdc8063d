"""Initializers: (key, shape, dtype) -> array. JAX's own under the field's names, where JAX has them.

A kernel is [*window, features_in / groups, features_out]; fan in is window x features_in / groups, fan out is
window x features_out.
"""

from functools import partial

import jax
from jax.nn.initializers import constant, normal, ones, variance_scaling, zeros

from deepjax.errors import InputError


def gaussian(scale):
    """Normal with mean 0 and standard deviation `scale`."""
    return normal(_positive("gaussian", scale))


def uniform(scale):
    """Uniform on [-scale, scale)."""
    scale = _positive("uniform", scale)

    def init(key, shape, dtype=jax.numpy.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -scale, scale)

    return init


def _positive(name, scale):
    if not scale > 0:
        raise InputError(f"{name}: scale {scale} must be greater than 0")
    return scale


# Each of these is a factory, as in JAX: he_normal() is the initializer, and takes in_axis, out_axis, batch_axis.
lecun_normal = partial(variance_scaling, 1.0, "fan_in", "normal")  # LeCun et al. 1998, Efficient BackProp, 4.6
lecun_uniform = partial(variance_scaling, 1.0, "fan_in", "uniform")
xavier_normal = partial(variance_scaling, 1.0, "fan_avg", "normal")  # Glorot & Bengio 2010, eq. 12: 2/(in + out)
xavier_uniform = partial(variance_scaling, 1.0, "fan_avg", "uniform")  # Glorot & Bengio 2010, eq. 16
he_normal = partial(variance_scaling, 2.0, "fan_in", "normal")  # He et al. 2015 (rectifiers), eq. 10
he_uniform = partial(variance_scaling, 2.0, "fan_in", "uniform")
he_normal_fan_out = partial(variance_scaling, 2.0, "fan_out", "normal")  # He et al. 2015 (rectifiers), eq. 14
he_uniform_fan_out = partial(variance_scaling, 2.0, "fan_out", "uniform")

__all__ = [
    "constant",
    "gaussian",
    "he_normal",
    "he_normal_fan_out",
    "he_uniform",
    "he_uniform_fan_out",
    "lecun_normal",
    "lecun_uniform",
    "ones",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
