"""Inception v3, v4, Inception-ResNet v2, and the tables of branches that they are made from."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.units import norm_factory, stack_units, unstack_units
from deepjax.zoo import googlenet, inception, inception_v4
from deepjax.zoo.steps import (
    Auxiliary,
    Branches,
    Convolve,
    Depthwise,
    LocalNorm,
    NetworkOptions,
    Parallel,
    Pool,
    Repeat,
    Residual,
    pool,
    run,
)  # fmt: skip
from deepjax.zoo.table import TableNetwork

pytestmark = pytest.mark.slow  # large programs; tests/zoo/test_zoo.py has the fast checks of every network

KEY = jax.random.key(0)
NAMES = ("inception_v3", "inception_v4", "inception_resnet_v2")


@cache
def abstract(name, size=299, train=False, **options):
    """(variables, answer) of a network, as shapes."""
    network = zoo.create(name, **options)
    x = jnp.zeros((2, size, size, 3))

    rngs = {"params": KEY, "dropout": KEY}
    answer, variables = jax.eval_shape(lambda: network.init_with_output(rngs, x, train=train))
    return variables, answer


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def draw(module, x):
    """Random numbers in place of every variable."""
    rng = np.random.default_rng(0)

    def one(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        name = path[-1].key
        if name == "kernel":
            return noise * np.sqrt(2 / np.prod(leaf.shape[-4:-1]), dtype=np.float32)
        return {"scale": 1 + 0.2 * noise, "bias": 0.2 * noise, "mean": 0.1 * noise, "var": 1 + 0.5 * abs(noise)}[name]

    shapes = jax.eval_shape(lambda: module.init(KEY, x, train=False))
    return jax.tree_util.tree_map_with_path(one, shapes)


def images(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


# Counts and shapes


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [  # torchvision's, the first; timm's, the last two
        ("inception_v3", {}, 27_161_264),
        ("inception_v3", {"auxiliary": False}, 23_834_568),
        ("inception_v4", {}, 42_679_816),
        ("inception_resnet_v2", {}, 55_843_464),
    ],
)
def test_parameters(name, options, parameters):
    assert count(abstract(name, **options)[0]["params"]) == parameters


MAPS = {
    "inception_v3": ((35, 35, 192), (35, 35, 288), (17, 17, 768), (8, 8, 2048)),
    "inception_v4": ((35, 35, 384), (35, 35, 384), (17, 17, 1024), (8, 8, 1536)),  # figure 9
    "inception_resnet_v2": ((35, 35, 192), (35, 35, 320), (17, 17, 1088), (8, 8, 1536)),
}


@pytest.mark.parametrize("name", NAMES)
def test_maps(name):
    variables, maps = abstract(name, features_only=True)
    stages = (
        ("stem", "stage5", "stage6", "stage7") if name == "inception_v3" else ("stem", "stage1", "stage2", "stage3")
    )
    assert {stage: leaf.shape[1:] for stage, leaf in maps.items()} == dict(zip(stages, MAPS[name], strict=True))
    assert not any(key.startswith(("auxiliary", "head")) for key in variables["params"])
    features = abstract(name, return_logits=False)[1]
    chex.assert_shape(features, (2, MAPS[name][-1][-1]))


def test_equal_modules_are_scanned():
    for name, depths in (("inception_resnet_v2", (10, 20, 9)), ("inception_v4", (4, 7, 3))):
        params = abstract(name)[0]["params"]
        for stage, depth in enumerate(depths, 1):
            units = params[f"stage{stage}_units"]
            assert set(units) == {"unit"}
            assert {leaf.shape[0] for leaf in jax.tree.leaves(units)} == {depth}
    unrolled = abstract(name, scan=False)[0]["params"]
    chex.assert_trees_all_equal_shapes(jax.eval_shape(stack_units, unrolled), params)


# The auxiliary head of Inception v3


def test_head_answers_in_training_only():
    variables, logits = abstract("inception_v3", num_classes=7)
    chex.assert_shape(logits, (2, 7))
    trained, answers = abstract("inception_v3", train=True, num_classes=7)
    assert [leaf.shape for leaf in answers] == [(2, 7), (2, 7)]
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, trained)
    assert zoo.create("inception_v3").auxiliary_weight == 0.4


def test_small_images_are_evaluated_but_do_not_train_the_head():
    small, logits = abstract("inception_v3", size=75, num_classes=7)
    chex.assert_shape(logits, (2, 7))
    chex.assert_trees_all_equal_shapes_and_dtypes(small, abstract("inception_v3", num_classes=7)[0])
    network = zoo.create("inception_v3")
    for call in (network.init, lambda *a, **k: network.apply({}, a[1], rngs={"dropout": a[0]}, **k)):
        with pytest.raises(InputError, match="298x299 is below the minimum of 299x299 for training the auxiliary"):
            call(KEY, jnp.zeros((1, 298, 299, 3)), train=True)
    chex.assert_shape(abstract("inception_v3", size=75, train=True, num_classes=7, auxiliary=False)[1], (2, 7))


OPTIONS = NetworkOptions(norm_factory("batch", epsilon=1e-3), zoo.network.INITS["he"])


@pytest.mark.parametrize("head", [inception.InceptionHead, googlenet.TORCH_HEAD])
def test_masked_rows_do_not_enter_a_heads_statistics(head):
    head, x = head(5, dropout=0.0, options=OPTIONS), images(6, 17, 17, 12)
    x[4:] += 100
    variables = draw(head, x)
    apply = jax.jit(lambda x, mask: head.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"]))
    answers, moments = apply(x, np.arange(6) < 4)
    expected, expected_moments = apply(x[:4], None)
    assert_allclose(answers[:4], expected, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(moments, expected_moments, rtol=1e-3, atol=1e-5)


def test_head_numbers():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    head, x = inception.InceptionHead(5, 0.0, OPTIONS), images(2, 18, 17, 12)
    variables = draw(head, x)
    flat = {k: torch.tensor(np.array(v)) for k, v in flatten_dict(variables, sep="/").items()}
    y = f.avg_pool2d(torch.tensor(np.moveaxis(x, -1, 1).copy()), 5, 3)
    for name in ("conv1", "conv2"):
        y = f.conv2d(y, flat[f"params/{name}/conv/kernel"].permute(3, 2, 0, 1))
        mean, var = (flat[f"batch_stats/{name}/norm/{k}"] for k in ("mean", "var"))
        scale, bias = (flat[f"params/{name}/norm/{k}"] for k in ("scale", "bias"))
        y = f.relu(f.batch_norm(y, mean, var, scale, bias, eps=1e-3))
    expected = y.mean((2, 3)) @ flat["params/head/kernel"] + flat["params/head/bias"]
    assert_allclose(jax.jit(lambda v: head.apply(v, x, train=False))(variables), expected, rtol=1e-4, atol=1e-4)


# Modules


def torch_conv(torch, variables):
    """conv(x, name, stride, valid): convolution, batch norm of running moments, ReLU, by our names."""
    f = torch.nn.functional
    flat = {k: torch.tensor(np.array(v)) for k, v in flatten_dict(variables, sep="/").items()}

    def conv(x, name, stride=1, valid=False):
        kernel = flat[f"params/{name}/conv/kernel"].permute(3, 2, 0, 1)
        padding = (0, 0) if valid else tuple(size // 2 for size in kernel.shape[2:])
        x = f.conv2d(x, kernel, stride=stride, padding=padding)
        mean, var = (flat[f"batch_stats/{name}/norm/{k}"] for k in ("mean", "var"))
        scale, bias = (flat[f"params/{name}/norm/{k}"] for k in ("scale", "bias"))
        return f.relu(f.batch_norm(x, mean, var, scale, bias, eps=1e-3))

    return f, conv, flat


def assert_module_is(module, x, reference):
    """`reference(f, conv, x, flat)` in PyTorch gives what the module gives."""
    torch = pytest.importorskip("torch")
    variables = draw(module, x)
    f, conv, flat = torch_conv(torch, variables)
    expected = reference(f, conv, torch.tensor(np.moveaxis(x, -1, 1).copy()), flat)
    ours = jax.jit(lambda v: module.apply(v, x, train=False))(variables)
    assert_allclose(np.moveaxis(ours, -1, 1), expected, rtol=1e-3, atol=1e-4)


WIDE, TALL, FORK = (1, 7), (7, 1), [(1, 3), (3, 1)]


@pytest.mark.parametrize(
    ("branches", "windows"),
    [  # of convolutions larger than 1x1, in order
        (inception_v4.STEM_V4[2].branches, [(3, 3), WIDE, TALL, (3, 3)]),
        (inception_v4.B, [WIDE, TALL, TALL, WIDE, TALL, WIDE]),
        (inception_v4.C, [*FORK, (3, 1), (1, 3), *FORK]),
        (inception_v4.TO_8, [(3, 3), WIDE, TALL, (3, 3)]),
        (inception_v4.RESIDUAL_B, [WIDE, TALL]),
        (inception_v4.RESIDUAL_C, [(1, 3), (3, 1)]),
    ],
)
def test_factorized_windows(branches, windows):
    params = jax.eval_shape(lambda: Branches(branches, OPTIONS).init(KEY, jnp.zeros((1, 9, 9, 2)), train=False))[
        "params"
    ]
    kernels = [params[name]["conv"]["kernel"].shape[:2] for name in sorted(params)]
    assert [window for window in kernels if window != (1, 1)] == windows


def test_v4_module_with_forks():
    def reference(f, conv, x, flat):
        y, z = conv(x, "branch2_conv1"), x
        for j in (1, 2, 3):
            z = conv(z, f"branch3_conv{j}")
        return np.concatenate(
            [
                conv(x, "branch1_conv1"),
                conv(y, "branch2_conv2a"),
                conv(y, "branch2_conv2b"),
                conv(z, "branch3_conv4a"),
                conv(z, "branch3_conv4b"),
                conv(f.avg_pool2d(x, 3, 1, 1, count_include_pad=False), "branch4_conv1"),
            ],
            1,
        )

    assert_module_is(Branches(inception_v4.C, OPTIONS), images(2, 4, 5, 6), reference)


def test_v4_reduction():
    def reference(f, conv, x, flat):
        y = conv(conv(x, "branch1_conv1"), "branch1_conv2", 2, True)
        z = conv(conv(conv(x, "branch2_conv1"), "branch2_conv2"), "branch2_conv3")
        return np.concatenate([y, conv(z, "branch2_conv4", 2, True), f.max_pool2d(x, 3, 2)], 1)

    assert_module_is(Branches(inception_v4.TO_8, OPTIONS), images(2, 8, 7, 6), reference)


@pytest.mark.parametrize(("scale", "activated"), [(0.17, True), (1.0, False)])
def test_residual_module(scale, activated):
    def reference(f, conv, x, flat):
        def branch(i, length, y):
            for j in range(1, length + 1):
                y = conv(y, f"stage1_units/branch/branch{i}_conv{j}")
            return y

        name = "params/stage1_units/branch/expand"
        y = np.concatenate([branch(i, i, x) for i in (1, 2, 3)], 1)
        kernel = np.asarray(flat[f"{name}/kernel"])[0, 0]
        y = np.einsum("bchw,cd->bdhw", y, kernel) + np.asarray(flat[f"{name}/bias"])[None, :, None, None]
        y = np.asarray(x) + scale * y
        return np.maximum(y, 0) if activated else y

    step = Residual("stage1_units", inception_v4.RESIDUAL_A, scale, activated)
    network = TableNetwork({"stage1": (step,)}, features_only=True, norm=OPTIONS.norm)
    x = images(2, 4, 5, 6)

    class Map(zoo.network.Network):
        def init(self, *args, **options):
            return network.init(*args, **options)

        def apply(self, *args, **options):
            return network.apply(*args, **options)["stage1"]

    assert_module_is(Map(), x, reference)


def test_a_chain_of_other_steps():
    """Local response norm, separable convolution and pools, against formulas."""
    x = images(2, 6, 6, 4)
    y = run((LocalNorm(3, alpha=0.3, beta=0.5, k=2.0),), x, OPTIONS, train=False, mask=None)
    squares = np.pad(x**2, ((0, 0),) * 3 + ((1, 1),))
    near = squares[..., :-2] + squares[..., 1:-1] + squares[..., 2:]
    assert_allclose(y, x / np.sqrt(2 + 0.1 * near), rtol=1e-5)

    module = Branches(((Depthwise(2, 3, 2),),), OPTIONS)
    variables = draw(module, x)
    kernel = variables["params"]["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 1, 8)
    assert list(variables) == ["params"]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patch = padded[:, 2:5, 4:7]  # of output pixel (1, 2)
    expected = [(patch[..., i // 2] * kernel[..., 0, i]).sum((1, 2)) for i in range(8)]
    assert_allclose(module.apply(variables, x, train=False)[:, 1, 2], np.transpose(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", range(1, 9))
def test_pool_to_half_at_any_size(side):
    x = images(1, side, 8, 2)
    y = pool(x, Pool("max", 3, 2, None, ceil=True))
    half = -(-side // 2)
    assert y.shape == (1, half, 4, 2)
    low = side % 2  # TensorFlow's SAME: 1 on both sides of an odd one, 1 on the high side of an even one
    rows = [x[0, max(2 * i - low, 0) : 2 * i - low + 3, :3].max((0, 1)) for i in range(half)]
    assert_allclose(y[0, :, 0], rows)


# Options


@pytest.fixture(scope="module")
def small():
    """A network of both kinds of stack and a head, its variables, images, and its outputs."""
    branches = ((Convolve(2),), (Convolve(3, (1, 3)), Convolve(4, 3)))
    stages = {
        "stem": (Parallel("stem", ((Convolve(6, 3, 2),),)), Auxiliary(googlenet.TORCH_HEAD)),
        "stage1": (Repeat("a", Parallel("", branches), 2), Repeat("b", Residual("", branches, 0.3), 3)),
    }
    network = TableNetwork(stages, num_classes=3, scan=True)
    x = images(4, 9, 9, 3)
    variables = draw(network, x)
    return network, variables, x, outputs(network, variables, x)


def outputs(network, variables, x, mask=None):
    def loss(params):
        given = {**variables, "params": params}
        y, new = network.apply(given, x, train=True, mask=mask, mutable=["batch_stats"])
        y = jnp.stack(y)  # logits, auxiliary logits
        y = y if mask is None else y[:, mask]
        return (y**2).mean(), (y, new["batch_stats"])

    gradients, (y, moments) = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))
    return y, unstack_units(moments), unstack_units(gradients)


def test_unrolled_and_rematerialized_are_scanned(small):
    network, variables, x, expected = small
    unrolled = outputs(network.clone(scan=False), unstack_units(variables), x)
    chex.assert_trees_all_close(unrolled, expected, rtol=1e-3, atol=1e-5)
    again = outputs(network.clone(remat="unit"), variables, x)
    chex.assert_trees_all_close(again, expected, rtol=1e-3, atol=1e-5)


def test_masked_rows_enter_no_statistics(small):
    network, variables, x, expected = small
    padded = outputs(network, variables, np.concatenate([x, 100 + x[:2]]), np.arange(6) < 4)
    chex.assert_trees_all_close(padded, expected, rtol=1e-3, atol=1e-5)


def test_epsilon_and_norm_reach_every_convolution(small):
    network, variables, x, (y, _, _) = small
    other = network.clone(norm=norm_factory("batch", epsilon=10.0))
    seen = jax.jit(lambda v: other.apply(v, x, train=True, mutable=["batch_stats"])[0])(variables)
    assert not np.allclose(seen, y, rtol=0.1)
    for norm in ("none", "group", "layer", "instance"):
        other = jax.eval_shape(lambda n=norm: network.clone(norm=n).init(KEY, x, train=True))
        assert list(other) == ["params"]


@pytest.mark.parametrize("name", NAMES)
def test_the_minimum_size_is_the_smallest_that_works(name):
    network = zoo.create(name)
    assert network.min_size == 75
    chex.assert_shape(abstract(name, size=75, dtype=jnp.bfloat16)[1], (2, 1000))
    with pytest.raises(InputError, match="do not fit|has fewer|pixels, more than x"):
        jax.eval_shape(lambda: network.clone(min_size=1).init(KEY, jnp.zeros((1, 74, 74, 3)), train=False))


def test_dtype():
    for name in NAMES:
        variables, logits = abstract(name, size=75, dtype=jnp.bfloat16)
        assert logits.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [({"norm": "bach"}, "norm 'bach'"), ({"dropout": -0.1}, "dropout -0.1"), ({"num_classes": 0}, "num_classes 0")],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)


def test_usual_dropout():
    rates = {name: zoo.create(name).dropout for name in NAMES}
    assert rates == {"inception_v3": 0.5, "inception_v4": 0.2, "inception_resnet_v2": 0.2}


def test_torch_names_are_of_torchs_form_alone():
    for network in (zoo.create("inception_v3", norm="none"), zoo.create("inception_v4")):
        with pytest.raises(InputError, match="torchvision has no such network"):
            network.torch_names()
