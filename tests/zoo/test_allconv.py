"""Network in network and the all-convolutional networks: counts, maps, numbers against PyTorch."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.zoo.allconv import MODELS
from deepjax.zoo.steps import RandomDrop

KEY = jax.random.key(0)
C = {"conv1": 2_688, "conv2": 83_040, "conv3": 166_080, "conv4": 331_968, "conv5": 331_968, "conv6": 37_056}
ALL = {"conv1": 2_688, "conv2": 83_040, "conv3": 83_040, "conv4": 166_080, "conv5": 331_968, "conv6": 331_968}
COUNTS = {
    "nin": {
        "conv1": 14_592,
        "conv2": 30_880,
        "conv3": 15_456,
        "conv4": 460_992,
        "conv5": 37_056,
        "conv6": 37_056,
        "conv7": 331_968,
        "conv8": 37_056,
        "head": 1_930,
    },
    "cnn_c": C | {"conv6": 37_056, "head": 1_930},
    "strided_cnn_c": C | {"conv6": 37_056, "head": 1_930},
    "convpool_cnn_c": ALL | {"conv7": 331_968, "conv8": 37_056, "head": 1_930},
    "all_cnn_c": ALL | {"conv7": 331_968, "conv8": 37_056, "head": 1_930},
}
TOTALS = {
    "nin": 966_986,
    "cnn_c": 954_730,
    "strided_cnn_c": 954_730,
    "convpool_cnn_c": 1_369_738,
    "all_cnn_c": 1_369_738,
}
MIN_SIZES = {"nin": 4, "cnn_c": 12, "strided_cnn_c": 9, "convpool_cnn_c": 12, "all_cnn_c": 9}


@cache
def abstract(name):
    model = zoo.create(name)
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))


def output(model, side):
    return jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((2, side, side, 3)), train=False)[0])


def test_every_name_is_counted():
    assert set(TOTALS) == set(MODELS)


@pytest.mark.parametrize("name", TOTALS)
def test_counts_maps_and_minimum_size(name):
    counts = {k: sum(leaf.size for leaf in jax.tree.leaves(tree)) for k, tree in abstract(name)["params"].items()}
    assert counts == COUNTS[name]
    assert sum(counts.values()) == TOTALS[name]
    maps = output(zoo.create(name, features_only=True), 32)
    assert [x.shape[1] for x in maps.values()] == [16, 8, 8 if name == "nin" else 6]
    model, min_size = zoo.create(name, num_classes=7), MIN_SIZES[name]
    assert (model.min_size, output(model, min_size).shape) == (min_size, (2, 7))
    with pytest.raises(InputError):
        output(model.clone(min_size=1), min_size - 1)


SIDE = 15


def torch_logits(name, p, x):
    """As the papers' tables describe them, in float64."""
    torch = pytest.importorskip("torch")
    f, count = torch.nn.functional, 0

    def conv(x, stride=1, padding=None, name=None):
        nonlocal count
        count += 1
        layer = p[name] if name else p[f"conv{count}"]["conv"]
        kernel, bias = (torch.from_numpy(layer[k].astype(np.float64)) for k in ("kernel", "bias"))
        padding = len(kernel) // 2 if padding is None else padding
        return f.relu(f.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride, padding))

    def max_pool(x):
        return f.max_pool2d(x, 3, 2, ceil_mode=True)

    x = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2)
    if name == "nin":
        x = max_pool(conv(conv(conv(x))))
        x = f.avg_pool2d(conv(conv(conv(x))), 3, 2, ceil_mode=True)
        x = conv(conv(x))
    else:
        for _ in range(2):
            x = {
                "cnn_c": lambda x: max_pool(conv(conv(x))),
                "strided_cnn_c": lambda x: conv(conv(x), 2),
                "convpool_cnn_c": lambda x: max_pool(conv(conv(conv(x)))),
                "all_cnn_c": lambda x: conv(conv(conv(x)), 2),
            }[name](x)
        x = conv(conv(x, padding=0))
    return conv(x, name="head").mean((2, 3)).numpy()


@pytest.mark.parametrize("name", TOTALS)
def test_numbers_are_the_papers(name):
    model, rng = zoo.create(name), np.random.default_rng(0)
    shapes = abstract(name)["params"]
    params = jax.tree.map(
        lambda a: rng.normal(0, np.sqrt(2 / max(a.size // a.shape[-1], 16)), a.shape).astype(np.float32), shapes
    )
    x = rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    ours = jax.jit(lambda p: model.apply({"params": p}, x, train=False))(params)
    theirs = torch_logits(name, params, x)
    assert np.count_nonzero(theirs) > 4  # of 20: the ReLU on the classes' maps does not hide all
    assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.max())


def test_dropout_of_the_input_and_after_the_stages():
    model = zoo.create("all_cnn_c")
    assert (model.input_dropout, model.dropout) == (0.2, 0.5)
    model = model.clone(stages={"stage1": (*model.stages["stage1"][:1], RandomDrop())}, features_only=True)
    x = jnp.ones((1, 9, 9, 3))
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)

    @jax.jit
    def train():
        rates = ({"input_dropout": 1.0, "dropout": rate} for rate in (0.0, 0.5))
        call = {"train": True, "rngs": {"dropout": KEY}}
        return [model.clone(**each).apply(variables, x, **call)["stage1"] for each in rates]

    kept, dropped = jax.device_get(train())
    assert_allclose(kept, 1.0)  # the bias alone
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert abs((dropped == 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(dropped.size)


def test_norm_and_order():
    for order, leaves in (("post", {"kernel"}), ("last", {"kernel", "bias"})):
        model = zoo.create("nin", norm="batch", order=order)
        params = jax.eval_shape(lambda m=model: m.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))["params"]
        assert set(params["conv8"]) == {"conv", "norm"}
        assert set(params["conv8"]["conv"]) == leaves
        assert set(params["head"]) == {"kernel", "bias"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nin", {"num_classes": 0}, "num_classes 0"),
        ("nin", {"order": "last"}, "has no effect with norm none"),
        ("all_cnn_c", {"norm": "bach"}, "norm 'bach'"),
        ("all_cnn_c", {"input_dropout": 1.5}, "input_dropout 1.5"),
        ("cnn_c", {"model": "C"}, "no option 'model'"),
        ("nin", {"input_dropout": 0.2}, "no option 'input_dropout'"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)
