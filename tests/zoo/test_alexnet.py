"""AlexNet and ZFNet: counts by layer, maps, and the forms that torchvision lacks against the papers' formulas."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import weights, zoo
from deepjax.errors import InputError
from deepjax.zoo.alexnet import LRN, AlexNet
from deepjax.zoo.steps import Convolve, Pool, run

KEY = jax.random.key(0)
HIDDEN = {"hidden2": 16_781_312, "head": 4_097_000, "hidden1": 37_752_832}
COUNTS = {
    "alexnet": HIDDEN | {"conv1": 23_296, "conv2": 307_392, "conv3": 663_936, "conv4": 884_992, "conv5": 590_080},
    "alexnet_paper": HIDDEN | {"conv1": 34_944, "conv2": 307_456, "conv3": 885_120, "conv4": 663_936, "conv5": 442_624},
    "zfnet": HIDDEN | {"conv1": 14_208, "conv2": 614_656, "conv3": 885_120, "conv4": 1_327_488, "conv5": 884_992},
}
TOTALS = {"alexnet": 61_100_840, "alexnet_paper": 60_965_224, "zfnet": 62_357_608}
SIDES = {"alexnet": (27, 13, 13, 13, 6), "alexnet_paper": (27, 13, 13, 13, 6), "zfnet": (55, 13, 13, 13, 6)}


@cache
def abstract(name):
    model = zoo.create(name)
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *model.usual_input)), train=False))


def output(model, side):
    return jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((2, side, side, 3)), train=False)[0])


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_maps(name):
    params = abstract(name)["params"]
    counts = {layer: sum(leaf.size for leaf in jax.tree.leaves(tree)) for layer, tree in params.items()}
    assert counts == COUNTS[name]
    assert sum(counts.values()) == TOTALS[name]
    model = zoo.create(name, features_only=True)
    maps = output(model, model.usual_input[0])
    assert tuple(maps[f"stage{i}"].shape[1] for i in range(1, 6)) == SIDES[name]
    assert maps["stage5"].shape == (2, 6, 6, 256)


@pytest.mark.parametrize(("name", "min_size"), [("alexnet", 63), ("alexnet_paper", 67), ("zfnet", 47)])
def test_the_minimum_size_is_the_smallest_that_works(name, min_size):
    model = zoo.create(name, num_classes=7)
    assert (model.min_size, output(model, min_size).shape) == (min_size, (2, 7))
    with pytest.raises(InputError, match="do not fit|too small|window"):
        output(model.clone(min_size=1), min_size - 1)


def paper_norm(x, n=5, k=2.0, alpha=1e-4, beta=0.75):
    """Krizhevsky et al. 2012, section 3.3, for x [..., features]."""
    features, y = x.shape[-1], np.empty_like(x)
    for i in range(features):
        near = x[..., max(0, i - n // 2) : min(features - 1, i + n // 2) + 1]
        y[..., i] = x[..., i] / (k + alpha * (near**2).sum(-1)) ** beta
    return y


def test_response_norm_is_the_papers():
    x = 100 * np.random.default_rng(0).normal(size=(2, 3, 3, 8))
    ours = jax.jit(lambda x: run((LRN,), x, None, train=False, mask=None))(np.float32(x))
    assert_allclose(ours, paper_norm(x), rtol=1e-5)


def random_variables(model, side, scale):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, side, side, 3)), train=False))
    return jax.tree.map(lambda a: rng.normal(0, scale, a.shape).astype(np.float32), shapes)


def torch_maps(name, params, x):
    """The maps of the five stages, in float64, as the papers describe them."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional

    def conv(x, i, **geometry):
        layer = params[f"conv{i}"]["conv"]
        kernel, bias = (torch.from_numpy(layer[k].astype(np.float64)) for k in ("kernel", "bias"))
        return f.relu(f.conv2d(x, kernel.permute(3, 2, 0, 1), bias, **geometry))

    def norm(x):
        return torch.from_numpy(paper_norm(x.permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)

    x, maps = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2), []
    if name == "alexnet_paper":
        pool, groups = partial(f.max_pool2d, kernel_size=3, stride=2), 2
        maps.append(pool(norm(conv(x, 1, stride=4))))
        maps.append(pool(norm(conv(maps[-1], 2, padding=2, groups=2))))
    else:
        pool, groups = partial(f.max_pool2d, kernel_size=3, stride=2, ceil_mode=True), 1
        maps.append(norm(pool(conv(x, 1, stride=2, padding=1))))
        maps.append(norm(pool(conv(maps[-1], 2, stride=2))))
    maps.append(conv(maps[-1], 3, padding=1))
    maps.append(conv(maps[-1], 4, padding=1, groups=groups))
    maps.append(pool(conv(maps[-1], 5, padding=1, groups=groups)))
    return [y.permute(0, 2, 3, 1).numpy() for y in maps]


@pytest.mark.parametrize(("name", "side"), [("alexnet_paper", 99), ("zfnet", 65)])
def test_maps_are_the_papers(name, side):
    model = zoo.create(name, features_only=True)
    variables = random_variables(model, side, 0.05)
    x = 30 * np.random.default_rng(1).normal(size=(1, side, side, 3)).astype(np.float32)
    maps = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    for ours, theirs in zip(maps.values(), torch_maps(name, variables["params"], x), strict=True):
        assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    without = zoo.create(name, features_only=True, lrn=False)
    larger = jax.jit(lambda v, x: without.apply(v, x, train=False)["stage1"])(variables, x)
    assert np.abs(larger).max() > 1.5 * np.abs(maps["stage1"]).max()


def small(**options):
    """A network of the same class with two stages and ten hidden units."""
    stages = {
        "stage1": (Convolve(6, 3, bias=1.0), Pool("max", 2)),
        "stage2": (Convolve(8, 3, 2, groups=2), Pool("avg")),
    }
    return AlexNet(stages, num_classes=4, **{"norm": "none", "hidden": (10, 10), **options})


X = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)


def test_biases_start_as_published():
    starts = {"conv1": 1, "conv2": 0, "hidden1": 1, "hidden2": 1, "head": 0}

    @jax.jit
    def biases():
        params = small(hidden_bias=1.0).init(KEY, X, train=False)["params"]
        return {name: (params[name].get("conv") or params[name])["bias"] for name in starts}

    assert {name: np.unique(bias).tolist() for name, bias in biases().items()} == {k: [v] for k, v in starts.items()}


@pytest.mark.parametrize("hidden", [(10,), (10, 10)])
@pytest.mark.parametrize("drops", ["inputs", "outputs"])
def test_dropout_at_inputs_or_outputs(drops, hidden):
    """With rate 1, everything that is dropped is 0, so that only biases remain."""
    model = small(drops=drops, hidden=hidden)
    variables = random_variables(model, 16, 0.5)
    p = variables["params"]
    last = np.maximum(p[f"hidden{len(hidden)}"]["bias"], 0) * (drops == "inputs")
    expected = last @ p["head"]["kernel"] + p["head"]["bias"]
    dropping = model.clone(dropout=1.0)
    y = jax.jit(lambda v: dropping.apply(v, X, train=True, rngs={"dropout": KEY}))(variables)
    assert_allclose(y, np.broadcast_to(expected, (3, 4)), rtol=1e-5)


@pytest.mark.parametrize("order", ["post", "last"])
def test_order(order):
    model = small(norm="batch", order=order, features_only=True).clone(stages={"stage1": (Convolve(6, 3),)})
    y = np.asarray(jax.jit(lambda: model.init_with_output(KEY, X, train=True)[0])()["stage1"])
    if order == "post":
        assert y.min() == 0
    else:
        assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)


@pytest.mark.parametrize("options", [{"norm": "batch"}, {}])
def test_torch_names_are_torchvisions_form_alone(options):
    model = zoo.create("alexnet", **options) if options else zoo.create("zfnet")
    with pytest.raises(InputError, match="torchvision has no such network"):
        weights.from_torch(model, {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alexnet", {"num_classes": 0}, "num_classes 0"),
        ("alexnet", {"norm": "bach"}, "norm 'bach'"),
        ("alexnet", {"order": "last"}, "has no effect with norm none"),
        ("alexnet", {"lrn": True}, "no option 'lrn'"),
        ("alexnet_paper", {"dropout": -0.1}, "dropout -0.1"),
        ("zfnet", {"norm": "batch", "order": "pre"}, "order 'pre'"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)
