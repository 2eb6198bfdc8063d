"""Initializers: their moments at four sigma, shapes, types and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import initializers
from deepjax.errors import InputError

# name -> variance from (fan in, fan out)
VARIANCE = {
    "lecun_normal": lambda i, o: 1 / i,
    "lecun_uniform": lambda i, o: 1 / i,
    "xavier_normal": lambda i, o: 2 / (i + o),
    "xavier_uniform": lambda i, o: 2 / (i + o),
    "he_normal": lambda i, o: 2 / i,
    "he_uniform": lambda i, o: 2 / i,
    "he_normal_fan_out": lambda i, o: 2 / o,
    "he_uniform_fan_out": lambda i, o: 2 / o,
}
FANS = {  # kernel shape -> fan in, fan out
    (200, 300): (200, 300),
    (5, 3, 32, 128): (15 * 32, 15 * 128),  # with 2 groups of 32 features in
}


def assert_moments(sample, variance):
    """Mean 0 and the variance, at four sigma: a normal's variance scatters by sqrt(2 / n)."""
    sample = np.asarray(sample, np.float64)
    assert abs(sample.mean()) < 4 * np.sqrt(variance / sample.size)
    assert abs(np.mean(sample**2) / variance - 1) * np.sqrt(sample.size / 2) < 4


@pytest.mark.parametrize("shape", FANS)
@pytest.mark.parametrize("name", VARIANCE)
def test_variance_scaling(name, shape):
    variance = VARIANCE[name](*FANS[shape])
    kernel = getattr(initializers, name)()(jax.random.key(0), shape)
    assert kernel.shape == shape
    assert_moments(kernel, variance)
    limit = np.sqrt(3 * variance)
    # A normal is not truncated, a uniform ends at sqrt(3) deviations.
    highest = np.abs(kernel).max()
    assert (highest <= limit * (1 + 1e-6)) if "uniform" in name else (highest > 3.5 * np.sqrt(variance))


def test_gaussian_and_uniform():
    assert_moments(initializers.gaussian(0.03)(jax.random.key(0), (200, 200)), 0.03**2)
    sample = initializers.uniform(0.6)(jax.random.key(0), (200, 200))
    assert_moments(sample, 0.6**2 / 3)
    assert sample.min() >= -0.6
    assert sample.max() < 0.6
    assert sample.max() > 0.599


def test_constants():
    key = jax.random.key(0)
    assert (initializers.zeros(key, (2, 3)) == 0).all()
    assert (initializers.ones(key, (2, 3)) == 1).all()
    assert (initializers.constant(2.5)(key, (2, 3)) == 2.5).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", initializers.__all__)
def test_dtype_and_the_keys_part(name, dtype):
    init = getattr(initializers, name)
    if name in ("gaussian", "uniform", "constant"):
        init = init(0.5)
    elif name not in ("zeros", "ones"):
        init = init()
    first, again, other = (init(jax.random.key(seed), (8, 8), dtype) for seed in (0, 0, 1))
    assert first.dtype == dtype
    assert (first == again).all()
    assert (first == other).all() == (name in ("zeros", "ones", "constant"))


@pytest.mark.parametrize("scale", [0, -1.0, float("nan")])
@pytest.mark.parametrize("name", ["gaussian", "uniform"])
def test_scale_must_be_positive(name, scale):
    with pytest.raises(InputError, match=f"{name}: scale"):
        getattr(initializers, name)(scale)
