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
    layer = layers.ConvTranspose(6, (3, 2), stride=2, padding=1, output_padding=1, groups=2, use_bias=True)
    x = jnp.asarray(random_arrays(0, (2, 4, 5, 4))[0])
    y, variables = layer.init_with_output(jax.random.key(0), x)
    shapes = {"kernel": (3, 2, 2, 6), "bias": (6,)}
    assert jax.tree.map(jnp.shape, variables["params"]) == shapes
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
    expected = functional.conv_transpose(x, variables["params"]["kernel"], jnp.zeros(6), **options)
    assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    half = layer.copy(dtype=jnp.bfloat16)
    assert half.apply(variables, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("layer", [layers.Conv, layers.ConvTranspose])
@pytest.mark.parametrize("groups", [1, 4, 128])
def test_the_default_kernel_keeps_the_variance_of_gradients_in_every_group(layer, groups):
    """He's variance is 2 / fan_out, where fan_out = 9 taps x features / groups; within four sigma."""
    x = jnp.ones((1, 4, 4, 128))
    kernel = layer(256, groups=groups).init(jax.random.key(0), x)["params"]["kernel"]
    variance = 2 / (9 * 256 / groups)
    square = np.square(np.asarray(kernel, np.float64))
    assert abs(square.mean() / variance - 1) < 4 * np.sqrt(2 / kernel.size)


def test_groups_below_one_are_refused():
    with pytest.raises(InputError, match="ConvTranspose: groups 0 must be at least 1"):
        layers.ConvTranspose(2, groups=0).init(jax.random.key(0), jnp.ones((1, 4, 4, 2)))
