"""Convolutions as Linen modules: parameters, dtypes, and an initialization of the right fan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, layers
from deepjax.errors import InputError
from helpers import random_arrays


def test_conv_transpose():
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
    layer = layers.ConvTranspose(6, (3, 2), **options, use_bias=True)
    (x,) = random_arrays(0, (2, 4, 5, 4))
    shapes = {"kernel": (3, 2, 2, 6), "bias": (6,)}
    init = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, init["params"]) == shapes
    kernel, bias = random_arrays(1, *shapes.values())

    @jax.jit
    def both(x, kernel, bias):
        y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
        return y, functional.conv_transpose(x, kernel, bias, **options)

    assert_allclose(*both(x, kernel, bias), rtol=1e-6, atol=1e-6)
    assert jax.eval_shape(layer.copy(dtype=jnp.bfloat16).apply, init, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("layer", [layers.Conv, layers.ConvTranspose])
def test_the_default_kernel_keeps_the_variance_of_gradients_in_every_group(layer):
    """He's variance is 2 / fan_out, where fan_out = 9 taps x features / groups; within four sigma."""
    groups, x = (1, 4, 128), np.ones((1, 4, 4, 128), np.float32)
    kernels = jax.jit(lambda: [layer(256, groups=g).init(jax.random.key(0), x)["params"]["kernel"] for g in groups])()
    for g, kernel in zip(groups, kernels, strict=True):
        square = np.square(np.asarray(kernel, np.float64))
        assert abs(square.mean() / (2 / (9 * 256 / g)) - 1) < 4 * np.sqrt(2 / kernel.size)


def test_groups_below_one_are_refused():
    with pytest.raises(InputError, match="ConvTranspose: groups 0 must be at least 1"):
        layers.ConvTranspose(2, groups=0).init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
