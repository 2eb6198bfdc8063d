"""The perceptron: numbers by NumPy, activations, how it starts, why that matters, dropout in the scan."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, zoo
from helpers import draw_variables, random_arrays

KEY = jax.random.key(0)


def test_mlp_is_a_chain_of_products():
    (x,) = random_arrays(0, (4, 2, 3))
    model = zoo.create("mlp", num_classes=3, depth=4, width=5)
    variables = draw_variables(model, x)
    p = variables["params"]
    hidden = p["hidden"]["unit"]["dense"]
    h = np.maximum(x.reshape(4, 6) @ p["first"]["kernel"] + p["first"]["bias"], 0)
    for kernel, bias in zip(hidden["kernel"], hidden["bias"], strict=True):
        h = np.maximum(h @ kernel + bias, 0)
    expected = h @ p["head"]["kernel"] + p["head"]["bias"]
    assert_allclose(jax.jit(partial(model.apply, train=False))(variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", zoo.plain.ACTIVATIONS)
def test_mlp_has_the_named_activation(activation):
    (x,) = random_arrays(0, (2, 5))
    model = zoo.create("mlp", num_classes=3, depth=2, width=4, activation=activation)
    variables = draw_variables(model, x)
    first, head = variables["params"]["first"], variables["params"]["head"]
    inner = x @ first["kernel"] + first["bias"]

    @jax.jit
    def run(inner):
        return getattr(functional, activation)(inner), model.apply(variables, x, train=False)

    hidden, logits = jax.device_get(run(inner))
    assert_allclose(logits, hidden @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "first", "hidden", "head"),
    [  # variances of the kernels: 300 features in, 200 wide, 100 classes
        ({}, 2 / 300, 2 / 200, 1 / 200),
        ({"init": "xavier"}, 2 / 500, 2 / 400, 2 / 300),
        ({"init": "lecun"}, 1 / 300, 1 / 200, 1 / 200),
        ({"init": "gaussian", "scale": 0.5}, 0.25, 0.25, 0.25),
    ],
)
def test_mlp_starts_as_init_says(options, first, hidden, head):
    model = zoo.create("mlp", num_classes=100, depth=4, width=200, **options)
    params = jax.device_get(jax.jit(lambda: model.init(KEY, jnp.zeros((1, 300)), train=False))()["params"])
    for kernel, variance in (
        (params["first"]["kernel"], first),
        (params["hidden"]["unit"]["dense"]["kernel"][0], hidden),
        (params["hidden"]["unit"]["dense"]["kernel"][1], hidden),
        (params["head"]["kernel"], head),
    ):
        assert abs(kernel.var() / variance - 1) < 4 * np.sqrt(2 / kernel.size)
        assert abs(kernel.mean()) < 4 * np.sqrt(variance / kernel.size)
        assert (abs(kernel) < 2 * np.sqrt(variance)).mean() < 0.97  # 0.954: normal; 1: uniform


def test_gaussian_all_draws_every_parameter_of_the_lectures_disc_network():
    """17,058 parameters; with batch norm 18,146 in PyTorch, of which 544 are biases that the norms make useless."""
    options = {"num_classes": 2, "depth": 18, "width": 32, "init": "gaussian_all", "scale": 0.5}

    @jax.jit
    def draw(key):
        models = (zoo.create("mlp", **options), zoo.create("mlp", norm="batch", **options))
        return [model.init(key, jnp.zeros((1, 2)), train=False)["params"] for model in models]

    for params, total in zip(jax.device_get(draw(KEY)), (17_058, 18_146 - 17 * 32), strict=True):
        leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(params)]
        assert sum(map(len, leaves)) == total
        for drawn in leaves:
            assert abs(drawn.mean()) < 4 * 0.5 / np.sqrt(len(drawn))
            assert abs(drawn.var() / 0.25 - 1) < 4 * np.sqrt(2 / len(drawn))


def test_why_small_gaussian_weights_do_not_train_eight_layers():
    """Layer by layer they shrink the signal, and its gradient, by 0.01 sqrt(128 / 2): nothing is left to learn from."""
    (x,) = random_arrays(0, (64, 3072))

    @jax.jit
    def sizes():
        def size(init):
            model = zoo.create("mlp", depth=8, width=128, init=init)
            params = model.init(KEY, x[:1], train=False)["params"]

            def loss(params):
                logits = model.apply({"params": params}, x, train=True)
                return functional.cross_entropy(logits, np.arange(64) % 10).mean(), logits.std()

            gradient, spread = jax.grad(loss, has_aux=True)(params)
            return spread, jnp.abs(gradient["first"]["kernel"]).max()

        return size("gaussian"), size("he")

    gaussian, he = sizes()
    assert max(gaussian) < 1e-6
    assert min(he) > 1e-3


def test_dropout_in_the_scan_drops_other_features_in_every_layer():
    """Identity layers and positive inputs: what is left of a feature tells by how many masks it went."""
    model = zoo.create("mlp", num_classes=256, depth=4, width=256, dropout=0.5)
    eye, x = np.eye(256, dtype=np.float32), np.ones((32, 256), np.float32)
    zeros = np.zeros(256, np.float32)
    end, dense = {"kernel": eye, "bias": zeros}, {"kernel": np.stack([eye, eye]), "bias": np.stack([zeros, zeros])}
    variables = {"params": {"first": end, "hidden": {"unit": {"dense": dense}}, "head": end}}

    @jax.jit
    def run(key):
        train = model.apply(variables, x, train=True, rngs={"dropout": key})
        return train, model.apply(variables, x, train=False)

    (y, evaluated), (other, _) = jax.device_get([run(KEY), run(jax.random.key(1))])
    assert set(np.unique(y)) == {0.0, 8.0}  # three masks, each of which doubles what it keeps
    assert abs((y > 0).mean() - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / y.size)  # equal masks would leave one half
    assert (other != y).any()
    assert (evaluated == 1).all()
