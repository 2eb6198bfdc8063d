"""Between-layer normalization: rates of change, measured example by example."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.init_from_data import between_layer
from init_from_data.networks import KEY, Scanned, features, images


class Homogeneous(nn.Module):
    @nn.compact
    def __call__(self, x):
        for scale in (0.1, 5.0, 1.0):
            dense = nn.Dense(32, kernel_init=nn.initializers.normal(scale), bias_init=nn.initializers.normal(scale))
            x = nn.relu(dense(x))
        return nn.Dense(3, kernel_init=nn.initializers.normal(0.02))(x)


@pytest.mark.parametrize("damping", [0.5, 1.0])
def test_rates_become_equal_and_the_function_stays(damping):
    model, x, rates = Homogeneous(), features(256), {}
    before = jax.jit(model.init)(KEY, x)
    after = between_layer(
        model, KEY, x, variables=before, iterations=50, damping=damping, tolerance=1e-3, report=rates.update
    )
    assert_allclose(list(rates.values()), 1, atol=1e-3)
    run = jax.jit(lambda variables: model.apply(variables, x))
    y, z = np.asarray(run(before)), np.asarray(run(after))
    assert_allclose(z, y, rtol=1e-3, atol=1e-3 * np.abs(y).max())
    old, new = (np.asarray(variables["params"]["Dense_0"]["kernel"]) for variables in (before, after))
    assert np.abs(new / old - 1).max() > 0.1

    # The rates themselves, example by example, with the outputs' own gradients.
    def squared(params, example):
        jacobian = jax.jacrev(lambda params: model.apply({"params": params}, example[None])[0])(params)
        return {name: jnp.square(layer["kernel"]).sum() for name, layer in jacobian.items()}

    squares = jax.tree.map(np.mean, jax.device_get(jax.jit(jax.vmap(squared, (None, 0)))(after["params"], x)))
    exact = [np.sqrt(squares[n]) / np.linalg.norm(after["params"][n]["kernel"]) for n in squares]
    mean = np.exp(np.mean(np.log(exact)))
    assert_allclose(exact / mean, 1, atol=0.15)  # eight random functions for the mean over all


class CNN(nn.Module):
    """Convolutions, then a scan of 10 layers between two others."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2, padding="VALID")(x))
        x = nn.relu(nn.ConvTranspose(4, (2, 2), strides=(2, 2))(x))
        return Scanned(10, name="scanned")(x.reshape(len(x), -1))


def test_convolutions_and_scans():
    model, x, rates = CNN(), images(), {}
    variables = between_layer(model, KEY, x, iterations=40, tolerance=0.1, report=rates.update)
    values = np.concatenate([np.ravel(rate) for rate in rates.values()])
    assert len(values) == 2 + 12
    assert np.abs(values - 1).max() <= 0.1
    kernels = jax.tree.map(jnp.shape, jax.eval_shape(lambda: model.init(KEY, x)))
    assert jax.tree.map(jnp.shape, variables) == kernels


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.tanh(nn.Dense(16)(nn.LayerNorm()(x)))
        return nn.Dense(4)(x)


def test_rates_come_closer_where_they_cannot_become_equal():
    model, x, before, after = Normed(), features(), {}, {}
    variables = between_layer(model, KEY, x, tolerance=1e3, report=before.update)
    between_layer(model, KEY, x, variables=variables, iterations=5, report=after.update)
    assert np.std(np.log(list(after.values()))) < 0.5 * np.std(np.log(list(before.values())))


def test_arguments_out_of_range():
    with pytest.raises(InputError, match="damping"):
        between_layer(Normed(), KEY, features(), damping=0.0)
