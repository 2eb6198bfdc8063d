"""A network of the zoo inside Flax NNX, by Flax's bridge: docs/nnx.md."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.traverse_util import unflatten_dict

import helpers
from deepjax import zoo


def state_of(module):
    """Return Linen's variables from the state of a `ToNNX`."""
    return {
        name: unflatten_dict({path: np.asarray(variable[...]) for path, variable in nnx.to_flat_state(state)})
        for name, state in zip(("params", "batch_stats"), nnx.state(module, nnx.Param, nnx.BatchStat))
    }


def test_a_network_inside_nnx_is_the_network():
    network = zoo.create("cifar_resnet", depth=8, width=2, num_classes=3)
    (x,) = helpers.random_arrays(0, (4, 8, 8, 3))
    module = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(0)).lazy_init(x, train=False)
    before = state_of(module)
    assert before["batch_stats"]
    expected = jax.jit(network.apply, static_argnames="train")(before, x, train=False)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x, train=False))(module, x), expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(state_of(module), before)

    train = jax.jit(lambda variables, x: network.apply(variables, x, train=True, mutable=["batch_stats"]))
    expected, updated = train(before, x)
    found = nnx.jit(lambda m, x: m(x, train=True, mutable=["batch_stats"]))(module, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    after = state_of(module)
    chex.assert_trees_all_close(after["batch_stats"], updated["batch_stats"], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(after["params"], before["params"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after["batch_stats"], before["batch_stats"])
    assert all(each > 0 for each in jax.tree.leaves(moved))


def test_steps_of_an_nnx_optimizer_are_steps_of_linen():
    network = zoo.create("cifar_resnet", depth=8, width=2, num_classes=3)
    (x,) = helpers.random_arrays(0, (4, 8, 8, 3))
    module = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(0)).lazy_init(x, train=False)
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)
    expected = state_of(module)

    @nnx.jit
    def step(module, optimizer):
        gradient = nnx.grad(lambda module: jnp.square(module(x, train=True, mutable=["batch_stats"])).mean())(module)
        optimizer.update(module, gradient)

    @jax.jit
    def linen_step(variables):
        def loss(params):
            logits, updated = network.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.square(logits).mean(), updated

        gradient, updated = jax.grad(loss, has_aux=True)(variables["params"])
        return {"params": jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradient)} | updated

    for _ in range(3):
        step(module, optimizer)
        expected = linen_step(expected)
    chex.assert_trees_all_close(state_of(module), dict(expected), rtol=1e-4, atol=1e-5)


def test_dropout_inside_nnx_draws_from_its_stream():
    network = zoo.create("mlp", depth=2, width=32, num_classes=3, dropout=0.5)
    (x,) = helpers.random_arrays(0, (4, 8))
    module = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(0, dropout=1)).lazy_init(x, train=False)
    call = nnx.jit(lambda module, train: module(x, train=train), static_argnames="train")
    assert np.abs(call(module, train=True) - call(module, train=True)).max() > 1e-3
    np.testing.assert_array_equal(call(module, train=False), call(module, train=False))
