"""GoogLeNet, in torchvision's form and the paper's, and BN-Inception."""

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
from deepjax.zoo.googlenet import GoogLeNet, grid_pool

pytestmark = pytest.mark.slow  # large programs; tests/zoo/test_zoo.py has the fast checks of every network

KEY = jax.random.key(0)


@cache
def abstract(name, size=224, train=False, **options):
    """(variables, answer) of a network, as shapes."""
    network = zoo.create(name, **options)
    x = jnp.zeros((2, size, size, 3))

    rngs = {"params": KEY, "dropout": KEY}
    answer, variables = jax.eval_shape(lambda: network.init_with_output(rngs, x, train=train))
    return variables, answer


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def draw(name, size, **options):
    """(network, variables, images): random numbers in place of every variable, so that activations stay near 1."""
    network = zoo.create(name, **options)
    rng = np.random.default_rng(0)

    def one(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        name = path[-1].key
        if name == "kernel":
            return noise * np.sqrt(2 / np.prod(leaf.shape[:-1]), dtype=np.float32)
        return {"scale": 1 + 0.2 * noise, "bias": 0.2 * noise, "mean": 0.1 * noise, "var": 1 + 0.5 * abs(noise)}[name]

    x = rng.standard_normal((2, size, size, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: network.init(KEY, x, train=False))
    return network, jax.tree_util.tree_map_with_path(one, shapes), x


COUNTS = {  # torchvision's, Caffe's bvlc_googlenet and BN-Inception (which has 10,016 needless biases: 11,295,240)
    ("googlenet", ()): 13_004_888,
    ("googlenet", (("auxiliary", False),)): 6_624_904,
    ("googlenet_paper", ()): 13_378_280,
    ("googlenet_paper", (("auxiliary", False),)): 6_998_552,
    ("bn_inception", (("separable", False),)): 11_295_240 - 10_016,
    ("bn_inception", ()): 11_295_240 - 10_016 - 7 * 7 * 3 * 64 + 7 * 7 * 24 + 24 * 64,
}


@pytest.mark.parametrize("case", COUNTS)
def test_parameters(case):
    name, options = case
    assert count(abstract(name, **dict(options))[0]["params"]) == COUNTS[case]


TABLE = {  # column "params" of the paper's table 1, in 1,024 weights, and how far off its row's features put it
    ("stem/conv1", "stem/conv2"): (2.7, 0.1),
    ("stem/conv3", "stem/conv4"): (112, 0),
    ("stage3a",): (159, 1),
    ("stage3b",): (380, 1),
    ("stage4a",): (364, 3),
    ("stage4b",): (437, 1),
    ("stage4c",): (463, 35),
    ("stage4d",): (580, 11),
    ("stage4e",): (840, 7),
    ("stage5a",): (1072, 54),
    ("stage5b",): (1388, 21),
    ("head",): (1000, 0),
}


def test_weights_by_module_are_about_the_papers():
    params = flatten_dict(abstract("googlenet_paper", separable=True)[0]["params"], sep="/")
    for prefixes, (weights, off) in TABLE.items():
        kernels = [v.size for path, v in params.items() if path.startswith(prefixes) and path.endswith("kernel")]
        assert abs(sum(kernels) / 1024 - weights) <= off, prefixes


def test_maps_of_googlenet():
    for name in ("googlenet", "googlenet_paper"):
        variables, maps = abstract(name, features_only=True)
        sizes = {stage: leaf.shape[1:] for stage, leaf in maps.items()}
        assert sizes == {
            "stem": (28, 28, 192),
            "stage3": (28, 28, 480),
            "stage4": (14, 14, 832),
            "stage5": (7, 7, 1024),
        }
        assert not any(key.startswith(("auxiliary", "head")) for key in variables["params"])


def test_maps_of_bn_inception():
    maps = {stage: leaf.shape[1:] for stage, leaf in abstract("bn_inception", features_only=True)[1].items()}
    assert maps == {"stem": (28, 28, 192), "stage3": (14, 14, 576), "stage4": (7, 7, 1056), "stage5": (7, 7, 1024)}


# Auxiliary heads


@pytest.mark.parametrize("name", ["googlenet", "googlenet_paper"])
def test_heads_answer_in_training_only(name):
    variables, logits = abstract(name, size=64, num_classes=7)
    chex.assert_shape(logits, (2, 7))
    trained, answers = abstract(name, size=64, train=True, num_classes=7)
    assert [leaf.shape for leaf in answers] == [(2, 7)] * 3
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, trained)
    _, alone = abstract(name, size=64, train=True, num_classes=7, auxiliary=False)
    chex.assert_shape(alone, (2, 7))
    assert GoogLeNet.auxiliary_weight == 0.3
    assert zoo.create(name).auxiliary_weight == 0.3
    assert zoo.create("bn_inception").auxiliary_weight == 0


def test_pooled_features_come_without_heads():
    variables, features = abstract("googlenet", size=64, train=True, return_logits=False)
    chex.assert_shape(features, (2, 1024))
    assert "auxiliary1" not in variables["params"]


@pytest.mark.parametrize("side", [1, 3, 4, 7, 14, 15, 19])
def test_papers_heads_pool_to_4x4(side):
    x = np.random.default_rng(0).standard_normal((1, side, side, 2)).astype(np.float32)
    y = grid_pool(x)
    chex.assert_shape(y, (1, 4, 4, 2))
    if side == 14:  # 5x5 with stride 3
        windows = [[x[0, i : i + 5, j : j + 5].mean((0, 1)) for j in (0, 3, 6, 9)] for i in (0, 3, 6, 9)]
        assert_allclose(y[0], windows, rtol=1e-5, atol=1e-6)
    assert_allclose(grid_pool(jnp.ones_like(x)), 1, rtol=1e-6)


# Numbers


def torch_modules(torch, variables, epsilon):
    """Functions on x [batch, features, H, W]: convolution (with what follows it, and ReLU) and dense, by our names."""
    f = torch.nn.functional
    flat = {k: torch.tensor(np.array(v)).double() for k, v in flatten_dict(variables, sep="/").items()}

    def conv(x, name, stride=1):
        kernel = flat[f"params/{name}/conv/kernel"].permute(3, 2, 0, 1)
        bias = flat.get(f"params/{name}/conv/bias")
        x = f.conv2d(x, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2)
        if f"params/{name}/norm/scale" in flat:
            mean, var = (flat[f"batch_stats/{name}/norm/{k}"] for k in ("mean", "var"))
            scale, bias = (flat[f"params/{name}/norm/{k}"] for k in ("scale", "bias"))
            x = f.batch_norm(x, mean, var, scale, bias, eps=epsilon)
        return f.relu(x)

    def dense(x, name):
        return x @ flat[f"params/{name}/kernel"] + flat[f"params/{name}/bias"]

    return f, conv, dense, flat


def test_papers_form():
    torch = pytest.importorskip("torch")
    network, variables, images = draw(
        "googlenet_paper", 96, num_classes=5, dropout=0.0, auxiliary_dropout=0.0, separable=False
    )
    f, conv, dense, _ = torch_modules(torch, variables, 1e-3)

    def half(x):
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    def module(x, name):
        return torch.cat(
            [
                conv(x, f"{name}/branch1_conv1"),
                conv(conv(x, f"{name}/branch2_conv1"), f"{name}/branch2_conv2"),
                conv(conv(x, f"{name}/branch3_conv1"), f"{name}/branch3_conv2"),
                conv(f.max_pool2d(x, 3, 1, 1), f"{name}/branch4_conv1"),
            ],
            1,
        )

    def head(x, name):
        side = x.shape[-1]
        x = conv(f.avg_pool2d(x, side - 3 * (side // 4), side // 4), f"{name}/conv")
        return dense(f.relu(dense(x.permute(0, 2, 3, 1).flatten(1), f"{name}/hidden")), f"{name}/head")

    x = torch.tensor(np.moveaxis(images, -1, 1).copy()).double()
    x = f.local_response_norm(half(conv(x, "stem/conv1", 2)), 5)
    x = half(f.local_response_norm(conv(conv(x, "stem/conv2"), "stem/conv3"), 5))
    x = half(module(module(x, "stage3a"), "stage3b"))
    x = module(x, "stage4a")
    first = head(x, "auxiliary1")
    for letter in "bcd":
        x = module(x, f"stage4{letter}")
    second = head(x, "auxiliary2")
    x = half(module(x, "stage4e"))
    logits = dense(module(module(x, "stage5a"), "stage5b").mean((2, 3)), "head")
    answers = jax.jit(lambda v: network.apply(v, images, train=True))(variables)
    for ours, theirs in zip(answers, (logits, second, first), strict=True):
        assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max())
    evaluated = jax.jit(lambda v: network.apply(v, images, train=False))(variables)
    assert_allclose(evaluated, logits, rtol=1e-3, atol=1e-4 * logits.abs().max())


def test_bn_inception():
    torch = pytest.importorskip("torch")
    network, variables, images = draw("bn_inception", 64, num_classes=5)
    f, conv, dense, flat = torch_modules(torch, variables, 1e-5)

    def half(x):
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    def module(x, name, kind):
        stride, names = (2, "12") if kind is None else (1, "23")
        a, b = (f"{name}/branch{i}" for i in names)
        single = conv(conv(x, f"{a}_conv1"), f"{a}_conv2", stride)
        double = conv(conv(conv(x, f"{b}_conv1"), f"{b}_conv2"), f"{b}_conv3", stride)
        if kind is None:
            return torch.cat([single, double, half(x)], 1)
        pooled = f.avg_pool2d(x, 3, 1, 1) if kind == "avg" else f.max_pool2d(x, 3, 1, 1)
        parts = [conv(x, f"{name}/branch1_conv1"), single, double, conv(pooled, f"{name}/branch4_conv1")]
        return torch.cat(parts, 1)

    x = torch.tensor(np.moveaxis(images, -1, 1).copy()).double()
    kernel = flat["params/stem/conv1/kernel"].permute(3, 2, 0, 1)
    x = conv(f.conv2d(x, kernel, stride=2, padding=3, groups=3), "stem/conv2")
    x = half(conv(conv(half(x), "stem/conv3"), "stem/conv4"))
    kinds = {"3": ("avg", "avg", None), "4": ("avg", "avg", "avg", "avg", None), "5": ("avg", "max")}
    for stage, row in kinds.items():
        for letter, kind in zip("abcde", row, strict=False):
            x = module(x, f"stage{stage}{letter}", kind)
    logits = dense(x.mean((2, 3)), "head")
    ours = jax.jit(lambda v: network.apply(v, images, train=False))(variables)
    assert_allclose(ours, logits, rtol=1e-3, atol=1e-4 * logits.abs().max())


# Options and errors


def test_options_change_the_network():
    none = abstract("googlenet", size=64, norm="none")[0]
    assert "batch_stats" not in none
    assert "bias" in none["params"]["stage3a"]["branch1_conv1"]["conv"]
    group = abstract("googlenet", size=64, norm="group")[0]
    assert "batch_stats" not in group
    assert count(group["params"]) == count(abstract("googlenet")[0]["params"])
    assert "norm" in abstract("googlenet_paper", size=64, norm="batch")[0]["params"]["stage3a"]["branch1_conv1"]
    assert abstract("googlenet", size=64, dtype=jnp.bfloat16)[1].dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", ["dropout", "auxiliary_dropout"])
def test_dropout_where_it_says(rate):
    rates = {"dropout": 0.0, "auxiliary_dropout": 0.0}
    network, variables, x = draw("googlenet_paper", 32, num_classes=5, **rates | {rate: 0.9})
    apply = jax.jit(lambda key: network.apply(variables, x, train=True, rngs={"dropout": key}))
    answers = [apply(jax.random.key(i)) for i in (0, 1)]
    changed = [not np.array_equal(a, b) for a, b in zip(*answers, strict=True)]
    assert changed == ([True, False, False] if rate == "dropout" else [False, True, True])


@pytest.mark.parametrize(("name", "min_size"), [("googlenet", 15), ("googlenet_paper", 31), ("bn_inception", 7)])
def test_any_size_from_the_minimum(name, min_size):
    assert zoo.create(name).min_size == min_size
    for size in (min_size, 58):
        chex.assert_shape(jax.tree.leaves(abstract(name, size=size, train=True, num_classes=3)[1]), (2, 3))


@pytest.mark.parametrize("name", ["googlenet", "googlenet_paper", "bn_inception"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bach"}, "norm 'bach'"),
        ({"norm": "bach"}, "did you mean 'batch'"),
        ({"dropout": 1.5}, "dropout 1.5"),
        ({"num_classes": 0}, "num_classes 0"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)


def test_torch_names_are_of_torchs_form_alone():
    for network in (
        zoo.create("googlenet_paper"),
        zoo.create("googlenet_paper", norm="batch"),
        zoo.create("googlenet", norm="group"),
        zoo.create("bn_inception"),
    ):
        with pytest.raises(InputError, match="torchvision has no such network"):
            network.torch_names()
