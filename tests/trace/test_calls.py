"""The interceptor reaches every call and no other method."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import helpers
from deepjax.trace import around_calls
from deepjax.units import Reversible, stack
from deepjax.units.remat import recompute


class Unit(nn.Module):
    """The methods that are not calls are left alone."""

    def setup(self):
        self.dense = nn.Dense(4)

    def __call__(self, x, *, train=True, mask=None):
        return nn.tanh(self.dense(x))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = stack(nn.remat(Unit)(), 3, name="stack")(x, train=True)
        x = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})(4, name="lanes")(x)
        branch = nn.Dense(2, name="branch")
        if self.is_initializing():
            return branch(x)
        return nn.cond(x.sum() > -1e9, lambda branch, x: branch(x), lambda branch, x: jnp.zeros((2, 2)), branch, x)


def test_every_call_is_seen_and_can_be_changed():
    seen, x = set(), np.ones((2, 4), np.float32)
    variables = helpers.draw_variables(Net(), x)

    def rule(module, run, args, kwargs):
        seen.add(module.path)
        y = run(*args, **kwargs)
        return 10 * y if module.path == ("branch",) else y

    @jax.jit
    def run(variables):
        with around_calls(rule):
            y = Net().apply(variables, x)
        return y, Net().apply(variables, x)

    y, plain = map(np.asarray, run(variables))
    np.testing.assert_allclose(y, 10 * plain, rtol=1e-5)
    assert seen == {(), ("stack",), ("stack", "unit"), ("stack", "unit", "dense"), ("lanes",), ("branch",)}


def test_a_call_can_be_left_out_or_made_with_other_arguments():
    model, x = nn.Sequential([nn.Dense(3), nn.Dense(3)]), jnp.ones((2, 3))
    variables = model.init(jax.random.key(0), x)
    with around_calls(lambda module, run, args, kwargs: args[0] if module.name == "layers_0" else run(*args)):
        skipped = model.apply(variables, x)
    kernel = variables["params"]["layers_1"]["kernel"]
    np.testing.assert_allclose(skipped, x @ kernel, rtol=1e-6)
    with around_calls(lambda module, run, args, kwargs: run(2 * args[0]) if module.path == () else run(*args)):
        doubled = model.apply(variables, x)
    np.testing.assert_allclose(doubled, 2 * model.apply(variables, x), rtol=1e-6)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return Unit(name="unit")(x)


class Recomputed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return recompute(lambda unit, x: unit(x), Unit(name="unit"), x)


def test_gradients_are_those_of_the_calls_that_were_made():
    """Also where a backward pass, which JAX traces after the context is left, calls the modules again."""
    (x,) = helpers.random_arrays(1, (2, 8))
    halves = Reversible(Unit(), Unit())
    pairs = [(stack(halves, 5), stack(halves, 5, remat=remat)) for remat in ("sqrt", "reversible")]

    def rule(module, run, args, kwargs):
        return 2 * run(*args, **kwargs) if isinstance(module, nn.Dense) else run(*args, **kwargs)

    def gradients(model, variables):
        def loss(variables):
            with around_calls(rule):
                return (model.apply(variables, x, train=True) ** 2).sum()

        return jax.jit(jax.grad(jax.jit(loss)))(variables)

    for plain, model in [*pairs, (Plain(), Recomputed())]:
        variables = helpers.draw_variables(plain, x)
        compare = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
        jax.tree.map(compare, gradients(model, variables), gradients(plain, variables))
