"""Layers, units, stacks: scanned equals unrolled, every parameter learns, rows do not meet in evaluation."""

from operator import itemgetter

import chex
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import initializers, zoo
from deepjax.errors import InputError
from deepjax.layers import BatchNorm, Conv
from deepjax.units import (
    Add,
    Branch,
    Concat,
    ConvNorm,
    Drop,
    Gate,
    NormActivation,
    Plain,
    Projection,
    Shake,
    SkipInit,
    SqueezeExcite,
    Unit,
    ZeroPad,
    norm_factory,
    recompute,
    stack,
    stack_units,
    unstack_units,
)
from deepjax.zoo.residual import imagenet

KEY = jax.random.key(0)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def basic_unit(order="post", features=4, *, join=Add, **branch):
    branch = Branch((features, features), (3, 3), (1, 1), order, **branch)
    return Unit(branch, join(), activation=nn.relu if order == "post" else None)


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
        if tree
    }


def to_torch(torch, x):
    """An array [batch, *spatial, features] as a float64 tensor in PyTorch's order."""
    return torch.from_numpy(np.moveaxis(np.float64(x), -1, 1).copy())


def kernel_to_torch(torch, kernel):
    return torch.from_numpy(np.moveaxis(np.float64(kernel), (-1, -2), (0, 1)).copy())


def from_torch(y):
    return np.moveaxis(y.detach().numpy(), 1, -1)


def draw(model, x, gain=0.1, train=False, join=None):
    """Variables of the model, by NumPy: nothing compiles, no scale is 1, no bias 0, no variance large."""
    rng = np.random.default_rng(0)

    def one(path, leaf):
        noise = np.float32(rng.standard_normal(leaf.shape))
        name = path[-1].key
        if name == "kernel":
            window = leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1]
            return noise * np.float32(np.sqrt(gain / np.prod(window)))
        return {
            "scale": 1 + 0.2 * noise,
            "alpha": 0.5 + 0.2 * noise,
            "bias": (0.2 if leaf.shape else 0.02) * noise,
            "mean": 0.05 * noise,
            "var": 0.05 + 0.05 * abs(noise),
        }[name]

    call = {} if train is None else {"train": train}
    inputs = (x,) if join is None else (x, join)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **call))
    return jax.tree_util.tree_map_with_path(one, shapes)


def loss_and_gradients(module, variables, x, weights, **call):
    def loss(params):
        y, new = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"], **call)
        return (y * weights).sum(), (y, new.get("batch_stats", {}))

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
    with pytest.raises(InputError, match="from 3 to 2 features"):
        ZeroPad(2).apply({}, x, train=False)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_projection_is_a_strided_matrix_product(norm):
    x = images(2, 5, 6, 3)
    projection = Projection(7, 2, norm=norm_factory(norm))
    variables = projection.init(KEY, x, train=False)
    assert ("batch_stats" in variables) == (norm == "batch")
    expected = x[:, ::2, ::2] @ variables["params"]["conv"]["kernel"][0, 0] / np.sqrt(1 + 1e-5 * (norm == "batch"))
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


@pytest.mark.parametrize("spatial", [(), (5, 6)])
def test_gate_is_the_highway_of_the_paper(spatial):
    torch = pytest.importorskip("torch")
    x, h = images(2, *spatial, 3), images(2, *spatial, 3, seed=1)
    gate = Gate(-3.0)
    start = gate.init(KEY, x, h, train=True)["params"]["gate"]
    assert_allclose(start["bias"], -3.0)
    variables = draw(gate, x, join=h)
    p = variables["params"]["gate"]
    kernel, bias = kernel_to_torch(torch, p["kernel"]), torch.from_numpy(np.float64(p["bias"]))
    tx = to_torch(torch, x)
    f = torch.nn.functional
    t = torch.sigmoid(f.conv2d(tx, kernel, bias, padding=1) if spatial else f.linear(tx, kernel, bias))
    expected = from_torch(to_torch(torch, h) * t + tx * (1 - t))
    assert_allclose(gate.apply(variables, x, h, train=True), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="Gate: the skip has shape"):
        gate.init(KEY, x, h[..., :1], train=True)
    if spatial:
        with pytest.raises(InputError, match="window 2 must be odd"):
            Gate(window=2).init(KEY, x, h, train=True)


def test_concat_appends_the_branch():
    x, h = images(2, 4, 4, 3), images(2, 4, 4, 2, seed=1)
    assert_allclose(Concat().apply({}, x, h, train=True), np.concatenate([x, h], 3))
    with pytest.raises(InputError, match="Concat: the skip has shape"):
        Concat().apply({}, x, h[:1], train=True)


@pytest.mark.parametrize("scaling", ["inverted", "original"])
def test_drop_of_survival_1_is_add_and_of_0_the_skip(scaling):
    skip, branch = images(4, 3), images(4, 3, seed=1)
    for survival, expected in ((1.0, skip + branch), (0.0, skip)):
        y = Drop(survival, scaling).apply({}, skip, branch, train=True, rngs={"dropout": KEY})
        assert_allclose(y, expected)
    with pytest.raises(InputError, match="survival None"):
        Drop().apply({}, skip, branch, train=False)
    with pytest.raises(InputError, match="Drop: the skip has shape"):
        Drop(0.5).apply({}, skip, branch[:, :1], train=False)


class Ones(nn.Module):
    """A branch that is 1 everywhere."""

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        return jnp.ones_like(x)


@pytest.mark.parametrize("scan", [True, False])
def test_units_survive_as_often_as_their_own_survival(scan):
    """Sums of surviving ones, for each row: mean and variance of independent Bernoulli draws, at four sigma."""
    survival, rows = (0.9, 0.5, 0.2), 4000
    x = jnp.zeros((rows, 2))

    def total(train, **options):
        net = stack(Unit(Ones(), Drop(**options)), 3, scan=scan, per_unit={"survival": survival})
        return np.asarray(net.apply({}, x, train=train, rngs={"dropout": KEY}))

    y = total(True, scaling="original")
    assert (y[:, 0] == y[:, 1]).all()
    variance = sum(p * (1 - p) for p in survival)
    assert abs(y[:, 0].mean() - sum(survival)) < 4 * np.sqrt(variance / rows)
    assert abs(y[:, 0].var() / variance - 1) < 4 * np.sqrt(2 / rows)
    values = {round(float(v), 4) for v in np.unique(total(True))}
    parts = [round(sum(1 / p for p, kept in zip(survival, word) if kept), 4) for word in np.ndindex(2, 2, 2)]
    assert values == set(parts)
    assert_allclose(total(False), 3)
    assert_allclose(total(False, scaling="original"), sum(survival), rtol=1e-6)
    assert len(np.unique(total(True, scaling="original", per="batch"))) == 1


def two_branches(**options):
    return Shake(*(Branch((4, 4), (3, 3), (1, 1)) for _ in range(2)), **options)


def test_shake_mixes_its_branches():
    x = images(6, 4, 4, 3)
    variables = draw(two_branches(), x)
    a, b = (
        Branch((4, 4), (3, 3), (1, 1)).apply({c: tree[name] for c, tree in variables.items()}, nn.relu(x), train=False)
        for name in "ab"
    )
    y = two_branches(activation=nn.relu).apply(variables, x, train=False)
    assert_allclose(y, (a + b) / 2, rtol=1e-5, atol=1e-6)

    def train(**options):
        call = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
        return two_branches(**options).apply(variables, x, **call)[0]

    even, shaken, alike = train(forward="even"), train(), train(per="batch")
    a, b = (
        Branch((4, 4), (3, 3), (1, 1)).apply(
            {c: tree[name] for c, tree in variables.items()}, x, train=True, mutable=["batch_stats"]
        )[0]
        for name in "ab"
    )
    assert_allclose(even, (a + b) / 2, rtol=1e-5, atol=1e-5)

    def share(y):  # alpha of each image, by least squares
        y, d = (np.asarray(v).reshape(6, -1) for v in (y - b, a - b))
        alpha = (y * d).sum(1) / (d * d).sum(1)
        assert_allclose(y, alpha[:, None] * d, atol=1e-4)
        return alpha

    assert len(set(share(shaken).round(4))) == 6
    assert ((share(shaken) >= 0) & (share(shaken) <= 1)).all()
    assert_allclose(share(alike), share(alike)[0], atol=1e-4)


# Branches


def test_groups_of_a_branch_are_torchs():
    torch = pytest.importorskip("torch")
    x = images(2, 5, 5, 4)
    branch = Branch((8, 6), (1, 3), (1, 2), norm=None, groups=(1, 2))
    variables = draw(branch, x)
    y = to_torch(torch, x)
    for i, (groups, stride) in enumerate(((1, 1), (2, 2))):
        p = variables["params"][f"conv{i + 1}"]
        kernel, bias = kernel_to_torch(torch, p["kernel"]), torch.from_numpy(np.float64(p["bias"]))
        y = torch.relu(y) if i else y
        y = torch.nn.functional.conv2d(y, kernel, bias, stride, kernel.shape[-1] // 2, groups=groups)
    assert_allclose(branch.apply(variables, x, train=True), from_torch(y), rtol=1e-4, atol=1e-5)
    for options, message in (
        ({"groups": (1,)}, "and groups \\(1,\\) must have equal lengths"),
        ({"drops": "input"}, "drops 'input' is unknown; did you mean 'inputs'"),
    ):
        with pytest.raises(InputError, match=message):
            Branch((8, 6), (1, 3), (1, 2), **options).init(KEY, x, train=False)


@pytest.mark.parametrize("drops", ["inputs", "outputs", "last"])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_dropout_of_a_branch_stands_where_it_says(order, drops):
    """Where all is dropped, what follows sees zeros; half dropped, half of the entries are 0, at four sigma."""
    x = images(2, 16, 16, 3)
    branch = Branch((4, 5), (3, 3), (1, 1), order, norm=None, dropout=1.0, drops=drops)
    variables = draw(branch, x)
    seen = {}

    def watch(next_method, args, kwargs, context):
        y = next_method(*args, **kwargs)
        if isinstance(context.module, Conv):
            seen[context.module.name] = (args[0], y)
        return y

    def run(branch, train=True):
        with nn.intercept_methods(watch):
            return branch.apply(variables, x, train=train, rngs={"dropout": KEY})

    zeros = {"inputs": "entrance", "outputs": "exit", "last": "exit"}[drops]
    y = run(branch)
    assert (np.asarray(seen["conv1"][0]) != 0).mean() > 0.4  # the first convolution sees what there is
    inner = nn.relu(jnp.zeros_like(seen["conv1"][1]) if drops == "outputs" else seen["conv1"][1])
    assert_allclose(seen["conv2"][0], jnp.zeros_like(inner) if zeros == "entrance" else inner)
    assert_allclose(y, seen["conv2"][1] if zeros == "entrance" else jnp.zeros_like(y))
    half = run(branch.copy(dropout=0.5))
    dropped, kept = (seen["conv2"][0], inner) if zeros == "entrance" else (half, run(branch, train=False))
    alive = np.asarray(kept) != 0
    if drops != "outputs":
        assert abs((np.asarray(dropped)[alive] == 0).mean() - 0.5) < 4 * np.sqrt(0.25 / alive.sum())
    assert_allclose(run(branch, train=False), run(branch.copy(dropout=0.0)))


# Recomputation


@pytest.mark.parametrize("masked", [False, True])
def test_recomputed_branches_give_the_same(masked):
    """Values, running moments and gradients, where dropout draws and a mask is closed over; NaN stays NaN."""
    x, weights = images(4, 5, 5, 3), images(4, 5, 5, 4, seed=1)
    mask = jnp.arange(4) < 3 if masked else None

    class Net(nn.Module):
        again: bool

        @nn.compact
        def __call__(self, x):
            def layer(branch, x):
                return branch(x, train=True, mask=mask)

            branch = Branch((4, 4), (3, 3), (1, 1), dropout=0.5, name="branch")
            return recompute(layer, branch, x) if self.again else layer(branch, x)

    shapes = [
        jax.eval_shape(lambda net=net: net.init({"params": KEY, "dropout": KEY}, x)) for net in map(Net, (False, True))
    ]
    chex.assert_trees_all_equal_shapes_and_dtypes(*shapes)
    variables = draw(Branch((4, 4), (3, 3), (1, 1)), x)
    variables = {collection: {"branch": tree} for collection, tree in variables.items()}

    @jax.jit
    def answers(weights):
        def loss(params, x, net):
            y, new = net.apply({**variables, "params": params}, x, mutable=["batch_stats"], rngs={"dropout": KEY})
            return (y * weights).sum(), (y, new)

        return [jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x, net) for net in map(Net, (False, True))]

    chex.assert_trees_all_close(*answers(weights), rtol=1e-5, atol=1e-5)
    for gradients, _ in answers(weights.at[0, 0, 0, 0].set(jnp.nan)):
        assert np.isnan(gradients[1]).any()


# Bricks


@pytest.mark.parametrize("order", ["post", "last", "pre"])
def test_conv_norm_is_torchs_in_every_order(order):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x = images(4, 7, 7, 4)
    norm = norm_factory("batch", epsilon=1e-2, momentum=0.7)
    brick = ConvNorm(6, (3, 5), 2, dilation=2, groups=2, order=order, norm=norm, activation=nn.silu)
    variables = draw(brick, x)
    p, moments = variables["params"], variables["batch_stats"]["norm"]
    mean, var, scale, bias = (
        torch.from_numpy(np.float64(v))
        for v in (*map(moments.get, ("mean", "var")), p["norm"]["scale"], p["norm"]["bias"])
    )
    steps = {
        "conv": lambda y: f.conv2d(y, kernel_to_torch(torch, p["conv"]["kernel"]), None, 2, (2, 4), 2, 2),
        "norm": lambda y: f.batch_norm(y, mean, var, scale, bias, True, 0.3, 1e-2),
        "activation": f.silu,
    }
    words = {"post": "conv norm activation", "last": "conv activation norm", "pre": "norm activation conv"}
    y = to_torch(torch, x)
    for word in words[order].split():
        y = steps[word](y)
    ours, new = brick.apply(variables, x, train=True, mutable=["batch_stats"])
    assert_allclose(ours, from_torch(y), rtol=1e-4, atol=1e-5)
    assert_allclose(new["batch_stats"]["norm"]["mean"], mean, rtol=1e-4, atol=1e-5)
    assert_allclose(new["batch_stats"]["norm"]["var"], var, rtol=1e-4)


def test_conv_norm_has_a_bias_where_it_has_no_norm():
    def names(**options):
        params = jax.eval_shape(lambda: ConvNorm(3, **options).init(KEY, images(1, 4, 4, 2), train=False))["params"]
        return {"/".join(path) for path in flax.traverse_util.flatten_dict(params)}

    assert names() == {"conv/kernel", "norm/scale", "norm/bias"}
    assert names(norm=None) == {"conv/kernel", "conv/bias"}
    assert names(norm=None, use_bias=False) == {"conv/kernel"}
    for options, message in (
        ({"order": "first"}, "order 'first' is unknown"),
        ({"norm": "batch"}, "norm 'batch' must be a module factory"),
    ):
        with pytest.raises(InputError, match=message):
            names(**options)


def test_squeeze_excite_is_torchs():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x = images(2, 5, 4, 6)
    block = SqueezeExcite(3, activation=nn.silu, gate=nn.hard_sigmoid)
    variables = draw(block, x, train=None)
    tx, p = to_torch(torch, x), variables["params"]

    def pointwise(y, name):
        return f.conv2d(y, kernel_to_torch(torch, p[name]["kernel"]), torch.from_numpy(np.float64(p[name]["bias"])))

    gate = f.hardsigmoid(pointwise(f.silu(pointwise(f.adaptive_avg_pool2d(tx, 1), "reduce")), "expand"))
    assert_allclose(block.apply(variables, x), from_torch(tx * gate), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("norm", "groups"), [("group", 16), ("layer", 1), ("instance", 48)])
def test_norms_of_one_example_are_torchs_group_norm(norm, groups):
    """32 groups as far as they divide the features: 16 for 48. One group: layer norm; 48: instance norm."""
    torch = pytest.importorskip("torch")
    x = images(2, 5, 4, 48)
    module = NormActivation(activation=lambda x: x, norm=norm_factory(norm))
    variables = draw(module, x)
    assert set(variables) == {"params"}
    scale, bias = (torch.from_numpy(np.float64(variables["params"]["norm"][name])) for name in ("scale", "bias"))
    expected = from_torch(torch.nn.functional.group_norm(to_torch(torch, x), groups, scale, bias))
    for train in (True, False):
        assert_allclose(module.apply(variables, x, train=train), expected, rtol=1e-4, atol=1e-5)


def test_pre_activation_branch_starts_with_the_norm_unless_activated():
    x = images(2, 4, 4, 3)
    assert "norm1" in Branch((4,), (3,), (1,), "pre").init(KEY, x, train=False)["params"]
    assert "norm1" not in Branch((4,), (3,), (1,), "pre", activated=True).init(KEY, x, train=False)["params"]


def test_before_is_shared_by_shortcut_and_branch():
    x = images(2, 4, 4, 3)
    unit = Unit(Branch((5,), (1,), (1,), "pre", activated=True), Add(), Projection(5, norm=None), NormActivation())
    variables = unit.init(KEY, x, train=False)
    kernels = [
        variables["params"][part][conv]["kernel"][0, 0] for part, conv in (("branch", "conv1"), ("shortcut", "conv"))
    ]
    expected = nn.relu(x / np.sqrt(1 + 1e-5)) @ (kernels[0] + kernels[1])
    assert_allclose(unit.apply(variables, x, train=False), expected, rtol=1e-4, atol=1e-5)


# Stacks


FIXUP = {"norm": None, "branch_init": "fixup", "branches": 3}
SKIP_INIT = {"norm": None, "join": SkipInit}


@pytest.mark.parametrize(
    ("order", "depth", "unroll", "masked", "options"),
    [(order, *case, {}) for order in ("post", "pre") for case in ((1, 1, False), (3, 1, True), (3, 2, False))]
    + [("post", 3, 1, False, FIXUP), ("pre", 3, 2, False, FIXUP), ("post", 3, 1, False, SKIP_INIT)],
)
def test_scanned_equals_unrolled(order, depth, unroll, masked, options):
    x = images(4, 6, 6, 4)
    weights = images(*x.shape, seed=1)
    mask = jnp.arange(4) < 3 if masked else None
    unrolled = stack(basic_unit(order, **options), depth, scan=False)
    scanned = stack(basic_unit(order, **options), depth, unroll=unroll)
    variables = draw(unrolled, x)
    stacked = restack(variables, depth)
    shapes = jax.eval_shape(lambda: scanned.init(KEY, x, train=False))
    chex.assert_trees_all_equal_shapes_and_dtypes(stacked, shapes)

    y, moments, gradients = loss_and_gradients(scanned, stacked, x, weights, mask=mask)
    y2, moments2, gradients2 = loss_and_gradients(unrolled, variables, x, weights, mask=mask)
    assert_allclose(y, y2, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(moments, restack({"b": moments2}, depth).get("b", {}), rtol=1e-4, atol=1e-5)
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


class Scale(nn.Module):
    """x times a number of this unit alone, plus its parameter."""

    @nn.compact
    def __call__(self, x, *, train, mask=None, factor):
        return x * factor + self.param("bias", nn.initializers.normal(), x.shape[-1:])[None]


def test_own_numbers_reach_their_units():
    x, factors = images(2, 3), [1.5, -2.0, 0.5]
    scanned, unrolled = (stack(Scale(), 3, scan=scan, per_unit={"factor": factors}) for scan in (True, False))
    variables = scanned.init(KEY, x, train=False)
    expected = np.asarray(x)
    for factor, bias in zip(factors, np.asarray(variables["params"]["unit"]["bias"]), strict=True):
        expected = expected * factor + bias
    assert_allclose(scanned.apply(variables, x, train=False), expected, rtol=1e-5)
    assert_allclose(unrolled.apply(unstack_units(variables), x, train=False), expected, rtol=1e-5)
    with pytest.raises(InputError, match="per_unit factor has 2 numbers for 3 units"):
        stack(Scale(), 3, per_unit={"factor": [1.0, 2.0]})


def test_units_are_stacked_and_unstacked():
    """Stacks within units too; the tree without stacks stays, NumPy arrays stay NumPy's, outputs stay."""
    x = images(2, 4, 4, 4)

    def net(scan):
        inner = stack(basic_unit(), 2, scan=scan)
        return nn.Sequential([nn.Dense(4), Twice(inner, scan)])

    variables = jax.device_get(draw(net(True), x, train=None))
    apart = unstack_units(variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(apart, jax.eval_shape(lambda: net(False).init(KEY, x)))
    assert {type(leaf) for leaf in jax.tree.leaves(apart)} == {np.ndarray}
    chex.assert_trees_all_equal(stack_units(apart), variables)
    assert_allclose(net(True).apply(variables, x), net(False).apply(apart, x), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="leading axes \\[2, 3\\]"):
        unstack_units({"unit": {"a": np.zeros(2), "b": np.zeros(3)}})


class Twice(nn.Module):
    """A stack of two stacks."""

    inner: nn.Module
    scan: bool

    @nn.compact
    def __call__(self, x):
        return stack(self.inner, 2, scan=self.scan, name="outer")(x, train=False)


@pytest.mark.parametrize("scan", [True, False])
def test_a_zero_initialized_branch_is_the_identity(scan):
    x = images(3, 5, 5, 4)
    net = stack(basic_unit("pre", kernel_init=initializers.zeros), 4, scan=scan)
    variables = net.init(KEY, x, train=False)
    for train in (True, False):
        assert_allclose(net.apply(variables, x, train=train, mutable=["batch_stats"])[0], x)


# Branches that start at zero

ZERO_STARTS = {  # order, options, what learns in the first step
    "zero_scale": ("post", {"branch_init": "zero_scale"}, {"branch/norm2/scale", "branch/norm2/bias"}),
    "skip_init": ("post", SKIP_INIT, {"join/alpha"}),
    "rezero": ("pre", {"join": SkipInit}, {"join/alpha"}),
    "fixup": ("post", FIXUP, {"branch/conv2/kernel", "branch/norm2/bias"}),
    "fixup_pre": ("pre", FIXUP, {"branch/conv2/kernel"}),
}


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", ZERO_STARTS)
def test_zero_starts_are_the_identity_and_learn(name, scan):
    """At first one parameter or two per branch have a gradient, after one step of descent all have."""
    order, options, first = ZERO_STARTS[name]
    x, weights = abs(images(3, 5, 5, 4)), images(3, 5, 5, 4, seed=1)
    net = stack(basic_unit(order, **options), 3, scan=scan)
    variables = jax.jit(lambda: net.init(KEY, x, train=False))()

    @jax.jit
    def gradient(params):
        return loss_and_gradients(net, {**variables, "params": params}, x, weights)

    def learning(gradients):
        return [
            {"/".join(path) for path, leaf in flax.traverse_util.flatten_dict(unit).items() if np.abs(leaf).max() > 0}
            for unit in per_unit(gradients, 3, scan)
        ]

    y, _, gradients = gradient(variables["params"])
    assert_allclose(y, x, rtol=1e-6)
    assert_allclose(net.apply(variables, x, train=False), x, rtol=1e-6)
    assert learning(gradients) == [first] * 3
    stepped = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], gradients)
    everything = {"/".join(path) for path in flax.traverse_util.flatten_dict(per_unit(stepped, 3, scan)[0])}
    assert learning(gradient(stepped)[2]) == [everything] * 3


@pytest.mark.parametrize("features", [(40, 60), (40, 30, 60)])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_fixup_starts_small_and_at_zero(features, order):
    """L^(-1 / (2m - 2)) of He's deviation at four sigma, with m = 2 and m = 3 layers in the branch (rule 2)."""
    m, depth = len(features), 54
    branch = Branch(features, (3,) * m, (1,) * m, order, norm=None, branch_init="fixup", branches=depth)
    params = jax.jit(lambda: branch.init(KEY, images(1, 3, 3, 40), train=False))()["params"]
    for i, width in enumerate(features[:-1]):
        kernel = np.float64(params[f"conv{i + 1}"]["kernel"])
        deviation = depth ** (-1 / (2 * m - 2)) * np.sqrt(2 / (9 * width))
        assert abs(np.mean(kernel**2) / deviation**2 - 1) < 4 * np.sqrt(2 / kernel.size)
    assert (params[f"conv{m}"]["kernel"] == 0).all()
    scalars = {key: leaf for key, leaf in flax.traverse_util.flatten_dict(params).items() if "kernel" not in key}
    assert {leaf.shape for leaf in scalars.values()} == {()}
    assert {key: float(leaf) for key, leaf in scalars.items()} == {
        **{(f"{part}{i + 1}", "bias"): 0.0 for part in ("shift", "norm") for i in range(m)},
        ("scale",): 1.0,
    }


def test_a_step_of_fixup_does_not_grow_with_depth():
    """A small step on the kernels changes the loss by |gradient|^2: alike for 32 units and 8; unscaled, 4 times."""
    x, weights = images(2, 5, 5, 8), images(2, 5, 5, 8, seed=1)

    def step(depth, branches):
        net = stack(basic_unit("pre", 8, norm=None, branch_init="fixup", branches=branches), depth)
        variables = jax.jit(lambda: net.init(KEY, x, train=False))()
        gradients = loss_and_gradients(net, variables, x, weights)[2]["unit"]["branch"]
        return sum((gradients[conv]["kernel"] ** 2).sum() for conv in ("conv1", "conv2"))

    assert_allclose(step(32, 32) / step(8, 8), 1, rtol=0.15)
    assert_allclose(step(32, 8) / step(8, 8), 4, rtol=0.15)


@pytest.mark.parametrize("windows", [(3, 3), (1, 3, 1)])
def test_a_fixup_unit_is_its_authors(windows):
    """FixupBasicBlock and FixupBottleneck of the paper's code, in PyTorch."""
    torch = pytest.importorskip("torch")
    m = len(windows)
    x = images(2, 5, 5, 4)
    features = (6, 4) if m == 2 else (3, 3, 4)
    branch = Branch(features, windows, (1,) * m, norm=None, branch_init="fixup", branches=1)
    unit = Unit(branch, Add(), activation=nn.relu)
    variables = draw(unit, x)
    p = jax.tree.map(lambda a: torch.from_numpy(np.array(a, np.float64)), variables["params"]["branch"])
    identity = y = torch.from_numpy(np.float64(x)).permute(0, 3, 1, 2)
    for i, window in enumerate(windows):
        kernel = p[f"conv{i + 1}"]["kernel"].permute(3, 2, 0, 1)
        y = torch.nn.functional.conv2d(y + p[f"shift{i + 1}"]["bias"], kernel, padding=window // 2)
        if i < m - 1:
            y = torch.relu(y + p[f"norm{i + 1}"]["bias"])
    y = torch.relu(y * p["scale"] + p[f"norm{m}"]["bias"] + identity)
    assert_allclose(unit.apply(variables, x, train=True), y.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5)


def test_skip_init_weighs_the_branch():
    skip, branch = images(2, 3), images(2, 3, seed=1)
    y = SkipInit().apply({"params": {"alpha": jnp.float32(0.25)}}, skip, branch, train=True)
    assert_allclose(y, skip + branch / 4, rtol=1e-6)
    with pytest.raises(InputError, match="SkipInit: the skip has shape"):
        SkipInit().init(KEY, skip, branch[:, :1], train=True)


@pytest.mark.parametrize("options", [FIXUP, SKIP_INIT])
def test_zero_starts_in_bfloat16(options):
    x = images(2, 4, 4, 4).astype(jnp.bfloat16)
    net = stack(basic_unit(dtype=jnp.bfloat16, **options), 2)
    variables = jax.eval_shape(lambda: net.init(KEY, x, train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert jax.eval_shape(lambda v: net.apply(v, x, train=False), variables).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (lambda: basic_unit(norm="batch"), "norm 'batch' must be a module factory or None"),
        (lambda: basic_unit(norm=True), "norm True must be a module factory or None"),
        (lambda: basic_unit(branch_init="fix-up"), "branch_init 'fix-up' is unknown; did you mean 'fixup'"),
        (lambda: basic_unit(**FIXUP | {"branches": 0}), "branches 0 must be the network's number of branches"),
        (lambda: basic_unit(branch_init="fixup"), "fixup takes the place of normalization; set norm none"),
        (lambda: basic_unit(norm=None, branch_init="zero_scale"), "zero_scale needs a normalization"),
        (lambda: basic_unit("pre", branch_init="zero_scale"), "zero_scale needs order post"),
        (lambda: basic_unit(branch_init="zero_scale", join=SkipInit), "start the branch at 0 twice"),
        (lambda: basic_unit(**FIXUP, join=SkipInit), "start the branch at 0 twice"),
        (lambda: basic_unit(**FIXUP, join=Plain), "needs a skip, and the join Plain has none"),
        (lambda: basic_unit(branch_init="skip_init"), "skip_init is the join SkipInit"),
        (lambda: NormActivation(norm="layer"), "norm 'layer' must be a module factory"),
        (lambda: Projection(4, norm="none"), "norm 'none' must be a module factory"),
    ],
)
def test_starts_that_cannot_learn(unit, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: unit().init(KEY, images(2, 4, 4, 4), train=False))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar_resnet", {"norm": "bach"}, "norm 'bach' is unknown; did you mean 'batch'"),
        ("cifar_resnet", {"branch_init": "fix-up"}, "did you mean 'fixup'"),
        ("cifar_preact", {"branch_init": "zero_scale"}, "zero_scale needs order post"),
        ("cifar_resnet", {"branch_init": "fixup"}, "fixup takes the place of normalization"),
        ("resnet18", {"norm": "none", "branch_init": "zero_scale"}, "zero_scale needs a normalization"),
        ("stochastic_depth", {"branch_init": "skip_init"}, "cannot replace Drop"),
        ("monster", {"branch_init": "fixup"}, "fixup takes the place of normalization"),
        ("plain18", {"branch_init": "skip_init"}, "no option 'branch_init'"),
    ],
)
def test_networks_that_cannot_learn(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)
    with pytest.raises(InputError, match="skip_init needs a skip, and the join Plain has none"):
        imagenet((1, 1), join=Plain, branch_init="skip_init")


def test_without_normalization_depth_does_not_move_the_variance():
    """The last stage's output at the start: the same for 20 and 110 layers, where plain addition explodes."""
    x = images(4, 8, 8, 3)

    def variance(depth, **options):
        net = zoo.create("cifar_resnet", depth=depth, width=4, norm="none", **options)
        fixup = options.get("branch_init") == "fixup"

        @jax.jit
        def forward():
            y, variables = net.init_with_output(
                KEY, x, train=False, capture_intermediates=lambda module, _: module.name == "stage3_rest"
            )
            kernels = variables["params"]["stage3_rest"]["unit"]["branch"]["conv1"]["kernel"]
            return y, variables["intermediates"]["stage3_rest"]["__call__"][0], kernels

        logits, features, kernels = forward()
        branches = (depth - 2) // 2 if fixup else 1  # Fixup's L: all branches of the network
        assert abs(np.mean(np.float64(kernels) ** 2) * branches * 9 * 16 / 2 - 1) < 4 * np.sqrt(2 / kernels.size)
        assert (np.abs(logits).max() == 0) == fixup  # the classifier's kernel starts at 0
        return float((features**2).mean())

    for options in ({"branch_init": "fixup"}, {"branch_init": "skip_init"}):
        shallow = variance(20, **options)
        assert 0.1 < shallow < 10
        assert_allclose(variance(110, **options), shallow, rtol=1e-5)
    assert variance(110) > 1e6


CONVS = 1_727_962 - 2 * (16 + 36 * 112)  # of cifar_resnet110, less 2 per normalized feature: kernels and the head
STARTS = {
    "fixup": (
        "cifar_resnet110",
        {"norm": "none", "branch_init": "fixup"},
        CONVS + 54 * 5 + 2,
    ),  # as the paper's code: 5 per branch, stem, head
    "zero_scale": ("cifar_resnet110", {"branch_init": "zero_scale"}, 1_727_962),
    "skip_init": ("cifar_resnet110", {"norm": "none", "branch_init": "skip_init"}, CONVS + (16 + 36 * 112) + 54),
    "rezero": ("cifar_resnet110", {"branch_init": "skip_init"}, 1_727_962 + 54),
    # 53,120 numbers of normalization; 7 in each of 16 branches, 1 in each of 4 projections, the stem, the head
    "fixup_50": ("resnet50", {"norm": "none", "branch_init": "fixup"}, 25_557_032 - 53_120 + 16 * 7 + 4 + 2),
    "fixup_pre": ("cifar_preact164", {"norm": "none", "branch_init": "fixup"}, None),
}


@pytest.mark.parametrize("name", STARTS)
def test_parameters_of_zero_starts(name):
    model, options, count = STARTS[name]
    params = jax.eval_shape(lambda: zoo.create(model, **options).init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
    leaves = flax.traverse_util.flatten_dict(params["params"])
    if count is None:  # kernels as ever; 54 branches with 7 numbers, of which one is in `before` where shapes change
        usual = jax.eval_shape(lambda: zoo.create(model).init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))["params"]
        kernels = [leaf for path, leaf in flax.traverse_util.flatten_dict(usual).items() if path[-1] == "kernel"]
        count = sum(leaf.size for leaf in kernels) + 10 + 54 * 7 + 3 + 2  # the head's bias, projections, final and head
    assert sum(leaf.size for leaf in leaves.values()) == count


def test_stacks_with_numbers_of_their_own_can_be_hashed():
    unit = Unit(Branch((2,), (1,), (1,)), Drop())
    assert hash(stack(unit, 2, per_unit={"survival": [1, 0.5]})) == hash(
        stack(unit, 2, per_unit={"survival": [1, 0.5]})
    )
