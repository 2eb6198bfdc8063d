"""Stacks: scanned equals unrolled, units start different, draw and count for themselves, have their own numbers."""

from operator import itemgetter

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.units import Add, Branch, Drop, Unit, stack, stack_units, unstack_units
from helpers import draw_variables, random_arrays

KEY = jax.random.key(0)


def images(*shape, seed=0):
    return random_arrays(seed, shape)[0]


def basic_unit(order="post", features=4, **branch):
    branch = Branch((features, features), (3, 3), (1, 1), order, **branch)
    return Unit(branch, Add(), activation=nn.relu if order == "post" else None)


def per_unit(tree, depth, scan):
    """The variables of each unit of a stack."""
    if scan:
        return [jax.tree.map(itemgetter(i), tree["unit"]) for i in range(depth)]
    return [tree[f"unit{i + 1}"] for i in range(depth)]


def restack(variables, depth):
    """Variables of an unrolled stack (unit1, unit2, ...) -> those of a scanned one (leading axis)."""
    return {
        collection: {
            "unit": jax.tree.map(lambda *leaves: np.stack(leaves), *(tree[f"unit{i + 1}"] for i in range(depth)))
        }
        for collection, tree in variables.items()
        if tree
    }


FIXUP = {"norm": None, "branch_init": "fixup", "branches": 3}


@pytest.mark.parametrize(
    ("order", "depth", "unroll", "options"), [("post", 2, 1, {}), ("pre", 3, 2, {}), ("post", 3, 2, FIXUP)]
)
def test_scanned_equals_unrolled(order, depth, unroll, options):
    x, weights = images(4, 6, 6, 4), images(4, 6, 6, 4, seed=1)
    mask = np.arange(4) < 3
    unrolled = stack(basic_unit(order, **options), depth, scan=False)
    scanned = stack(basic_unit(order, **options), depth, unroll=unroll)
    variables = draw_variables(unrolled, x, gain=0.5)
    stacked = restack(variables, depth)
    shapes = jax.eval_shape(lambda: scanned.init(KEY, x, train=False))
    chex.assert_trees_all_equal_shapes_and_dtypes(stacked, shapes)

    @jax.jit
    def results():
        def one(net, variables):
            def loss(params):
                given = {**variables, "params": params}
                y, new = net.apply(given, x, train=True, mask=mask, mutable=["batch_stats"])
                return (y * weights).sum(), (y, new)

            gradients, (y, new) = jax.grad(loss, has_aux=True)(variables["params"])
            return (y, net.apply(variables, x, train=False)), {**new, "params": gradients}

        return one(scanned, stacked), one(unrolled, variables)

    (ys, trees), (others, apart) = results()
    chex.assert_trees_all_close(ys, others, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(trees, restack(apart, depth), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scan", [True, False])
def test_the_units_of_a_stack_start_different(scan):
    net, x = stack(nn.Dense(4), 3, scan=scan), images(1, 4)
    params = jax.jit(lambda: net.init(KEY, x, train=False))()["params"]
    kernels = [np.asarray(tree["kernel"]) for tree in per_unit(params, 3, scan)]
    assert not np.allclose(kernels[0], kernels[1])
    assert not np.allclose(kernels[1], kernels[2])


@pytest.mark.parametrize("scan", [True, False])
def test_a_unit_built_inside_a_module_belongs_to_the_stack(scan):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return stack(basic_unit(), 2, scan=scan, name="body")(x, train=train)

    params = jax.eval_shape(lambda: Net().init(KEY, images(1, 4, 4, 4), train=False))["params"]
    assert set(params) == {"body"}
    assert set(params["body"]) == ({"unit"} if scan else {"unit1", "unit2"})


class Users(nn.Module):
    """A user's unit, with a collection of its own and dropout."""

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        calls = self.variable("counts", "calls", jnp.zeros, (), jnp.int32)
        kept = self.variable("counts", "kept", jnp.zeros, x.shape, bool)
        y = nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(x))
        if not self.is_initializing():
            calls.value += 1
            kept.value = y > 0
        return x + nn.Dense(x.shape[-1])(y)


@pytest.mark.parametrize("scan", [True, False])
def test_a_users_unit(scan):
    x = images(4, 16)
    net = stack(Users(), 3, scan=scan)
    shapes = jax.eval_shape(lambda: net.init(KEY, x, train=False))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    variables["counts"] = jax.tree.map(np.zeros_like, variables["counts"])
    train = jax.jit(lambda key: net.apply(variables, x, train=True, mutable=["counts"], rngs={"dropout": key}))
    (y, new), (other, _) = jax.device_get([train(KEY), train(jax.random.key(1))])
    assert y.shape == x.shape
    counts = per_unit(new["counts"], 3, scan)
    assert [int(c["calls"]) for c in counts] == [1, 1, 1]
    for a, b in ((0, 1), (1, 2), (0, 2)):  # two independent masks agree in half of 64 places, at four sigma
        assert abs((counts[a]["kept"] == counts[b]["kept"]).sum() - 32) < 16
    assert not np.allclose(y, other)


class Halves(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return x[..., ::2]


class Widens(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return x.astype(jnp.float32)


@pytest.mark.parametrize(("unit", "dtype"), [(Halves(), jnp.float32), (Widens(), jnp.bfloat16)])
def test_a_unit_of_a_stack_keeps_shape_and_dtype(unit, dtype):
    with pytest.raises(InputError, match="must keep shape and dtype"):
        jax.eval_shape(lambda: stack(unit, 2).init(KEY, jnp.ones((2, 4), dtype), train=False))


@pytest.mark.parametrize(("depth", "unroll"), [(0, 1), (-1, 1), (2, 0)])
def test_a_stack_has_units(depth, unroll):
    with pytest.raises(InputError, match="must be at least 1"):
        stack(basic_unit(), depth, unroll=unroll)


class Scale(nn.Module):
    """x times a number of this unit alone, plus its parameter."""

    @nn.compact
    def __call__(self, x, *, train, mask=None, factor):
        return x * factor + self.param("bias", nn.initializers.normal(), x.shape[-1:])[None]


def test_own_numbers_reach_their_units():
    x, factors = images(2, 3), [1.5, -2.0, 0.5]
    scanned, unrolled = (stack(Scale(), 3, scan=scan, per_unit={"factor": factors}) for scan in (True, False))
    variables = draw_variables(scanned, x)
    expected = x
    for factor, bias in zip(factors, variables["params"]["unit"]["bias"], strict=True):
        expected = expected * factor + bias
    apart = unstack_units(variables)
    for y in jax.jit(lambda: [scanned.apply(variables, x, train=False), unrolled.apply(apart, x, train=False)])():
        assert_allclose(y, expected, rtol=1e-5)
    with pytest.raises(InputError, match="per_unit factor has 2 numbers for 3 units"):
        stack(Scale(), 3, per_unit={"factor": [1.0, 2.0]})


def test_units_are_stacked_and_unstacked():
    """Stacks within units too; the tree without stacks stays, NumPy arrays stay NumPy's, outputs stay."""
    x, rng = images(2, 4, 4, 4), np.random.default_rng(0)

    def net(scan):
        inner = stack(basic_unit(norm=None), 2, scan=scan)
        return nn.Sequential([nn.Dense(4), Twice(inner, scan)])

    shapes = jax.eval_shape(lambda: net(True).init(KEY, x))
    variables = jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.2, leaf.shape)), shapes)
    apart = unstack_units(variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(apart, jax.eval_shape(lambda: net(False).init(KEY, x)))
    assert {type(leaf) for leaf in jax.tree.leaves(apart)} == {np.ndarray}
    chex.assert_trees_all_equal(stack_units(apart), variables)
    y, other = jax.jit(lambda: [net(True).apply(variables, x), net(False).apply(apart, x)])()
    assert_allclose(y, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="leading axes \\[2, 3\\]"):
        unstack_units({"unit": {"a": np.zeros(2), "b": np.zeros(3)}})


class Twice(nn.Module):
    """A stack of two stacks."""

    inner: nn.Module
    scan: bool

    @nn.compact
    def __call__(self, x):
        return stack(self.inner, 2, scan=self.scan, name="outer")(x, train=False)


def test_stacks_with_numbers_of_their_own_can_be_hashed():
    unit = Unit(Branch((2,), (1,), (1,)), Drop())
    assert hash(stack(unit, 2, per_unit={"survival": [1, 0.5]})) == hash(
        stack(unit, 2, per_unit={"survival": [1, 0.5]})
    )
