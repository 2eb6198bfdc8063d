"""Which activation follows a layer, for every way to write it, and what does not count as one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import functional
from deepjax.doctor.curves import GRID, classify
from deepjax.doctor.follow import Follow, Tag

ACTIVATIONS = {
    "relu": [
        jax.nn.relu, nn.relu, functional.relu, lambda x: jnp.maximum(x, 0), lambda x: jnp.where(x > 0, x, 0.0),
        lambda x: x * (x > 0), lambda x: (x + jnp.abs(x)) / 2, lambda x: jnp.clip(x, 0), lambda x: 3 * nn.relu(x),
    ],
    "sigmoid": [
        nn.sigmoid, lambda x: 1 / (1 + jnp.exp(-x)), jax.scipy.special.expit, lambda x: (jnp.tanh(x / 2) + 1) / 2,
        lambda x: jnp.clip(nn.sigmoid(x), 1e-7, 1 - 1e-7),
    ],
    "tanh": [jnp.tanh, functional.lecun_tanh, lambda x: 2 * nn.sigmoid(2 * x) - 1],
    "softmax": [
        nn.softmax, lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), lambda x: jnp.exp(nn.log_softmax(x)),
        lambda x: jnp.exp(x - jax.nn.logsumexp(x, -1, keepdims=True)), lambda x: nn.softmax(x / 2),
        lambda x: jnp.clip(nn.softmax(x), 1e-7, 1.0),
    ],
    "log_softmax": [nn.log_softmax, lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True)],
    "elu": [nn.elu, lambda x: nn.elu(x, 0.5), nn.celu, functional.elu],
    "selu": [nn.selu],
    "gelu": [nn.gelu, lambda x: nn.gelu(x, approximate=False), lambda x: x * nn.sigmoid(1.702 * x)],
    "silu": [nn.silu, lambda x: x * nn.sigmoid(x), lambda x: x / (1 + jnp.exp(-x))],
    "leaky_relu": [nn.leaky_relu, lambda x: nn.leaky_relu(x, 0.3), functional.leaky_relu],
    "softplus": [nn.softplus, lambda x: jnp.log1p(jnp.exp(x)), lambda x: jnp.logaddexp(x, 0) + 1e-3],
    "relu6": [nn.relu6, lambda x: jnp.clip(x, 0, 6)],
    "hard_sigmoid": [nn.hard_sigmoid, lambda x: jnp.clip(0.2 * x + 0.5, 0, 1)],
    "hard_silu": [nn.hard_swish],
    "hard_tanh": [nn.hard_tanh],
    "soft_sign": [nn.soft_sign],
    "other": [
        jnp.sin, jnp.sign, lambda x: nn.sigmoid(nn.relu(x)), lambda x: x.reshape(4, 4, 2).max(-1),
    ],
    "none": [
        lambda x: x, lambda x: 2 * x + 1, lambda x: x - x.mean(0, keepdims=True),
        lambda x: (x - x.mean(0, keepdims=True)) / jnp.std(x, 0, keepdims=True), jax.nn.standardize,
        lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), lambda x: x.T.reshape(4, 8), jnp.sort,
        lambda x: nn.max_pool(x[..., None], (2,), (1,), "SAME")[..., 0],
    ],
}  # fmt: skip
FORMS = [(name, function) for name, functions in ACTIVATIONS.items() for function in functions]


def follow(function, *arguments, data=1):
    """Follow a function of parameters and, last, of data."""
    closed = jax.make_jaxpr(function)(*arguments)
    reader = Follow()
    last = len(arguments) - data
    tags = [Tag(leaves=frozenset([i]), at=((), -2 - i), anchor=((), -2 - i)) for i in range(last)]
    tags += [Tag(data=True, at=((), -99), anchor=((), -99))] * data
    reader.outputs(reader.run(closed.jaxpr, closed.consts, tags))
    return reader


def activation_of(reader, place):
    names = [site.name for site in reader.sites.values() if place in site.layers]
    if names:
        return "softmax" if "softmax" in names else names[0]
    return "other" if reader.layers[place].other else "none"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("name", "function"), FORMS)
def test_an_activation_is_recognized_in_every_form(name, function, dtype):
    w, x = jnp.ones((3, 8), dtype), jnp.ones((4, 3), dtype)
    shape = jax.eval_shape(lambda w, x: function(x @ w), w, x).shape
    v = jnp.ones((shape[-1], 2), dtype)
    hidden = follow(lambda w, v, x: function(x @ w) @ v, w, v, x)
    assert activation_of(hidden, min(hidden.layers)) == name
    last = follow(lambda w, x: function(x @ w), w, x)
    assert activation_of(last, min(last.layers)) == name


def test_names_hold_up_to_a_factor_and_an_offset():
    assert classify(3 * np.tanh(GRID) - 1) == "tanh"
    assert classify(np.maximum(GRID, 0) + 2) == "relu"
    assert classify(-np.maximum(GRID, 0)) == "other"
    assert classify(-2 * GRID) == "affine"
    assert classify(GRID > 0) == "bool"
    assert classify(np.zeros_like(GRID)) == "affine"


def test_the_output_of_a_layer_is_behind_its_bias():
    w, b, x = jnp.ones((3, 8)), jnp.ones((1, 8)), jnp.ones((4, 3))
    with_bias = follow(lambda w, b, x: jnp.tanh(x @ w + b), w, b, x)
    (layer,) = with_bias.layers.values()
    assert layer.bias
    assert layer.z > (layer.place, 0)
    (plain,) = follow(lambda w, x: jnp.tanh(x @ w), w, x).layers.values()
    assert not plain.bias
    assert plain.z == (plain.place, 0)


def test_a_layer_that_only_the_sum_of_a_skip_activates_has_no_activation_of_its_own():
    w, v, x = jnp.ones((3, 3)), jnp.ones((3, 3)), jnp.ones((4, 3))

    def function(w, v, x):
        z = x @ w
        return jax.nn.relu(z + z @ v)

    reader = follow(function, w, v, x)
    first, second = sorted(reader.layers)
    (site,) = reader.sites.values()
    assert reader.layers[first].straight
    assert not reader.layers[second].straight
    assert site.layers == {first: False, second: False}
