"""Branches and what they are built from, against PyTorch: orders, groups, norms, dropout, recomputation."""

from functools import partial

import chex
import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.layers import Conv
from deepjax.trace import around_calls
from deepjax.units import (
    Add,
    Branch,
    ConvNorm,
    NormActivation,
    Projection,
    SqueezeExcite,
    Unit,
    norm_factory,
    recompute,
)
from helpers import draw_variables, from_torch, kernel_to_torch, random_arrays, to_torch

KEY = jax.random.key(0)


def images(*shape, seed=0):
    return random_arrays(seed, shape)[0]


def refuses(message, module, x):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: module.init(KEY, x, train=False))


# Branches


def test_groups_of_a_branch_are_torchs():
    torch = pytest.importorskip("torch")
    x = images(2, 5, 5, 4)
    branch = Branch((8, 6), (1, 3), (1, 2), norm=None, groups=(1, 2))
    variables = draw_variables(branch, x)
    y = to_torch(x)
    for i, (groups, stride) in enumerate(((1, 1), (2, 2))):
        p = variables["params"][f"conv{i + 1}"]
        kernel, bias = kernel_to_torch(p["kernel"]), torch.from_numpy(np.float64(p["bias"]))
        y = torch.relu(y) if i else y
        y = torch.nn.functional.conv2d(y, kernel, bias, stride, kernel.shape[-1] // 2, groups=groups)
    assert_allclose(jax.jit(partial(branch.apply, train=True))(variables, x), from_torch(y), rtol=1e-4, atol=1e-5)
    refuses("and groups \\(1,\\) must have equal lengths", Branch((8, 6), (1, 3), (1, 2), groups=(1,)), x)
    refuses("drops 'input' is unknown; did you mean 'inputs'", Branch((8, 6), (1, 3), (1, 2), drops="input"), x)


@pytest.mark.parametrize("drops", ["inputs", "outputs", "last"])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_dropout_of_a_branch_stands_where_it_says(order, drops):
    """Where all is dropped, what follows sees zeros; half dropped, half of the entries are 0, at four sigma."""
    x = images(2, 16, 16, 3)
    branch = Branch((4, 5), (3, 3), (1, 1), order, norm=None, drops=drops)
    variables = draw_variables(branch, x)

    @jax.jit
    def outputs():
        def observed(rate, train=True):  # what goes in and out of each convolution, and the output
            seen = {}

            def watch(module, run, args, kwargs):
                y = run(*args, **kwargs)
                if isinstance(module, Conv):
                    seen[module.name] = (args[0], y)
                return y

            with around_calls(watch):
                y = branch.copy(dropout=rate).apply(variables, x, train=train, rngs={"dropout": KEY})
            return seen, y

        return observed(1.0), observed(0.5), observed(0.5, train=False), observed(0.0)

    (seen, y), (halved, half), (_, evaluated), (_, plain) = jax.device_get(outputs())
    assert (seen["conv1"][0] != 0).mean() > 0.4  # the first convolution sees what there is
    inner = np.maximum(0 if drops == "outputs" else seen["conv1"][1], 0)
    if drops == "inputs":
        assert_allclose(seen["conv2"][0], 0)
        assert_allclose(y, seen["conv2"][1])
    else:
        assert_allclose(seen["conv2"][0], inner)
        assert_allclose(y, 0)
    dropped, kept = (halved["conv2"][0], inner) if drops == "inputs" else (half, evaluated)
    alive = kept != 0
    if drops != "outputs":
        assert abs((dropped[alive] == 0).mean() - 0.5) < 4 * np.sqrt(0.25 / alive.sum())
    assert_allclose(evaluated, plain)


def test_pre_activation_branch_starts_with_the_norm_unless_activated():
    def parts(**options):
        branch = Branch((4,), (3,), (1,), "pre", **options)
        return set(jax.eval_shape(lambda: branch.init(KEY, images(2, 4, 4, 3), train=False))["params"])

    assert parts() == {"norm1", "conv1"}
    assert parts(activated=True) == {"conv1"}


def test_before_is_shared_by_shortcut_and_branch():
    x = images(2, 4, 4, 3)
    unit = Unit(Branch((5,), (1,), (1,), "pre", activated=True), Add(), Projection(5, norm=None), NormActivation())
    variables = draw_variables(unit, x)
    p, norm = variables["params"], variables["params"]["before"]["norm"]
    moments = variables["batch_stats"]["before"]["norm"]
    shared = np.maximum((x - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) * norm["scale"] + norm["bias"], 0)
    expected = shared @ (p["branch"]["conv1"]["kernel"] + p["shortcut"]["conv"]["kernel"])[0, 0]
    assert_allclose(jax.jit(partial(unit.apply, train=False))(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_recomputed_branches_give_the_same():
    """Values, running moments and gradients, where dropout draws and a mask is closed over; NaN stays NaN."""
    x, weights = images(4, 5, 5, 3), images(4, 5, 5, 4, seed=1)
    mask = np.arange(4) < 3

    class Net(nn.Module):
        again: bool

        @nn.compact
        def __call__(self, x, *, train):
            def layer(branch, x):
                return branch(x, train=train, mask=mask)

            branch = Branch((4, 4), (3, 3), (1, 1), dropout=0.5, name="branch")
            return recompute(layer, branch, x) if self.again else layer(branch, x)

    variables, same = (draw_variables(net, x) for net in map(Net, (False, True)))
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, same)

    @jax.jit
    def answers(weights):
        def loss(params, x, net):
            call = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
            y, new = net.apply({**variables, "params": params}, x, **call)
            return (y * weights).sum(), (y, new)

        return [jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x, net) for net in map(Net, (False, True))]

    chex.assert_trees_all_close(*answers(weights), rtol=1e-5, atol=1e-5)
    weights[0, 0, 0, 0] = np.nan
    for gradients, _ in answers(weights):
        assert np.isnan(gradients[1]).any()


# Convolution, normalization, gates


@pytest.mark.parametrize("order", ["post", "last", "pre"])
def test_conv_norm_is_torchs_in_every_order(order):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x = images(4, 7, 7, 4)
    norm = norm_factory("batch", epsilon=1e-2, momentum=0.7)
    brick = ConvNorm(6, (3, 5), 2, dilation=2, groups=2, order=order, norm=norm, activation=nn.silu)
    variables = draw_variables(brick, x)
    p, moments = variables["params"], variables["batch_stats"]["norm"]
    mean, var, scale, bias = (
        torch.from_numpy(np.float64(v))
        for v in (*map(moments.get, ("mean", "var")), p["norm"]["scale"], p["norm"]["bias"])
    )
    steps = {
        "conv": lambda y: f.conv2d(y, kernel_to_torch(p["conv"]["kernel"]), None, 2, (2, 4), 2, 2),
        "norm": lambda y: f.batch_norm(y, mean, var, scale, bias, True, 0.3, 1e-2),
        "activation": f.silu,
    }
    words = {"post": "conv norm activation", "last": "conv activation norm", "pre": "norm activation conv"}
    y = to_torch(x)
    for word in words[order].split():
        y = steps[word](y)
    ours, new = jax.jit(partial(brick.apply, train=True, mutable=["batch_stats"]))(variables, x)
    assert_allclose(ours, from_torch(y), rtol=1e-4, atol=1e-5)
    assert_allclose(new["batch_stats"]["norm"]["mean"], mean, rtol=1e-4, atol=1e-5)
    assert_allclose(new["batch_stats"]["norm"]["var"], var, rtol=1e-4)


def test_conv_norm_has_a_bias_where_it_has_no_norm():
    x = images(1, 4, 4, 2)

    def names(**options):
        params = jax.eval_shape(lambda: ConvNorm(3, **options).init(KEY, x, train=False))["params"]
        return {"/".join(path) for path in flax.traverse_util.flatten_dict(params)}

    assert names() == {"conv/kernel", "norm/scale", "norm/bias"}
    assert names(norm=None) == {"conv/kernel", "conv/bias"}
    assert names(norm=None, use_bias=False) == {"conv/kernel"}
    refuses("order 'first' is unknown", ConvNorm(3, order="first"), x)
    refuses("norm 'batch' must be a module factory", ConvNorm(3, norm="batch"), x)


def test_squeeze_excite_is_torchs():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x, rng = images(2, 5, 4, 6), np.random.default_rng(0)
    block = SqueezeExcite(3, activation=nn.silu, gate=nn.hard_sigmoid)
    shapes = jax.eval_shape(lambda: block.init(KEY, x))
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    tx, p = to_torch(x), variables["params"]

    def pointwise(y, name):
        return f.conv2d(y, kernel_to_torch(p[name]["kernel"]), torch.from_numpy(np.float64(p[name]["bias"])))

    gate = f.hardsigmoid(pointwise(f.silu(pointwise(f.adaptive_avg_pool2d(tx, 1), "reduce")), "expand"))
    assert_allclose(jax.jit(block.apply)(variables, x), from_torch(tx * gate), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("norm", "groups"), [("group", 16), ("layer", 1), ("instance", 48)])
def test_norms_of_one_example_are_torchs_group_norm(norm, groups):
    """32 groups as far as they divide the features: 16 for 48. One group: layer norm; 48: instance norm."""
    torch = pytest.importorskip("torch")
    x = images(2, 5, 4, 48)
    module = NormActivation(activation=lambda x: x, norm=norm_factory(norm))
    variables = draw_variables(module, x)
    assert set(variables) == {"params"}
    scale, bias = (torch.from_numpy(np.float64(variables["params"]["norm"][name])) for name in ("scale", "bias"))
    expected = from_torch(torch.nn.functional.group_norm(to_torch(x), groups, scale, bias))
    for y in jax.jit(lambda v: [module.apply(v, x, train=train) for train in (True, False)])(variables):
        assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
