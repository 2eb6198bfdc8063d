"""What a stack keeps for its backward pass: same numbers, less memory; stochastic depth that computes less."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.layers import Dropout
from deepjax.units import Add, Branch, ConvNorm, Drop, Reversible, Unit, stack
from deepjax.units.loop import group_size
from helpers import draw_variables, random_arrays

KEY = jax.random.key(0)


class Bricks(nn.Module):
    """Convolution, batch norm, dropout; a number of its own."""

    skip: bool = True

    @nn.compact
    def __call__(self, x, *, train, mask=None, gain=0.3):
        y = Dropout(0.3)(ConvNorm(x.shape[-1])(x, train=train, mask=mask), train=train)
        return x + gain * y if self.skip else gain * y


HALVES = Reversible(Bricks(skip=False), Bricks(skip=False))


@cache
def answers(unit, remat, depth=11, gains=False):
    """Loss, output, new moments, gradients of parameters and of x."""
    (x,) = random_arrays(1, (4, 6, 6, 4))
    per_unit = {"gain": np.linspace(0.1, 0.5, depth)} if gains else None
    model = stack(unit, depth, remat=remat, per_unit=per_unit)
    variables = draw_variables(model, x)

    def loss(params, x, mask):
        y, new = model.apply(
            {**variables, "params": params},
            x,
            train=True,
            mask=mask,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(7)},
        )
        return (y**2).sum(), (y, new)

    mask = np.array([True, True, True, False])
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return jax.device_get(step(variables["params"], x, mask))


def assert_same(a, b, rtol):
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert_allclose(one, two, rtol=rtol, atol=rtol * np.abs(two).max())


@pytest.mark.parametrize(("remat", "depth"), [("unit", 11), ("sqrt", 11), ("sqrt", 4)])
def test_what_is_kept_does_not_change_the_numbers(remat, depth):
    kept = answers(Bricks(), "none", depth, gains=True)
    assert_same(answers(Bricks(), remat, depth, gains=True), kept, 1e-5)


def test_groups_have_a_rest():
    assert 11 % group_size(11) == 1
    assert 4 % group_size(4) == 0


@pytest.mark.parametrize("remat", ["sqrt", "reversible"])
def test_reversible_units(remat):
    assert_same(answers(HALVES, remat), answers(HALVES, "none"), 1e-4)


def test_units_draw_their_own_dropout():
    x = jnp.ones((1, 1000))

    class Drops(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, mask=None):
            return x * (Dropout(0.5)(jnp.ones_like(x), train=train) > 0)

    left = jax.jit(lambda: stack(Drops(), 3).apply({}, x, train=True, rngs={"dropout": KEY}).mean())()
    assert abs(left - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / 1000)  # three masks alike would leave a half


class Layer(nn.Module):
    """As little as can be stored."""

    skip: bool = True

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return self.skip * x + jnp.tanh(nn.Dense(x.shape[-1])(x))


def temporaries(unit, depth, remat):
    """Bytes of the compiled gradient, beside its arguments and results."""
    x = np.ones((256, 4), np.float32)
    model = stack(unit, depth, remat=remat)
    variables = jax.eval_shape(lambda: model.init(KEY, x, train=True))
    gradient = jax.jit(jax.grad(lambda v, x: (model.apply(v, x, train=True) ** 2).sum()))
    return gradient.lower(variables, x).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_as_promised():
    """Kept whole it grows with depth, by groups as its root; undone, the arrays that grow are the gradients."""
    whole, groups = ([temporaries(Layer(), depth, remat) for depth in (64, 256)] for remat in ("none", "sqrt"))
    assert whole[1] > 3.5 * whole[0]
    assert groups[1] < 2.5 * groups[0]
    assert groups[1] < whole[1] / 5
    halves = Reversible(Layer(skip=False), Layer(skip=False))
    kept, undone = ([temporaries(halves, depth, remat) for depth in (64, 256)] for remat in ("none", "reversible"))
    assert undone[1] - undone[0] < 0.1 * (kept[1] - kept[0])


def test_intermediate_values_of_every_unit():
    model = stack(Bricks(), 5, remat="sqrt")
    x = jnp.ones((2, 4, 4, 3))

    def observed():
        variables = model.init(KEY, x, train=True)
        return model.apply(variables, x, train=False, capture_intermediates=True)

    _, state = jax.eval_shape(observed)
    assert state["intermediates"]["unit"]["__call__"][0].shape == (5, 2, 4, 4, 3)


@pytest.mark.parametrize("remat", ["none", "unit", "sqrt"])
def test_a_dropped_branch_is_not_computed(remat):
    calls = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, mask=None):
            jax.debug.callback(lambda: calls.append(1))
            return nn.Dense(x.shape[-1])(x)

    survival = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    drop = Drop(scaling="original", per="batch")
    model = stack(Unit(Counted(), drop), 6, per_unit={"survival": survival}, remat=remat)
    x = np.ones((2, 3), np.float32)
    params = draw_variables(model, x)["params"]

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def run(params):
        y = model.apply({"params": params}, x, train=True, rngs={"dropout": KEY})
        return y.sum(), y

    gradients, y = run(params)
    jax.effects_barrier()
    assert len(calls) == (3 if remat == "none" else 6)  # once more where the backward pass computes units again
    dense, expected = params["unit"]["branch"]["Dense_0"], x
    for i in (0, 2, 5):
        expected = expected + expected @ dense["kernel"][i] + dense["bias"][i]
    assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    sizes = np.abs(gradients["unit"]["branch"]["Dense_0"]["kernel"]).max((1, 2))
    assert (sizes > 0).tolist() == [s == 1 for s in survival]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remat": "root"}, "did you mean 'sqrt'"),
        ({"remat": "sqrt", "scan": False}, "needs scan=True"),
        ({"remat": "unit", "scan": False}, "needs scan=True"),
        ({"remat": "sqrt", "unroll": 2}, "needs unroll=1, not 2"),
        ({"remat": "reversible"}, "needs a Reversible unit"),
        ({"per_unit": {"survival": [1.0]}}, "1 numbers for 3 units"),
        ({"per_unit": {"survival": [1.0, 0.5, -0.1]}}, "per_unit survival has -0.1"),
        ({"per_unit": {"survival": 0.5}}, "1 numbers for 3 units"),
    ],
)
def test_stack_errors(options, message):
    with pytest.raises(InputError, match=message):
        stack(Unit(Branch((2,), (1,), (1,)), Add()), 3, **options)


@pytest.mark.parametrize(
    ("unit", "depth", "options", "message"),
    [
        (nn.Dense, 3, {}, "is not a Linen module"),
        (nn.Dense(4), 2.5, {}, "depth 2.5 must be a whole number"),
        (nn.Dense(4), 0, {}, "depth 0 and unroll 1 must be at least 1"),
        (HALVES, 3, {"per_unit": {"survival": [1, 1, 1]}}, "per_unit survival: Reversible takes no such argument"),
        (Reversible(Bricks(), Bricks(), Bricks()), 3, {"remat": "reversible"}, "without shortcut"),
    ],
)
def test_stack_refuses_at_construction(unit, depth, options, message):
    with pytest.raises(InputError, match=message):
        stack(unit, depth, **options)


@pytest.mark.parametrize("remat", ["none", "unit", "sqrt"])
def test_a_unit_is_given_what_its_call_takes(remat):
    """Flax's own layers take neither train nor mask."""
    (x,) = random_arrays(1, (2, 4))
    model = stack(nn.Dense(4), 10, remat=remat)
    variables = draw_variables(model, x)
    expected, dense = x, variables["params"]["unit"]
    for kernel, bias in zip(dense["kernel"], dense["bias"], strict=True):
        expected = expected @ kernel + bias
    assert_allclose(jax.jit(partial(model.apply, train=True))(variables, x), expected, rtol=1e-4, atol=1e-5)


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
        y = nn.Dense(x.shape[-1])(nn.LayerNorm()(x))
        self.sow("losses", "square", (y**2).mean())
        return y


def test_gradients_of_other_variables_that_units_put_out():
    """ "sqrt" differentiates sown values; what a remat cannot differentiate without keeping everything is refused."""
    (x,) = random_arrays(1, (2, 8))
    unit = Reversible(Sowing(), Sowing())
    params = draw_variables(stack(unit, 5), x)["params"]

    def gradients(remat, mutable):
        def loss(params):
            y, state = stack(unit, 5, remat=remat).apply({"params": params}, x, train=True, mutable=mutable)
            return y.sum() + sum((leaf**2).sum() for name in state for leaf in jax.tree.leaves(state[name]))

        return jax.device_get(jax.jit(jax.grad(loss))(params))

    expected, recomputed = gradients("none", ["losses"]), gradients("sqrt", ["losses"])
    assert any(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-5), expected, recomputed)
    refused = {"reversible": (["losses"], "intermediates", True), "sqrt": (["intermediates"], ["params"], True)}
    for remat, mutable in ((remat, mutable) for remat, some in refused.items() for mutable in some):
        with pytest.raises(InputError, match=f"stack: remat {remat} cannot be differentiated"):
            gradients(remat, mutable)


def test_reversible_needs_even_features():
    with pytest.raises(InputError, match="3 features"):
        jax.eval_shape(lambda: stack(HALVES, 2, remat="reversible").init(KEY, jnp.ones((1, 4, 4, 3)), train=True))
