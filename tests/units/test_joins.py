"""Joins, shortcuts and mixed branches: what a unit makes of its skip and its branch."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.units import (
    Add,
    Branch,
    Concat,
    Drop,
    Gate,
    Plain,
    Projection,
    Shake,
    SkipInit,
    Unit,
    ZeroPad,
    norm_factory,
    stack,
)
from helpers import draw_variables, from_torch, kernel_to_torch, random_arrays, to_torch

KEY = jax.random.key(0)
X, H = random_arrays(0, (2, 5, 6, 3), (2, 5, 6, 3))


def run(module, variables, *args, train=False, **call):
    return np.asarray(jax.jit(partial(module.apply, train=train, **call))(variables, *args))


def refuses(message, module, *args):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: module.init({"params": KEY, "dropout": KEY}, *args, train=False))


# Shortcuts


def test_zero_pad_takes_every_second_pixel_and_appends_zeros():
    y = run(ZeroPad(7, 2), {}, X)
    assert y.shape == (2, 3, 3, 7)
    assert_allclose(y[..., :3], X[:, ::2, ::2])
    assert_allclose(y[..., 3:], 0)
    refuses("from 3 to 2 features", ZeroPad(2), X)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_projection_is_a_strided_matrix_product(norm):
    projection = Projection(7, 2, norm=norm_factory(norm))
    variables = draw_variables(projection, X)
    assert ("batch_stats" in variables) == (norm == "batch")
    expected = X[:, ::2, ::2] @ variables["params"]["conv"]["kernel"][0, 0]
    if norm == "batch":
        p, moments = variables["params"]["norm"], variables["batch_stats"]["norm"]
        expected = (expected - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) * p["scale"] + p["bias"]
    assert_allclose(run(projection, variables, X), expected, rtol=1e-5, atol=1e-5)


# Joins


def test_joins_without_variables():
    add, concat = jax.jit(lambda: [join.apply({}, X, H, train=True) for join in (Add(), Concat())])()
    assert_allclose(add, X + H)
    assert_allclose(concat, np.concatenate([X, H], 3))
    refuses("Add: the skip has shape", Add(), X, H[..., :1])
    refuses("Concat: the skip has shape", Concat(), X, H[:1])
    refuses("give the unit a shortcut", Unit(Branch((4, 4), (3, 3), (2, 1)), Add()), X)


def test_plain_ignores_the_skip():
    branch = Branch((3, 3), (3, 3), (1, 1))
    unit = Unit(branch, Plain(), activation=nn.relu)
    variables = draw_variables(unit, X)
    inner = {collection: tree["branch"] for collection, tree in variables.items()}
    y, expected = jax.jit(lambda: [unit.apply(variables, X, train=False), branch.apply(inner, X, train=False)])()
    assert_allclose(y, np.maximum(expected, 0))


@pytest.mark.parametrize("spatial", [(), (5, 6)])
def test_gate_is_the_highway_of_the_paper(spatial):
    torch = pytest.importorskip("torch")
    x, h = (X, H) if spatial else (X[:, 0, 0], H[:, 0, 0])
    gate = Gate(-3.0)
    assert_allclose(jax.jit(partial(gate.init, train=True))(KEY, x, h)["params"]["gate"]["bias"], -3.0)
    variables = draw_variables(gate, x, branch=h)
    p = variables["params"]["gate"]
    kernel, bias = kernel_to_torch(p["kernel"]), torch.from_numpy(np.float64(p["bias"]))
    tx, f = to_torch(x), torch.nn.functional
    t = torch.sigmoid(f.conv2d(tx, kernel, bias, padding=1) if spatial else f.linear(tx, kernel, bias))
    assert_allclose(run(gate, variables, x, h), from_torch(to_torch(h) * t + tx * (1 - t)), rtol=1e-5, atol=1e-6)
    refuses("Gate: the skip has shape", gate, x, h[..., :1])
    if spatial:
        refuses("window 2 must be odd", Gate(window=2), x, h)


def test_skip_init_weighs_the_branch():
    assert_allclose(run(SkipInit(), {"params": {"alpha": np.float32(0.25)}}, X, H), X + H / 4, rtol=1e-6)
    refuses("SkipInit: the skip has shape", SkipInit(), X, H[:, :1])


# Dropped branches


@pytest.mark.parametrize("scaling", ["inverted", "original"])
def test_drop_of_survival_1_is_add_and_of_0_the_skip(scaling):
    call = {"train": True, "rngs": {"dropout": KEY}}
    kept, dropped = jax.jit(lambda: [Drop(p, scaling).apply({}, X, H, **call) for p in (1.0, 0.0)])()
    assert_allclose(kept, X + H)
    assert_allclose(dropped, X)
    refuses("survival None", Drop(), X, H)
    refuses("Drop: the skip has shape", Drop(0.5), X, H[:, :1])


class Ones(nn.Module):
    """A branch that is 1 everywhere."""

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return jnp.ones_like(x)


@pytest.mark.parametrize("scan", [True, False])
def test_units_survive_as_often_as_their_own_survival(scan):
    """Sums of surviving ones, for each row: mean and variance of independent Bernoulli draws, at four sigma."""
    survival, rows = (0.9, 0.5, 0.2), 4000

    @jax.jit
    def totals():
        def total(train, **options):
            net = stack(Unit(Ones(), Drop(**options)), 3, scan=scan, per_unit={"survival": survival})
            return net.apply({}, jnp.zeros((rows, 2)), train=train, rngs={"dropout": KEY})

        original = {"scaling": "original"}
        trained = total(True, **original), total(True), total(True, per="batch", **original)
        return trained, total(False), total(False, **original)

    (y, inverted, alike), evaluated, mean = jax.device_get(totals())
    assert (y[:, 0] == y[:, 1]).all()
    variance = sum(p * (1 - p) for p in survival)
    assert abs(y[:, 0].mean() - sum(survival)) < 4 * np.sqrt(variance / rows)
    assert abs(y[:, 0].var() / variance - 1) < 4 * np.sqrt(2 / rows)
    values = {round(float(v), 4) for v in np.unique(inverted)}
    parts = [round(sum(1 / p for p, kept in zip(survival, word) if kept), 4) for word in np.ndindex(2, 2, 2)]
    assert values == set(parts)
    assert_allclose(evaluated, 3)
    assert_allclose(mean, sum(survival), rtol=1e-6)
    assert len(np.unique(alike)) == 1


def test_a_batch_survives_as_often_as_it_should():
    """Four sigma, of 400 draws of one unit; the branch that survives is added undivided."""
    unit = Unit(Ones(), Drop(0.3, scaling="original", per="batch"))

    @jax.jit
    @jax.vmap
    def draws(key):
        return unit.apply({}, jnp.zeros((2, 2)), train=True, rngs={"dropout": key})

    y = np.asarray(draws(jax.random.split(KEY, 400)))
    assert (y == y[:, :1, :1]).all()
    assert set(np.unique(y)) == {0.0, 1.0}
    assert abs(y[:, 0, 0].mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


# Mixed branches


def test_shake_mixes_its_branches():
    x = random_arrays(1, (6, 4, 4, 3))[0]
    branch = Branch((4, 4), (3, 3), (1, 1))
    variables = draw_variables(Shake(branch, branch.copy()), x)

    @jax.jit
    def outputs():
        def parts(x, train):
            trees = ({collection: tree[name] for collection, tree in variables.items()} for name in "ab")
            return [branch.apply(tree, x, train=train, mutable=["batch_stats"])[0] for tree in trees]

        def shake(train=True, **options):
            call = {"train": train, "mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
            return Shake(branch, branch.copy(), **options).apply(variables, x, **call)[0]

        evaluated = shake(False, activation=nn.relu), parts(nn.relu(x), False)
        return evaluated, parts(x, True), shake(forward="even"), shake(), shake(per="batch")

    (y, (a, b)), parts, even, shaken, alike = jax.device_get(outputs())
    assert_allclose(y, (a + b) / 2, rtol=1e-5, atol=1e-5)
    a, b = parts
    assert_allclose(even, (a + b) / 2, rtol=1e-5, atol=1e-5)

    def share(y):  # alpha of each image, by least squares
        y, d = (v.reshape(6, -1) for v in (y - b, a - b))
        alpha = (y * d).sum(1) / (d * d).sum(1)
        assert_allclose(y, alpha[:, None] * d, atol=1e-4)
        return alpha

    assert len(set(share(shaken).round(4))) == 6
    assert ((share(shaken) >= 0) & (share(shaken) <= 1)).all()
    assert_allclose(share(alike), share(alike)[0], atol=1e-4)
