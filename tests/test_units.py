"""Layers, units, stacks: scanned equals unrolled, every parameter learns, rows do not meet in evaluation."""

from operator import itemgetter

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import initializers, zoo
from deepjax.errors import InputError
from deepjax.layers import BatchNorm, Conv
from deepjax.units import Add, Branch, NormActivation, Plain, Projection, Unit, ZeroPad, stack

KEY = jax.random.key(0)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


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
            "unit": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tree[f"unit{i + 1}"] for i in range(depth)))
        }
        for collection, tree in variables.items()
    }


def draw(model, x):
    """Variables of the model, by NumPy: nothing compiles, no scale is 1, no bias 0, no variance large."""
    rng = np.random.default_rng(0)

    def one(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        name = path[-1].key
        if name == "kernel":
            window = leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1]
            return noise * np.float32(np.sqrt(0.1 / np.prod(window)))
        return {
            "scale": 1 + 0.2 * noise,
            "bias": 0.2 * noise,
            "mean": 0.05 * noise,
            "var": 0.05 + 0.05 * abs(noise),
        }[name]

    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    return jax.tree_util.tree_map_with_path(one, shapes)


def loss_and_gradients(module, variables, x, weights, **call):
    def loss(params):
        y, new = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"], **call)
        return (y * weights).sum(), (y, new["batch_stats"])

    (_, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return *aux, gradients


# Layers


def test_batch_norm_layer_is_flaxs_with_the_same_variables():
    x = images(8, 3, 3, 5)
    ours, theirs = BatchNorm(), nn.BatchNorm(momentum=0.9, epsilon=1e-5, use_fast_variance=False)
    variables = draw(ours, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(theirs.init(KEY, x, use_running_average=True), variables)
    for train in (True, False):
        y, new = ours.apply(variables, x, train=train, mutable=["batch_stats"])
        expected, expected_new = theirs.apply(variables, x, use_running_average=not train, mutable=["batch_stats"])
        assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(new, expected_new, rtol=1e-5)


def test_initialization_leaves_the_running_moments_alone():
    variables = BatchNorm(axis_name="data").init(KEY, 5 + images(8, 3), train=True)
    assert_allclose(variables["batch_stats"]["mean"], 0)
    assert_allclose(variables["batch_stats"]["var"], 1)


def test_conv_layer_is_flaxs():
    x = images(2, 7, 7, 6)
    options = {"features": 8, "use_bias": True}
    ours = Conv(window=(3, 3), stride=2, padding=1, groups=2, bias_init=initializers.ones, **options)
    theirs = nn.Conv(kernel_size=(3, 3), strides=2, padding=1, feature_group_count=2, **options)
    variables = ours.init(KEY, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, theirs.init(KEY, x))
    assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5)


# Joins and shortcuts


def test_zero_pad_takes_every_second_pixel_and_appends_zeros():
    x = images(2, 5, 6, 3)
    y = ZeroPad(7, 2).apply({}, x, train=False)
    assert y.shape == (2, 3, 3, 7)
    assert_allclose(y[..., :3], x[:, ::2, ::2])
    assert_allclose(y[..., 3:], 0)
    with pytest.raises(InputError, match="from 3 features to 2"):
        ZeroPad(2).apply({}, x, train=False)


@pytest.mark.parametrize("norm", [True, False])
def test_projection_is_a_strided_matrix_product(norm):
    x = images(2, 5, 6, 3)
    projection = Projection(7, 2, norm=norm)
    variables = projection.init(KEY, x, train=False)
    assert ("batch_stats" in variables) == norm
    expected = x[:, ::2, ::2] @ variables["params"]["conv"]["kernel"][0, 0] / np.sqrt(1 + 1e-5 * norm)
    assert_allclose(projection.apply(variables, x, train=False), expected, rtol=1e-5, atol=1e-6)


def test_add_needs_equal_shapes():
    x = images(2, 4, 4, 3)
    assert_allclose(Add().apply({}, x, x, train=True), 2 * x)
    with pytest.raises(InputError, match="Add: the skip has shape"):
        Add().apply({}, x, x[..., :1], train=True)
    changing = Unit(Branch((4, 4), (3, 3), (2, 1)), Add())
    with pytest.raises(InputError, match="give the unit a shortcut"):
        changing.init(KEY, x, train=True)


def test_plain_ignores_the_skip():
    x = images(2, 4, 4, 3)
    branch = Branch((3, 3), (3, 3), (1, 1))
    unit = Unit(branch, Plain(), activation=nn.relu)
    variables = unit.init(KEY, x, train=False)
    inner = {collection: tree["branch"] for collection, tree in variables.items()}
    expected = nn.relu(branch.apply(inner, x, train=False))
    assert_allclose(unit.apply(variables, x, train=False), expected)


def test_pre_activation_branch_starts_with_the_norm_unless_activated():
    x = images(2, 4, 4, 3)
    assert "norm1" in Branch((4,), (3,), (1,), "pre").init(KEY, x, train=False)["params"]
    assert "norm1" not in Branch((4,), (3,), (1,), "pre", activated=True).init(KEY, x, train=False)["params"]


def test_before_is_shared_by_shortcut_and_branch():
    x = images(2, 4, 4, 3)
    unit = Unit(Branch((5,), (1,), (1,), "pre", activated=True), Add(), Projection(5, norm=False), NormActivation())
    variables = unit.init(KEY, x, train=False)
    kernels = [
        variables["params"][part][conv]["kernel"][0, 0] for part, conv in (("branch", "conv1"), ("shortcut", "conv"))
    ]
    expected = nn.relu(x / np.sqrt(1 + 1e-5)) @ (kernels[0] + kernels[1])
    assert_allclose(unit.apply(variables, x, train=False), expected, rtol=1e-4, atol=1e-5)


# Stacks


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize(("depth", "unroll", "masked"), [(1, 1, False), (3, 1, True), (3, 2, False)])
def test_scanned_equals_unrolled(order, depth, unroll, masked):
    x = images(4, 6, 6, 4)
    weights = images(*x.shape, seed=1)
    mask = jnp.arange(4) < 3 if masked else None
    unrolled = stack(basic_unit(order), depth, scan=False)
    scanned = stack(basic_unit(order), depth, unroll=unroll)
    variables = draw(unrolled, x)
    stacked = restack(variables, depth)
    shapes = jax.eval_shape(lambda: scanned.init(KEY, x, train=False))
    chex.assert_trees_all_equal_shapes_and_dtypes(stacked, shapes)

    y, moments, gradients = loss_and_gradients(scanned, stacked, x, weights, mask=mask)
    y2, moments2, gradients2 = loss_and_gradients(unrolled, variables, x, weights, mask=mask)
    assert_allclose(y, y2, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(moments, restack({"b": moments2}, depth)["b"], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(gradients, restack({"p": gradients2}, depth)["p"], rtol=1e-3, atol=1e-3)
    assert_allclose(
        scanned.apply(stacked, x, train=False),
        unrolled.apply(variables, x, train=False),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("scan", [True, False])
def test_the_units_of_a_stack_start_different(scan):
    params = stack(basic_unit(), 3, scan=scan).init(KEY, images(1, 4, 4, 4), train=False)["params"]
    trees = per_unit(params, 3, scan)
    kernels = [tree["branch"]["conv1"]["kernel"] for tree in trees]
    assert not np.allclose(kernels[0], kernels[1])
    assert not np.allclose(kernels[1], kernels[2])


@pytest.mark.parametrize("scan", [True, False])
def test_a_unit_built_inside_a_module_belongs_to_the_stack(scan):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return stack(basic_unit(), 2, scan=scan, name="body")(x, train=train)

    params = Net().init(KEY, images(1, 4, 4, 4), train=False)["params"]
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
    variables = net.init(KEY, x, train=False)
    y, new = net.apply(variables, x, train=True, mutable=["counts"], rngs={"dropout": KEY})
    assert y.shape == x.shape
    counts = per_unit(new["counts"], 3, scan)
    assert [int(c["calls"]) for c in counts] == [1, 1, 1]
    kept = [np.asarray(c["kept"]) for c in counts]
    for a, b in ((0, 1), (1, 2), (0, 2)):  # two independent masks agree in half of 64 places, at four sigma
        assert abs((kept[a] == kept[b]).sum() - 32) < 16
    other = net.apply(variables, x, train=True, mutable=["counts"], rngs={"dropout": jax.random.key(1)})[0]
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
        stack(unit, 2).init(KEY, jnp.ones((2, 4), dtype), train=False)


@pytest.mark.parametrize(("depth", "unroll"), [(0, 1), (-1, 1), (2, 0)])
def test_a_stack_has_units(depth, unroll):
    with pytest.raises(InputError, match="must be at least 1"):
        stack(basic_unit(), depth, unroll=unroll)


@pytest.mark.parametrize("scan", [True, False])
def test_a_zero_initialized_branch_is_the_identity(scan):
    x = images(3, 5, 5, 4)
    net = stack(basic_unit("pre", kernel_init=initializers.zeros), 4, scan=scan)
    variables = net.init(KEY, x, train=False)
    for train in (True, False):
        assert_allclose(net.apply(variables, x, train=train, mutable=["batch_stats"])[0], x)


# Whole nets

SMALL_NETS = {
    "cifar_resnet": {"depth": 14, "width": 4, "shortcut": "A"},
    "cifar_plain": {"depth": 14, "width": 4},
    "cifar_preact": {"depth": 20, "width": 4},
    "mlp": {"depth": 4, "width": 16},
}


@pytest.mark.parametrize("name", SMALL_NETS)
def test_every_parameter_gets_a_gradient(name):
    model = zoo.create(name, num_classes=5, **SMALL_NETS[name])
    x = images(8, 8, 8, 3)
    variables = draw(model, x)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return (logits * images(8, 5, seed=1)).sum()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        per_unit = leaf if "_rest" in str(path) or "hidden" in str(path) else leaf[None]
        assert np.isfinite(leaf).all(), path
        assert (np.abs(per_unit).reshape(len(per_unit), -1).max(1) > 0).all(), path


@pytest.mark.parametrize("name", SMALL_NETS)
def test_evaluation_does_not_depend_on_batch_mates(name):
    model = zoo.create(name, num_classes=5, **SMALL_NETS[name])
    x = images(4, 8, 8, 3)
    variables = draw(model, x)
    forward = jax.jit(lambda x: model.apply(variables, x, train=False))
    alone = forward(x.at[1:].set(100 * x[1:] + 3))
    assert_allclose(alone[0], forward(x)[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(alone[1], forward(x)[1])


def test_masked_rows_do_not_reach_a_net():
    model = zoo.create("cifar_resnet", num_classes=5, depth=8, width=4)
    x = images(4, 8, 8, 3)
    variables = draw(model, x)
    mask = jnp.arange(4) < 3

    @jax.jit
    def forward(x, mask):
        return model.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])

    (padded, new), (expected, expected_new) = forward(x.at[3].set(1e4), mask), forward(x[:3], None)
    assert_allclose(padded[:3], expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(new, expected_new, rtol=1e-4, atol=1e-5)
