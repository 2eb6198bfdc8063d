"""EfficientNet and Xception: counts, scaling, survivals; Xception against PyTorch's operations."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import helpers
from deepjax import summary, zoo
from deepjax.errors import InputError
from deepjax.trace import around_calls
from deepjax.units import Drop, unstack_units
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


# parameters, units of each stage, side of the images, dropout
EFFICIENTNETS = {
    "efficientnet_b0": (5_288_548, (1, 2, 2, 3, 3, 4, 1), 224, 0.2),
    "efficientnet_b1": (7_794_184, (2, 3, 3, 4, 4, 5, 2), 240, 0.2),
    "efficientnet_b2": (9_109_994, (2, 3, 3, 4, 4, 5, 2), 260, 0.3),
    "efficientnet_b3": (12_233_232, (2, 3, 3, 5, 5, 6, 2), 300, 0.3),
    "efficientnet_b4": (19_341_616, (2, 4, 4, 6, 6, 8, 2), 380, 0.4),
    "efficientnet_b5": (30_389_784, (3, 5, 5, 7, 7, 9, 3), 456, 0.4),
    "efficientnet_b6": (43_040_704, (3, 6, 6, 8, 8, 11, 3), 528, 0.5),
    "efficientnet_b7": (66_347_960, (4, 7, 7, 10, 10, 13, 4), 600, 0.5),
}


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_efficientnets(name):
    parameters, depths, pixels, dropout = EFFICIENTNETS[name]
    model, shapes = variables_of(name)
    assert count(shapes["params"]) == parameters
    assert tuple(map(len, model.stages)) == depths
    assert (model.usual_input, model.dropout) == ((pixels, pixels, 3), dropout)
    late = name[-1] in "567"
    norm = model.norm(name="norm")
    assert (norm.epsilon, norm.momentum) == ((1e-3, 0.99) if late else (1e-5, 0.9))


def test_xception_is_keras():
    shapes = variables_of("xception")[1]
    assert count(shapes["params"]) == 22_855_952
    assert count(shapes) == 22_910_480


def test_multiply_adds():
    def giga(name):
        return sum(row.macs for row in summary.summarize(zoo.create(name), zoo.usual_input(name))) / 1e9

    assert round(giga("efficientnet_b0"), 3) == 0.386  # the paper's 0.39 billion
    assert round(giga("xception"), 1) == 8.4


def test_maps_and_pooled_features():
    x = jax.ShapeDtypeStruct((2, 224, 160, 3), jnp.float32)

    def shapes(name, **options):
        return jax.eval_shape(lambda x: zoo.create(name, **options).init_with_output(KEY, x, train=False)[0], x)

    maps = {name: shape.shape for name, shape in shapes("efficientnet_b0", features_only=True).items()}
    features, strides = (32, 16, 24, 40, 80, 112, 192, 320, 1280), (2, 2, 4, 8, 16, 16, 32, 32, 32)
    names = ("stem", *(f"stage{i}" for i in range(1, 8)), "final")
    assert maps == {n: (2, 224 // s, 160 // s, f) for n, s, f in zip(names, strides, features, strict=True)}
    maps = {name: shape.shape[1:] for name, shape in shapes("xception", features_only=True).items()}
    assert maps == {
        "stem": (109, 77, 64),
        "entry1": (55, 39, 128),
        "entry2": (28, 20, 256),
        "entry3": (14, 10, 728),
        "middle": (14, 10, 728),
        "exit": (7, 5, 1024),
        "final": (7, 5, 2048),
    }
    assert shapes("efficientnet_b0", return_logits=False).shape == (2, 1280)
    assert shapes("xception", return_logits=False).shape == (2, 2048)
    assert shapes("xception", num_classes=7).shape == (2, 7)


# Xception's values


class TorchXception:
    """Chollet 2017, figure 5, by PyTorch's operations in float64; variables unrolled. TensorFlow's padding: SAME."""

    def __init__(self, variables):
        self.torch = pytest.importorskip("torch")
        self.variables = variables

    def get(self, collection, path):
        leaf = functools.reduce(lambda tree, name: tree[name], path.split("/"), self.variables[collection])
        return self.torch.tensor(np.asarray(leaf, np.float64))

    def conv(self, x, path, stride=1):
        kernel = self.get("params", f"{path}/kernel").permute(3, 2, 0, 1)
        return self.torch.nn.functional.conv2d(x, kernel, None, stride, 0, 1, x.shape[1] // kernel.shape[1])

    def norm(self, x, path):
        mean, var = (self.get("batch_stats", f"{path}/{name}") for name in ("mean", "var"))
        scale, bias = (self.get("params", f"{path}/{name}") for name in ("scale", "bias"))
        return self.torch.nn.functional.batch_norm(x, mean, var, scale, bias, eps=1e-3)

    def separable(self, x, path):
        x = self.conv(self.torch.nn.functional.pad(x, (1, 1, 1, 1)), f"{path}/depthwise/conv")
        return self.norm(self.conv(x, f"{path}/pointwise/conv"), f"{path}/pointwise/norm")

    def pool(self, x):
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
            pads += [total // 2, total - total // 2]
        x = self.torch.nn.functional.pad(x, pads, value=-np.inf)
        return self.torch.nn.functional.max_pool2d(x, 3, 2)

    def halving(self, x, path, first_relu=True):
        skip = self.norm(self.conv(x, f"{path}/shortcut/conv", 2), f"{path}/shortcut/norm")
        y = self.separable(x.relu() if first_relu else x, f"{path}/branch/conv1")
        return self.pool(self.separable(y.relu(), f"{path}/branch/conv2")) + skip

    def __call__(self, x, middle):
        x = self.torch.tensor(np.moveaxis(x, -1, 1).astype(np.float64))
        x = self.norm(self.conv(x, "stem1/conv", 2), "stem1/norm").relu()
        x = self.norm(self.conv(x, "stem2/conv"), "stem2/norm").relu()
        x = self.halving(x, "entry1", first_relu=False)
        x = self.halving(self.halving(x, "entry2"), "entry3")
        for i in range(1, middle + 1):
            y = x
            for j in (1, 2, 3):
                y = self.separable(y.relu(), f"middle/unit{i}/branch/conv{j}")
            x = x + y
        x = self.halving(x, "exit")
        x = self.separable(self.separable(x, "final1").relu(), "final2").relu()
        head = self.variables["params"]["head"]
        return x.mean((2, 3)).numpy() @ head["kernel"].astype(np.float64) + head["bias"]


SMALL = {
    "xception": {"width": 0.02, "middle": 2},
    "efficientnet_b1": {"width": 0.1},
}


@functools.cache
def short(name):
    """(network, variables) of few features, EfficientNet of two stages, with nothing dropped."""
    model = zoo.create(name, num_classes=5, dropout=0.0, **SMALL[name])
    model = model.clone(stages=model.stages[:2], survival=1.0) if name != "xception" else model
    return model, drawn(jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 39, 39, 3)), train=False)))


def test_xception_is_the_papers_chain():
    size = (51, 38)
    model, variables = short("xception")
    x = np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    expected = TorchXception(unstack_units(variables))(x, middle=2)
    assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("name", SMALL)
def test_scanned_units_are_the_unrolled_ones(name):
    model, variables = short(name)
    x = np.random.default_rng(1).standard_normal((4, 39, 39, 3)).astype(np.float32)
    helpers.check_scanned_is_unrolled(model, variables, x)


@pytest.mark.parametrize("remat", ["none", "unit"])
def test_remat_reaches_the_middle_flow(remat):
    model, variables = short("xception")
    x = jnp.ones((1, 39, 39, 3))
    program = str(jax.make_jaxpr(lambda v: model.clone(remat=remat).apply(v, x, train=False))(variables))
    assert ("prevent_cse" in program) == (remat == "unit")


def test_the_minimum_size_is_the_smallest_that_works():
    model, variables = short("xception")
    assert model.min_size == 7
    assert np.isfinite(jax.jit(lambda x: model.apply(variables, x, train=False))(jnp.ones((1, 7, 7, 3)))).all()
    assert short("efficientnet_b1")[0].min_size == 1


# Options


@pytest.mark.parametrize("name", SMALL)
def test_norms(name):
    """none: biases, but none between the parts of a separable convolution."""
    shapes = variables_of(name)[1]
    norms = [leaf for path, leaf in flax.traverse_util.flatten_dict(shapes["params"]).items() if path[-1] == "scale"]
    without = variables_of(name, norm="none")[1]
    assert count(without) == count(shapes["params"]) - count(norms)
    grouped = variables_of(name, norm="group")[1]
    assert (set(grouped), count(grouped)) == ({"params"}, count(shapes["params"]))


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


def test_survival_is_torchvisions():
    """torchvision drops unit i of n, from 0 on, with probability 0.2 i / n, where the unit has a skip."""
    skips = [2, 4, 6, 7, 9, 10, 12, 13, 14]
    assert_allclose(survivals("efficientnet_b0"), [1 - 0.2 * i / 16 for i in skips])
    assert survivals("efficientnet_b0", survival=1.0) == []
    assert len(survivals("efficientnet_b1", survival=0.5)) == 23 - 7


def test_stochastic_depth_draws_in_training_only():
    model, variables = short("efficientnet_b1")
    x = np.random.default_rng(1).standard_normal((4, 33, 33, 3)).astype(np.float32)

    dropping = model.clone(survival=0.3)

    @jax.jit
    @jax.vmap
    def train(key):
        return dropping.apply(variables, x, train=True, rngs={"dropout": key}, mutable="batch_stats")[0]

    first, second = train(jax.random.split(KEY))
    assert not np.allclose(first, second)
    jax.eval_shape(functools.partial(dropping.apply, train=False), variables, x)  # without random numbers


def test_factors_multiply_the_variants():
    model = zoo.create("efficientnet_b0", width=2.0, depth=3.1)
    assert model.stages == zoo.create("efficientnet_b7").stages
    assert zoo.create("efficientnet_b7", dropout=0.1).dropout == 0.1


@pytest.mark.parametrize("name", SMALL)
def test_options_are_documented(name):
    function = zoo.MODELS[name]
    text = (getattr(function, "func", function)).__doc__
    assert all(f"\n      {option}: " in text for option in zoo.options_of(name) if option not in GENERAL)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("efficientnet_b0", {"width": -1.0}, "width -1.0 must be above 0"),
        ("efficientnet_b0", {"depth": 0.0}, "depth 0.0 must be above 0"),
        ("efficientnet_b0", {"norm": "bach"}, "norm 'bach'"),
        ("efficientnet_b3", {"survival": 2.0}, "survival 2.0"),
        ("efficientnet_b3", {"dropout": -1.0}, "dropout -1.0"),
        ("xception", {"middle": 0}, "middle 0"),
        ("xception", {"width": 0.0}, "width 0.0"),
        ("xception", {"dropout": 1.5}, "dropout 1.5"),
        ("xception", {"num_classes": 0}, "num_classes 0"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        zoo.create(name, **options)
    assert "\n" not in str(error.value)


def test_torchvision_has_batch_norm_only():
    for name, options in (("xception", {}), ("efficientnet_b0", {"norm": "group"})):
        with pytest.raises(InputError, match="torchvision"):
            zoo.create(name, **options).torch_names()
