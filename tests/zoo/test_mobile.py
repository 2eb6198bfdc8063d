"""MobileNets: the papers' and torchvision's counts, the paper's form against PyTorch, options, errors."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import helpers
from deepjax import functional, summary, zoo
from deepjax.errors import InputError
from deepjax.trace import around_calls
from deepjax.units import Drop, Stack, unstack_units
from deepjax.zoo.inverted import ACTIVATIONS, round_to_eights
from deepjax.zoo.network import GENERAL

pytestmark = pytest.mark.slow  # large programs; tests/zoo/test_zoo.py has the fast checks of every network

KEY = jax.random.key(0)


@functools.cache
def variables_of(name, size=64, **options):
    """(network, shapes of its variables)."""
    model = zoo.create(name, **options)
    return model, jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, size, size, 3)), train=False))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def drawn(shapes, seed=0):
    """Random variables of these shapes; moments and scales about 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        deviation = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.1
        return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


# Counts

COUNTS = {
    ("mobilenet_v1", 1.0): 4_231_976,
    ("mobilenet_v1", 0.75): 2_585_560,
    ("mobilenet_v1", 0.5): 1_331_592,
    ("mobilenet_v1", 0.25): 470_072,
    ("mobilenet_v2", 1.0): 3_504_872,
    ("mobilenet_v2", 0.35): 1_677_128,
    ("mobilenet_v2", 1.4): 6_108_776,
    ("mobilenet_v3_large", 1.0): 5_483_032,
    ("mobilenet_v3_large", 0.75): 3_377_576,
    ("mobilenet_v3_small", 1.0): 2_542_856,
    ("mobilenet_v3_small", 0.75): 1_653_920,
}


@pytest.mark.parametrize(("name", "width"), COUNTS)
def test_parameters_are_as_many_as_published(name, width):
    assert count(variables_of(name, width=width)[1]["params"]) == COUNTS[name, width]


def test_shares_of_mobilenet_v1_are_those_of_its_paper():
    """Howard et al. 2017, table 2: percent of multiply-adds and parameters, norms not counted; 569 million in all."""
    layers = summary.summarize(zoo.create("mobilenet_v1"), (224, 224, 3))
    kinds = {"1x1": "project/conv", "3x3": "stem/conv", "depthwise": "depthwise/conv", "dense": "head"}
    shares = {"1x1": (94.86, 74.59), "depthwise": (3.06, 1.06), "3x3": (1.19, 0.02), "dense": (0.18, 24.33)}
    sums = {
        kind: np.sum([(row.macs, row.parameters) for row in layers if row.path.endswith(end)], 0)
        for kind, end in kinds.items()
    }
    total = np.sum(list(sums.values()), 0)
    assert round(total[0] / 1e6) == 569
    for kind, percent in shares.items():  # the paper's shares of multiply-adds sum to 99.29
        assert_allclose(100 * sums[kind] / total, percent, atol=0.75)


@pytest.mark.parametrize(
    ("name", "macs"), [("mobilenet_v2", 0.301), ("mobilenet_v3_large", 0.217), ("mobilenet_v3_small", 0.057)]
)
def test_multiply_adds(name, macs):
    assert round(sum(row.macs for row in summary.summarize(zoo.create(name), (224, 224, 3))) / 1e9, 3) == macs


@pytest.mark.parametrize(
    ("name", "features", "strides"),
    [
        ("mobilenet_v1", (32, 64, 128, 256, 512, 1024), (2, 2, 4, 8, 16, 32)),
        ("mobilenet_v2", (32, 16, 24, 32, 64, 96, 160, 320, 1280), (2, 2, 4, 8, 16, 16, 32, 32, 32)),
        ("mobilenet_v3_large", (16, 16, 24, 40, 80, 112, 160, 960), (2, 2, 4, 8, 16, 16, 32, 32)),
        ("mobilenet_v3_small", (16, 16, 24, 40, 48, 96, 576), (2, 4, 8, 16, 16, 32, 32)),
    ],
)
def test_maps_and_pooled_features(name, features, strides):
    x = jax.ShapeDtypeStruct((2, 224, 160, 3), jnp.float32)

    def shapes(**options):
        return jax.eval_shape(lambda x: zoo.create(name, **options).init_with_output(KEY, x, train=False)[0], x)

    maps = {name: map.shape for name, map in shapes(features_only=True).items()}
    stages = len(features) - 1 - ("final" in maps)
    names = ["stem", *(f"stage{i}" for i in range(1, stages + 1)), *(["final"] if name != "mobilenet_v1" else [])]
    assert maps == {n: (2, 224 // s, 160 // s, f) for n, s, f in zip(names, strides, features, strict=True)}
    pooled = {"mobilenet_v3_large": 1280, "mobilenet_v3_small": 1024}.get(name, features[-1])
    assert shapes(return_logits=False).shape == (2, pooled)
    assert shapes(num_classes=7).shape == (2, 7)


# Values


def torch_conv(x, variables, *path, stride=1, activation=None):
    """x NCHW through the `ConvNorm` at a path, by PyTorch in float64."""
    torch = pytest.importorskip("torch")

    def get(collection, *names):
        leaf = functools.reduce(lambda tree, name: tree[name], (*path, *names), variables[collection])
        return torch.tensor(np.asarray(leaf, np.float64))

    kernel = get("params", "conv", "kernel").permute(3, 2, 0, 1)
    groups = x.shape[1] // kernel.shape[1]
    y = torch.nn.functional.conv2d(x, kernel, None, stride, kernel.shape[2] // 2, 1, groups)
    moments = (get("batch_stats", "norm", "mean"), get("batch_stats", "norm", "var"))
    y = torch.nn.functional.batch_norm(y, *moments, get("params", "norm", "scale"), get("params", "norm", "bias"))
    return y if activation is None else activation(y)


def test_mobilenet_v1_is_the_papers_chain():
    torch = pytest.importorskip("torch")
    model, shapes = variables_of("mobilenet_v1", width=0.125, num_classes=5)
    variables = drawn(shapes)
    x = np.random.default_rng(1).standard_normal((2, 45, 52, 3)).astype(np.float32)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    loose, relu = unstack_units(variables), torch.nn.functional.relu
    y = torch_conv(torch.tensor(np.moveaxis(x, -1, 1).astype(np.float64)), loose, "stem", stride=2, activation=relu)
    strides = ((1,), (2, 1), (2, 1), (2, 1, 1, 1, 1, 1), (2, 1))
    for stage, steps in enumerate(strides, 1):
        for i, stride in enumerate(steps):
            unit = (f"stage{stage}_rest", f"unit{i}") if i else (f"stage{stage}_first",)
            y = torch_conv(y, loose, *unit, "branch", "depthwise", stride=stride, activation=relu)
            y = torch_conv(y, loose, *unit, "branch", "project", activation=relu)
    head = loose["params"]["head"]
    expected = y.mean((2, 3)).numpy() @ head["kernel"].astype(np.float64) + head["bias"]
    assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


def test_activations_are_torchs():
    torch = pytest.importorskip("torch")
    x = np.array([-7, -3.5, -2.9, -1, 0, 0.5, 2.9, 3.1, 5.9, 6.5, 20], np.float32)
    theirs = {
        "relu": torch.nn.functional.relu,
        "relu6": torch.nn.functional.relu6,
        "hard_swish": torch.nn.functional.hardswish,
        "silu": torch.nn.functional.silu,
    }
    assert set(theirs) == set(ACTIVATIONS)
    for name, function in theirs.items():
        tx = torch.tensor(x, requires_grad=True)
        ty = function(tx)
        ty.sum().backward()
        assert_allclose(ACTIVATIONS[name](x), ty.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
        slope = jax.vmap(jax.grad(ACTIVATIONS[name]))(x)
        assert_allclose(slope, tx.grad.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_rounding_is_to_the_nearest_eight_but_not_far_below():
    assert [round_to_eights(f) for f in (1, 8, 11.9, 12, 32 * 0.35, 33.6, 134.4, 1280)] == [
        8,
        8,
        16,
        16,
        16,
        32,
        136,
        1280,
    ]


# Few stages of few features, for numerics: (name, options, stages)
SHORT = {
    "mobilenet_v1": ({"width": 0.125}, slice(0, 2)),
    "mobilenet_v2": ({"width": 0.1}, slice(0, 2)),
    "mobilenet_v3_large": ({"width": 0.1}, slice(2, 4)),  # with two runs behind the first unit, and squeezes
}


@functools.cache
def short(name, **options):
    """(network, variables) of a short form of a network without dropout."""
    smaller, stages = SHORT[name]
    model = zoo.create(name, num_classes=3, dropout=0.0, **smaller, **options)
    model = model.clone(stages=model.stages[stages])
    return model, drawn(jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 33, 33, 3)), train=False)))


def images(batch=4, size=33):
    return np.random.default_rng(1).standard_normal((batch, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_large"])
def test_scanned_units_are_the_unrolled_ones(name):
    model, variables = short(name)
    helpers.check_scanned_is_unrolled(model, variables, images())


@pytest.mark.parametrize("remat", ["none", "unit"])
def test_remat_reaches_the_stacks(remat):
    (model, variables), x = short("mobilenet_v1"), images()
    program = str(jax.make_jaxpr(lambda v: model.clone(remat=remat).apply(v, x, train=False))(variables))
    assert ("prevent_cse" in program) == (remat == "unit")


def test_images_may_have_a_single_pixel():
    name = "mobilenet_v2"
    model, shapes = variables_of(name, num_classes=3, **SHORT[name][0])
    logits = jax.jit(lambda v: model.apply(v, jnp.ones((2, 1, 1, 3)), train=False))(drawn(shapes))
    assert np.isfinite(logits).all()


# Options


def test_norms():
    """none: a bias for each convolution, where there were scale, bias and two moments."""
    name = "mobilenet_v3_small"
    shapes = variables_of(name)[1]
    norms = [leaf for path, leaf in flax.traverse_util.flatten_dict(shapes["params"]).items() if path[-1] == "scale"]
    without = variables_of(name, norm="none")[1]
    assert set(without) == {"params"}
    assert count(without) == count(shapes["params"]) - count(norms)
    grouped = variables_of(name, norm="group")[1]
    assert set(grouped) == {"params"}
    assert count(grouped) == count(shapes["params"])


def test_epsilon_and_momentum():
    """PyTorch's momentum is 1 minus ours."""
    norm = zoo.create("mobilenet_v2").norm(name="norm")
    assert (norm.epsilon, norm.momentum) == (1e-5, 0.9)
    (model, variables), x = short("mobilenet_v3_large"), images()
    stem = variables["params"]["stem"]["conv"]["kernel"]
    y = np.asarray(functional.conv(x, stem, stride=2, padding=1))
    old = variables["batch_stats"]["stem"]["norm"]
    new = jax.jit(lambda: model.apply(variables, x, train=True, mutable="batch_stats")[1])()["batch_stats"]["stem"][
        "norm"
    ]
    assert_allclose(new["mean"], 0.99 * old["mean"] + 0.01 * y.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    narrow = jax.tree.map(np.copy, variables)
    narrow["batch_stats"]["stem"]["norm"]["var"][:] = 0
    map = jax.jit(lambda: model.clone(features_only=True).apply(narrow, x, train=False)["stem"])()
    norm = narrow["params"]["stem"]["norm"]
    expected = (y - old["mean"]) / np.sqrt(1e-3) * norm["scale"] + norm["bias"]
    assert_allclose(map, expected * np.clip(expected / 6 + 0.5, 0, 1), rtol=1e-3, atol=1e-3)


def survivals(name, **options):
    """Survival that each dropping unit is called with, in order."""
    seen = []

    def record(module, run, args, kwargs):
        if isinstance(module, Drop):
            own = kwargs.get("survival")
            seen.append(module.survival if own is None else own)
        return run(*args, **kwargs)

    model = zoo.create(name, scan=False, **options)
    with around_calls(record):
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
    return seen


def test_survival_falls_linearly():
    """Of mobilenet_v2's 17 units, the second and later ones of each stage have a skip: ten."""
    skips = [2, 4, 5, 7, 8, 9, 11, 12, 14, 15]
    assert_allclose(survivals("mobilenet_v2", survival=0.5), [1 - i / 17 * 0.5 for i in skips])
    assert survivals("mobilenet_v2") == []


def test_scanned_units_have_the_same_survivals():
    seen = []

    def record(module, run, args, kwargs):
        if isinstance(module, Stack):
            seen.extend(module.per_unit["survival"])
        return run(*args, **kwargs)

    model = zoo.create("mobilenet_v2", survival=0.5)
    with around_calls(record):
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
    assert seen == survivals("mobilenet_v2", survival=0.5)


def test_stochastic_depth_and_dropout_draw_in_training_only():
    (plain, variables), x = short("mobilenet_v2"), images()
    for dropping in ({"survival": 0.5}, {"dropout": 0.5}):
        model = plain.clone(**dropping)

        @jax.jit
        @jax.vmap
        def train(key, model=model):
            return model.apply(variables, x, train=True, rngs={"dropout": key}, mutable="batch_stats")[0]

        first, second = train(jax.random.split(KEY))
        assert not np.allclose(first, second)
        jax.eval_shape(functools.partial(model.apply, train=False), variables, x)  # without random numbers


@pytest.mark.parametrize("name", SHORT)
def test_options_are_documented(name):
    function = zoo.MODELS[name]
    text = (getattr(function, "func", function)).__doc__
    assert all(f"\n      {option}: " in text for option in zoo.options_of(name) if option not in GENERAL)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilenet_v1", {"width": 0.0}, "width 0.0 must be above 0"),
        ("mobilenet_v1", {"norm": "bach"}, "norm 'bach'"),
        ("mobilenet_v1", {"survival": 0.5}, "no option 'survival'"),
        ("mobilenet_v2", {"dropout": 1.5}, "dropout 1.5"),
        ("mobilenet_v2", {"survival": -0.5}, "survival -0.5"),
        ("mobilenet_v2", {"num_classes": 0}, "num_classes 0"),
        ("mobilenet_v3_large", {"norm": "bach"}, "norm 'bach'"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        zoo.create(name, **options)
    assert "\n" not in str(error.value)


def test_torchvision_has_batch_norm_only():
    for name in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"):
        with pytest.raises(InputError, match="torchvision"):
            zoo.create(name, norm="none").torch_names()
