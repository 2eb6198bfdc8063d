"""The networks of Shi et al. 2016: counts, and numbers against NumPy and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.errors import InputError

KEY = jax.random.key(0)
COUNTS = {
    "fcn_s": {"hidden1": 26752 * 2048 + 2048, "hidden2": 4_196_352, "hidden3": 4_196_352, "head": 2049 * 26752},
    "fcn_r": {"hidden1": 785 * 2048, "hidden2": 2049 * 4096, "hidden3": 4097 * 1024, "head": 10_250},
    "alexnet_r": {"conv1": 2_432, "conv2": 25_632, "conv3": 51_264, "head": 5_770},
}
TOTALS = {"fcn_s": 117_997_696, "fcn_r": 14_205_962, "alexnet_r": 85_098}


def abstract(model):
    return jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((2, *model.usual_input)), train=False))


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    logits, variables = abstract(zoo.create(name))
    counts = {k: sum(leaf.size for leaf in jax.tree.leaves(tree)) for k, tree in variables["params"].items()}
    assert counts == COUNTS[name]
    assert sum(counts.values()) == TOTALS[name]
    assert logits.shape == (2, 26752 if name == "fcn_s" else 10)


def test_maps():
    def maps(name):
        return {k: v.shape[1:] for k, v in abstract(zoo.create(name, features_only=True))[0].items()}

    assert maps("fcn_s") == {"hidden1": (2048,), "hidden2": (2048,), "hidden3": (2048,)}
    assert maps("fcn_r") == {"hidden1": (2048,), "hidden2": (4096,), "hidden3": (1024,)}
    assert maps("alexnet_r") == {"stage1": (15, 15, 32), "stage2": (7, 7, 32), "stage3": (3, 3, 64)}
    assert abstract(zoo.create("fcn_r", return_logits=False))[0].shape == (2, 1024)


def test_fully_connected_numbers():
    model, rng = zoo.create("fcn_r", num_classes=5).clone(widths=(6, 7, 8)), np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 4, 2)).astype(np.float32)
    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    variables = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes)
    p, y = jax.tree.map(np.float64, variables["params"]), x.reshape(3, -1).astype(np.float64)
    for name in ("hidden1", "hidden2", "hidden3"):
        y = 1 / (1 + np.exp(-(y @ p[name]["kernel"] + p[name]["bias"])))
    expected = y @ p["head"]["kernel"] + p["head"]["bias"]
    dropping = model.clone(dropout=1.0)
    logits, dropped = jax.jit(
        lambda v: [model.apply(v, x, train=False), dropping.apply(v, x, train=True, rngs={"dropout": KEY})]
    )(variables)
    assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert_allclose(dropped, np.broadcast_to(p["head"]["bias"], (3, 5)), rtol=1e-5)


def test_alexnet_r_numbers():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    model, rng = zoo.create("alexnet_r"), np.random.default_rng(0)
    x = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = jax.tree.map(lambda a: rng.normal(0, 0.1, a.shape).astype(np.float32), abstract(model)[1])
    p = variables["params"]

    def conv(x, name):
        kernel, bias = (torch.from_numpy(p[name]["conv"][k]) for k in ("kernel", "bias"))
        return f.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=2)

    y = torch.from_numpy(x).permute(0, 3, 1, 2)
    y = f.relu(f.max_pool2d(conv(y, "conv1"), 3, 2))  # the authors pool before the ReLU, which is the same
    y = f.max_pool2d(f.relu(conv(y, "conv2")), 3, 2)
    y = f.avg_pool2d(f.relu(conv(y, "conv3")), 3, 2).permute(0, 2, 3, 1).reshape(2, -1).numpy()
    expected = y @ p["head"]["kernel"] + p["head"]["bias"]
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    assert_allclose(ours, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_minimum_size():
    model = zoo.create("alexnet_r")

    def forward(model, side):
        return jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((1, side, side, 3)), train=False)[0])

    assert forward(model, 15).shape == (1, 10)
    with pytest.raises(InputError, match="minimum of 15x15"):
        forward(model, 14)
    with pytest.raises(InputError, match="do not fit"):
        forward(model.clone(min_size=1), 14)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fcn_s", {"num_classes": 0}, "num_classes 0"),
        ("fcn_r", {"dropout": -1.0}, "dropout -1.0"),
        ("alexnet_r", {"norm": "bach"}, "norm 'bach'"),
        ("alexnet_r", {"order": "last"}, "has no effect with norm none"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)
