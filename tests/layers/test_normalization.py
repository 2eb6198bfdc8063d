"""Normalization without a batch as Linen modules: their functions, and weight norm around a layer or a net."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, layers
from helpers import random_arrays

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("module", "function", "shape"),
    [
        (layers.LayerNorm(axes=2, epsilon=0.1), partial(functional.layer_norm, axes=2, epsilon=0.1), (5, 6)),
        (layers.GroupNorm(3, epsilon=0.1), partial(functional.group_norm, groups=3, epsilon=0.1), (6,)),
        (layers.InstanceNorm(epsilon=0.1), partial(functional.instance_norm, epsilon=0.1), (6,)),
    ],
)
def test_modules_bind_names_to_the_functions(module, function, shape):
    x, scale, bias = random_arrays(9, (2, 5, 6), shape, shape)
    bare = module.clone(use_scale=False, use_bias=False)

    @jax.jit
    def run(x, scale, bias):
        y = module.apply({"params": {"scale": scale, "bias": bias}}, x)
        return (y, function(x, scale, bias)), (bare.apply({}, x), function(x))

    for ours, expected in run(x, scale, bias):
        assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
    params = jax.eval_shape(module.init, KEY, x)["params"]
    assert jax.tree.map(lambda a: a.shape, params) == {"scale": shape, "bias": shape}
    assert jax.eval_shape(bare.init, KEY, x) == {}


def test_local_response_module():
    (x,) = random_arrays(9, (2, 5, 6))
    options = {"alpha": 0.1, "beta": 0.5, "k": 2.0}
    module, function = layers.LocalResponseNorm(3, **options), partial(functional.local_response_norm, **options)
    assert_allclose(*jax.jit(lambda x: (module.apply({}, x), function(x, 3)))(x), rtol=1e-6)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="dense")(nn.relu(layers.Conv(4, (3,), use_bias=True, name="conv")(x)))


def test_weight_norm_module_starts_as_the_layer():
    (x,) = random_arrays(9, (2, 5, 6))
    module = layers.WeightNorm(nn.Dense(4))
    known = layers.WeightNorm(nn.Dense(4, kernel_init=nn.initializers.constant(2.0)))

    @jax.jit
    def run(x):
        y, variables = module.init_with_output(KEY, x)
        return y, nn.Dense(4).apply({"params": variables["params"]["layer"]}, x), *known.init_with_output(KEY, x)

    y, expected, of_known, variables = run(x)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert_allclose(of_known, 2 * x.sum(-1, keepdims=True) * np.ones((1, 1, 4)), rtol=1e-4, atol=1e-5)
    assert_allclose(variables["params"]["layer"]["kernel"], 2, rtol=1e-6)
    assert_allclose(variables["params"]["scale"], 2 * np.sqrt(6), rtol=1e-6)


def test_weight_norm_module_learns_direction_and_length():
    x, kernel, scale = random_arrays(10, (2, 5, 6), (6, 4), (4,))
    module = layers.WeightNorm(nn.Dense(4))
    params = {"layer": {"kernel": kernel, "bias": np.ones(4, np.float32)}, "scale": scale}

    @jax.jit
    def run(params):
        y = module.apply({"params": params}, x)
        gradient = jax.grad(lambda params: (module.apply({"params": params}, x) ** 2).sum())(params)
        return y, functional.weight_norm(kernel, scale), gradient

    y, normed, gradient = jax.tree.map(np.asarray, run(params))
    assert_allclose(y, x @ normed + 1, rtol=1e-4, atol=1e-5)
    assert_allclose((gradient["layer"]["kernel"] * kernel).sum(0), 0, atol=1e-3)
    assert (abs(gradient["scale"]) > 1e-3).all()


def test_weight_norm_module_of_a_net():
    (x,) = random_arrays(9, (2, 5, 6))
    module = layers.WeightNorm(Net())

    @jax.jit
    def run(x):
        params = module.init(KEY, x)["params"]
        doubled = {**params, "dense_scale": 2 * params["dense_scale"]}
        plain = Net().apply({"params": params["layer"]}, x)
        return params, plain, [module.apply({"params": p}, x) for p in (params, doubled)]

    params, plain, (y, twice) = jax.tree.map(np.asarray, run(x))
    assert params["conv_scale"].shape == (4,)
    assert params["dense_scale"].shape == (3,)
    assert_allclose(y, plain, rtol=1e-5, atol=1e-6)
    assert_allclose(twice, 2 * y, rtol=1e-5, atol=1e-6)  # biases are 0
