"""Highway networks: counts, numbers by NumPy and PyTorch, gates, options, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.units import unstack_units

KEY = jax.random.key(0)
SIZES = {"highway": (8, 8, 1), "mnist_highway": (17, 16, 1), "cifar_highway": (16, 17, 3)}


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def abstract(name, **options):
    model = zoo.create(name, **options)
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *model.usual_input)), train=False))


def count(name, **options):
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(name, **options)["params"]))


def draw(model, x):
    rng = np.random.default_rng(0)

    def one(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        fan = np.prod(leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1])
        around = {"kernel": noise / np.float32(np.sqrt(fan)), "bias": 0.5 * noise, "scale": 1 + 0.2 * noise}
        return (around | {"mean": 0.1 * noise, "var": 1 + 0.1 * abs(noise)})[path[-1].key]

    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    return jax.tree_util.tree_map_with_path(one, shapes)


# Counts


@pytest.mark.parametrize("depth", [2, 10, 20, 50, 100])
def test_dense_counts_in_closed_form(depth):
    assert count("highway", depth=depth) == 785 * 50 + (depth - 2) * 2 * 51 * 50 + 51 * 10


@pytest.mark.parametrize(("width", "thousands"), [(16, 39), (32, 151)])
def test_mnist_counts_are_the_papers(width, thousands):
    expected = 10 * width + 8 * 2 * (9 * width + 1) * width + (9 * width + 1) * 10
    assert count("mnist_highway", width=width) == expected
    assert round(expected / 1000) == thousands


@pytest.mark.parametrize("depth", [4, 10, 19, 100])
def test_cifar_counts_in_closed_form(depth):
    total, features_in = 0, 3
    for features in (8, 16, 32):
        total += (9 * features_in + 1) * features + (depth // 3 - 1) * 2 * (9 * features + 1) * features
        features_in = features
    assert count("cifar_highway", depth=depth, width=8) == total + (16 * 32 + 1) * 10


# Numbers


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(("activation", "scan"), [("relu", True), ("tanh", False)])
def test_highway_is_a_chain_of_gated_products(activation, scan):
    x = images(4, 3, 2, 1)
    model = zoo.create("highway", num_classes=3, depth=5, width=7, activation=activation, scan=scan)
    variables = draw(model, x)
    p = jax.tree.map(np.float64, unstack_units(variables)["params"])
    h = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[activation]

    def dense(y, layer):
        return y @ layer["kernel"] + layer["bias"]

    y = h(dense(x.reshape(4, 6), p["first"]))
    for i in (1, 2, 3):
        unit = p["hidden"][f"unit{i}"]
        t = sigmoid(dense(y, unit["join"]["gate"]))
        y = h(dense(y, unit["branch"]["dense"])) * t + y * (1 - t)
    logits = jax.jit(lambda v: model.apply(v, x, train=False))(variables)
    assert_allclose(logits, dense(y, p["head"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "scan"), [("mnist_highway", False), ("cifar_highway", True)])
def test_convolutional_highway_is_torchs(name, scan):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x = images(2, *SIZES[name])
    model = zoo.create(name, num_classes=3, depth=10, width=4, scan=scan)
    variables = draw(model, x)
    p = jax.tree.map(lambda leaf: torch.from_numpy(np.float64(leaf)), unstack_units(variables)["params"])

    def conv(y, layer):
        return f.conv2d(y, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], padding=1)

    y = torch.from_numpy(np.moveaxis(np.float64(x), -1, 1).copy())
    for stage in (1, 2, 3):
        if f"stage{stage}_first" in p:
            y = f.relu(conv(y, p[f"stage{stage}_first"]["conv"]))
        units = p[f"stage{stage}_rest"]
        assert len(units) == (2 if f"stage{stage}_first" in p else 3)
        for i in range(len(units)):
            unit = units[f"unit{i + 1}"]
            t = torch.sigmoid(conv(y, unit["join"]["gate"]))
            y = f.relu(conv(y, unit["branch"]["conv"])) * t + y * (1 - t)
        y = f.max_pool2d(y, 2)
    expected = y.permute(0, 2, 3, 1).flatten(1) @ p["head"]["kernel"] + p["head"]["bias"]
    logits = jax.jit(lambda v: model.apply(v, x, train=False))(variables)
    assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SIZES)
def test_gates_start_at_their_bias(name):
    bias = {"highway": -1}.get(name, -4.0)
    x = jnp.zeros((1, *SIZES[name]))
    model = zoo.create(name, depth=10, width=4, bias=bias)

    @jax.jit
    def biases():
        params = model.init(KEY, x, train=False)["params"]
        stacks = [stage for stage in params if stage == "hidden" or stage.endswith("_rest")]
        return [params[stage]["unit"]["join"]["gate"]["bias"] for stage in stacks]

    assert len(biases()) == (1 if name == "highway" else 3)
    for each in biases():
        assert_allclose(each, bias)


@pytest.mark.parametrize(("name", "depth"), [("highway", 10), ("highway", 100), ("mnist_highway", 49)])
def test_the_usual_bias_grows_with_depth(name, depth):
    model = zoo.create(name, depth=depth)
    assert_allclose((1 - sigmoid(model.bias)) ** depth, np.exp(-1), rtol=0.05)
    assert model == zoo.create(name, depth=depth, bias=-np.log(depth).item())


def test_a_deep_highway_hands_its_input_on_at_the_start():
    """Behind 98 layers the first layer's output is still there; a plain net of that depth forgets it."""
    x = images(64, 4, 4, 1)

    def correlation(name, **options):
        model = zoo.create(name, depth=100, width=32, features_only=True, **options)
        maps = jax.jit(lambda: model.init_with_output(KEY, x, train=False)[0])()
        first, last = (np.asarray(maps[key]) - np.asarray(maps[key]).mean(0) for key in ("first", "hidden"))
        return (first * last).sum() / np.sqrt((first**2).sum() * (last**2).sum())

    assert correlation("highway") > 0.7
    assert correlation("mlp") < 0.4


@pytest.mark.parametrize("name", SIZES)
def test_options(name):
    x, options = images(2, *SIZES[name]), {"depth": 10, "width": 4, "num_classes": 3, "return_logits": False}
    model = zoo.create(name, dropout=0.5, norm="batch", dtype="bfloat16", **options)
    assert model.dropout == 0.5
    features, variables = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))
    assert "batch_stats" in variables
    assert features.dtype == jnp.bfloat16
    assert features.shape == (2, {"highway": 4, "mnist_highway": 16, "cifar_highway": 64}[name])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("highway", {"depth": 1}, "hidden_layers 0"),
        ("highway", {"width": 0}, "width 0"),
        ("highway", {"activation": "rely"}, "did you mean 'relu'"),
        ("highway", {"norm": "grup"}, "norm 'grup' is unknown"),
        ("highway", {"dropout": 2.0}, "dropout 2.0 is a probability"),
        ("mnist_highway", {"depth": 11}, "depth 11 is not 3n \\+ 1; the nearest are 10 and 13"),
        ("cifar_highway", {"depth": 1}, "nearest are 4 and 7"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)
