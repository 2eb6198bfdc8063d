"""Activations with parameters as Linen modules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional, initializers, layers
from deepjax.errors import InputError
from helpers import random_arrays

KEY = jax.random.key(0)


@pytest.mark.parametrize("per_feature", [True, False])
def test_prelu_module(per_feature):
    x, slope = random_arrays(0, (4, 5, 3), (3,) if per_feature else ())
    model = layers.PReLU(per_feature=per_feature)
    half = layers.PReLU(per_feature=per_feature, slope_init=initializers.zeros, dtype=jnp.bfloat16)

    @jax.jit
    def run(x, slope):
        return (
            model.init_with_output(KEY, x),
            model.apply({"params": {"slope": slope}}, x),
            half.init_with_output(KEY, x),
        )

    (y, variables), other, (y_half, of_half) = run(x, slope)
    first = variables["params"]["slope"]
    assert (first.shape, first.dtype) == (slope.shape, jnp.float32)
    assert_allclose(first, 0.25)
    assert_allclose(y, np.where(x > 0, x, 0.25 * x), rtol=1e-6)
    assert_allclose(other, np.where(x > 0, x, slope * x), rtol=1e-6)
    assert y_half.dtype == jnp.bfloat16
    assert of_half["params"]["slope"].dtype == jnp.float32
    assert_array_equal(y_half, np.maximum(x.astype(jnp.bfloat16), 0))


@pytest.mark.parametrize("use_bias", [True, False])
def test_maxout_module(use_bias):
    (x,) = random_arrays(0, (2, 5, 4))
    model = layers.Maxout(3, pieces=2, use_bias=use_bias, bias_init=initializers.ones)
    y, variables = jax.tree.map(np.asarray, jax.jit(model.init_with_output)(KEY, x))
    kernel, bias = variables["params"]["kernel"], variables["params"].get("bias")
    assert kernel.shape == (4, 2, 3)
    assert (bias is not None) == use_bias
    expected = np.einsum("abi,ikj->abkj", x, kernel) + (1 if use_bias else 0)
    assert_allclose(y, expected.max(-2), rtol=1e-5, atol=1e-6)
    half = layers.Maxout(3, dtype=jnp.bfloat16)
    assert jax.eval_shape(half.init_with_output, KEY, x)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("pieces", [2, 5])
def test_maxouts_own_initialization_keeps_the_variance(pieces):
    x = np.ones((4, 400), np.float32)
    kernel = jax.jit(layers.Maxout(100, pieces=pieces).init)(KEY, x)["params"]["kernel"]
    squares = 400 * np.square(np.asarray(kernel, np.float64))
    # the variance of a square of a normal is 2 variance^2
    assert abs(squares.mean() / functional.gain("maxout", pieces=pieces) - 1) < 4 * math.sqrt(2 / kernel.size)


def test_maxout_shows_initializers_a_dense_kernel():
    model = layers.Maxout(3, pieces=4, kernel_init=jax.nn.initializers.orthogonal())
    kernel = jax.jit(model.init)(KEY, np.ones((2, 12), np.float32))["params"]["kernel"]
    matrix = np.asarray(kernel).reshape(12, 12)
    assert_allclose(matrix.T @ matrix, np.eye(12), atol=1e-5)


@pytest.mark.parametrize("options", [{"features": 0}, {"features": 3, "pieces": 0}])
def test_maxout_module_errors(options):
    with pytest.raises(InputError, match="0 must be at least 1"):
        layers.Maxout(**options).init(KEY, np.ones((2, 4), np.float32))
