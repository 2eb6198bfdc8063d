"""The lectures' networks: the perceptron's options, Wan et al.'s for MNIST, asymmetric convolutions for CIFAR."""

import json
from functools import partial

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from deepjax import cli, functional, zoo
from deepjax.errors import InputError
from deepjax.summary import summarize
from deepjax.transforms import fold_batch_norm
from deepjax.units import stack_units
from helpers import draw_variables

KEY = jax.random.key(0)


def abstract(model, *shape):
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *shape)), train=False))


def count(model, *shape):
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(model, *shape)["params"]))


def draw(model, *shape):
    return draw_variables(model, np.zeros((1, *shape), np.float32))


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


# Counts


def test_the_published_sizes():
    assert count(zoo.create("mnist_cnn"), 28, 28, 1) == 207_356
    assert count(zoo.create("cifar_asymmetric"), 32, 32, 3) == 549_156  # of the lecture's table
    assert count(zoo.create("cifar_asymmetric_2m"), 32, 32, 3) == 2_038_564  # the lecture's text: about 2 million


@pytest.mark.parametrize("drop", ["none", "dropout", "dropconnect"])
@pytest.mark.parametrize(("width", "classes", "size", "left"), [(5, 3, 16, 1), (8, 10, 33, 5)])
def test_mnist_counts_in_closed_form(width, classes, size, left, drop):
    expected = (25 * 2 + 1) * width + (25 * width + 1) * 2 * width
    expected += (left**2 * 2 * width + 1) * 150 + 151 * classes
    assert count(zoo.create("mnist_cnn", num_classes=classes, width=width, drop=drop), size, size, 2) == expected


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("name", "scales"), [("cifar_asymmetric", (1, 4)), ("cifar_asymmetric_2m", (1, 4, 8))])
def test_asymmetric_counts_in_closed_form(name, scales, norm):
    after = 1 if norm == "none" else 2  # biases, or scales and biases
    expected, features_in = 0, 3
    for stage, scale in enumerate(scales):
        features = 5 * scale
        for window in (3,) * 8 + (9,) * (stage < 2):
            expected += window * features_in * features + after * features
            features_in = features
    assert count(zoo.create(name, num_classes=7, width=5, norm=norm), 9, 11, 3) == expected + (features_in + 1) * 7


def test_the_rows_of_the_lectures_cifar100_table():
    """Resolution, channels and receptive field; 15, 15 and 23 of the lecture's are 11, 19 and 27."""
    layers = {row.path: row for row in summarize(zoo.create("cifar_asymmetric"), (32, 32, 3))}
    rows = [layers[f"conv{i}/conv"] for i in (4, 8, 9, 13, 17, 18)]
    assert [row.output[1:] for row in rows] == [(32, 32), (32, 32), (16, 32), (16, 128), (16, 128), (8, 128)]
    assert [row.field.size for row in rows] == [(field, field) for field in (5, 9, 11, 19, 27, 31)]


@pytest.mark.parametrize(("depth", "norm"), [(1, "none"), (2, "none"), (2, "batch"), (8, "batch"), (8, "none")])
def test_mlp_counts_in_closed_form(depth, norm):
    after = 1 if norm == "none" else 2
    expected = 3072 * 11 + after * 11 + (depth - 2) * (11 + after) * 11 + 12 * 7 if depth > 1 else 3073 * 7
    for scan in (True, False):
        assert (
            count(zoo.create("mlp", num_classes=7, depth=depth, width=11, norm=norm, scan=scan), 32, 32, 3) == expected
        )


def test_mlp_is_the_one_that_it_was():
    assert set(flat(abstract(zoo.create("mlp", depth=4), 8))) == {
        f"params/{layer}/{name}" for layer in ("first", "hidden/unit/dense", "head") for name in ("kernel", "bias")
    }
    assert count(zoo.create("mlp"), 32, 32, 3) == 3073 * 256 + 257 * 256 + 257 * 10


# Numbers


def torch_of(variables):
    torch = pytest.importorskip("torch")
    return torch, {path: torch.tensor(np.asarray(leaf), dtype=torch.float64) for path, leaf in flat(variables).items()}


def assert_torchs(model, variables, x, reference):
    """Logits, their gradients and new running moments are those of the reference: (torch, parameters, x) -> logits.

    The reference does not see a row of padding that our network gets.
    """
    torch, values = torch_of(variables)
    for path, leaf in values.items():
        leaf.requires_grad_(path.startswith("params"))
    weights, rows = images(x.shape[0], model.num_classes, seed=1), x.shape[0]
    logits = reference(torch, values, torch.tensor(np.moveaxis(x, -1, 1).copy(), dtype=torch.float64))
    (logits * torch.tensor(weights)).sum().backward()

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def ours(params, x):
        call = {"train": True, "mask": np.arange(rows + 1) < rows, "mutable": ["batch_stats"]}
        logits, new = model.apply({**variables, "params": params}, x, **call)
        return (logits[:rows] * weights).sum(), (logits[:rows], new)

    padded = np.concatenate([x, np.full_like(x[:1], 100)])
    (_, (y, new)), gradient = jax.device_get(ours(variables["params"], padded))
    assert_close(y, logits, "logits")
    for path, leaf in flat({"params": gradient}).items():
        assert_close(leaf, values[path].grad, path)
    for path, leaf in flat(new).items():
        assert_close(leaf, values[path], path)


def assert_close(ours, theirs, path):
    theirs = theirs.detach().numpy()
    assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max() + 1e-6, err_msg=path)


def torch_norm(torch, values, x, name):
    """Batch norm in training; the reference's new running moments (of the unbiased variance) replace the old ones."""
    y = torch.nn.functional.batch_norm(
        x, None, None, values[f"params/{name}/scale"], values[f"params/{name}/bias"], True, 0.1, 1e-5
    )
    axes = [0, *range(2, x.ndim)]
    for moment, new in (("mean", x.mean(axes)), ("var", x.var(axes))):
        path = f"batch_stats/{name}/{moment}"
        values[path] = 0.9 * values[path] + 0.1 * new
    return y


def torch_conv(torch, values, x, name, padding, stride=1):
    return torch.nn.functional.conv2d(
        x,
        values[f"params/{name}/kernel"].permute(3, 2, 0, 1),
        values.get(f"params/{name}/bias"),
        stride,
        padding,
    )


def torch_dense(values, x, name):
    y = x @ values[f"params/{name}/kernel"]
    return y + values[f"params/{name}/bias"] if f"params/{name}/bias" in values else y


def test_mnist_cnn_is_torchs():
    def reference(torch, values, x):
        for name in ("conv1", "conv2"):
            x = torch.nn.functional.max_pool2d(torch.relu(torch_conv(torch, values, x, name, 0)), 2)
        x = torch.relu(torch_dense(values, x.permute(0, 2, 3, 1).flatten(1), "hidden"))
        return torch_dense(values, x, "head")

    model = zoo.create("mnist_cnn", num_classes=5, width=3)
    assert_torchs(model, draw(model, 20, 24, 1), images(4, 20, 24, 1), reference)


def test_cifar_asymmetric_is_torchs():
    def reference(torch, values, x):
        def conv(x, i, padding, stride=1):
            y = torch_conv(torch, values, x, f"conv{i}/conv", padding, stride)
            return torch.relu(torch_norm(torch, values, y, f"conv{i}/norm"))

        for first in (1, 10):
            for i in range(first, first + 8):
                x = conv(x, i, ((i - first) % 2 and (1, 0)) or (0, 1))
            x = conv(x, first + 8, 1, 2)
        return torch_dense(values, x.mean((2, 3)), "head")

    model = zoo.create("cifar_asymmetric", num_classes=5, width=2, norm="batch")
    assert_torchs(model, draw(model, 8, 8, 3), images(8, 8, 8, 3), reference)


@pytest.mark.parametrize("order", ["post", "last"])
def test_mlp_with_batch_norm_and_tanh_is_torchs(order):
    def reference(torch, values, x):
        def finish(x, name):
            if order == "last":
                return torch_norm(torch, values, torch.tanh(x), name)
            return torch.tanh(torch_norm(torch, values, x, name))

        x = finish(torch_dense(values, x.permute(0, 2, 3, 1).flatten(1), "first"), "first_norm")
        for unit in ("unit1", "unit2"):
            x = finish(torch_dense(values, x, f"hidden/{unit}/dense"), f"hidden/{unit}/norm")
        return torch_dense(values, x, "head")

    options = {"num_classes": 3, "depth": 4, "width": 6, "norm": "batch", "activation": "tanh", "order": order}
    x = images(8, 2, 2, 3)
    unrolled = zoo.create("mlp", scan=False, **options)
    variables = draw(unrolled, 2, 2, 3)
    assert_torchs(unrolled, variables, x, reference)
    scanned, stacked = zoo.create("mlp", **options), stack_units(variables)
    y, other = jax.jit(lambda: [scanned.apply(stacked, x, train=False), unrolled.apply(variables, x, train=False)])()
    assert_allclose(y, other, rtol=1e-4, atol=1e-5)


# Randomness


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("mnist_cnn", {"width": 2, "drop": "dropout"}, (16, 16, 1)),
        ("mnist_cnn", {"width": 2, "drop": "dropconnect"}, (16, 16, 1)),
        ("cifar_asymmetric", {"width": 2, "dropout": 0.5}, (8, 8, 3)),
    ],
)
def test_what_drops_does_so_in_training_only(name, options, shape):
    model, x = zoo.create(name, **options), images(6, *shape)
    variables = draw(model, *shape)

    @jax.jit
    def run(x, key):
        # Inference has no stream of random numbers.
        return model.apply(variables, x, train=True, rngs={"dropout": key}), model.apply(variables, x, train=False)

    others = np.concatenate([x[:3], images(3, *shape, seed=1)])  # a prediction does not depend on those beside it
    (y, logits), (again, beside), (other, _) = jax.device_get(
        [run(x, KEY), run(others, KEY), run(x, jax.random.key(1))]
    )
    assert abs(y - other).max() > 1e-3
    assert abs(y - logits).max() > 1e-3
    assert_allclose(again[:3], y[:3], rtol=1e-4, atol=1e-5)
    assert_allclose(beside[:3], logits[:3], rtol=1e-5, atol=1e-5)


def test_dropconnect_infers_by_moment_matching():
    """The mean over many masks of the hidden units, through a linear head, is what inference approximates."""
    model, x = zoo.create("mnist_cnn", width=2, drop="dropconnect"), images(1, 20, 20, 1)
    variables = draw(model, 20, 20, 1)
    repeated = np.repeat(x, 600, 0)  # a mask for every example

    @jax.jit
    def run(repeated):
        sampled = model.apply(variables, repeated, train=True, rngs={"dropout": KEY})
        return sampled, [m.apply(variables, x, train=False) for m in (model, zoo.create("mnist_cnn", width=2))]

    sampled, (inferred, plain) = jax.device_get(run(repeated))
    assert np.abs(inferred - sampled.mean(0)).max() < 0.2 * np.abs(plain - sampled.mean(0)).max()


# Training, folding, dtypes


def test_training_with_dropconnect_learns_a_small_batch():
    model, optimizer = zoo.create("mnist_cnn", num_classes=4, width=4, drop="dropconnect"), optax.sgd(0.02, 0.9)
    params, x, labels = draw(model, 16, 16, 1)["params"], images(16, 16, 16, 1), np.arange(16) % 4

    @jax.jit
    def train(params):
        def step(state, key):
            def loss(params):
                logits = model.apply({"params": params}, x, train=True, rngs={"dropout": key})
                return functional.cross_entropy(logits, labels).mean()

            params, momenta = state
            value, gradient = jax.value_and_grad(loss)(params)
            updates, momenta = optimizer.update(gradient, momenta, params)
            return (optax.apply_updates(params, updates), momenta), value

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(KEY, 40))[1]

    losses = train(params)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:2])


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("mlp", {"depth": 5, "width": 6, "norm": "batch", "activation": "tanh", "dropout": 0.5}, (7,)),
        ("cifar_asymmetric", {"width": 2, "norm": "batch", "dropout": 0.5}, (8, 8, 3)),
    ],
)
def test_their_batch_norms_fold(name, options, shape):
    model = zoo.create(name, **options)
    variables, x = draw(model, *shape), images(3, *shape)
    folding = fold_batch_norm(model, variables, x)
    assert folding.left == {}
    pairs = ((model, variables), (folding.model, folding.variables))
    logits, expected = jax.jit(lambda: [net.apply(given, x, train=False) for net, given in pairs])()
    assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"depth": 4, "norm": "batch", "activation": "lecun_tanh", "dropout": 0.5}),
        ("mnist_cnn", {"drop": "dropconnect"}),
        ("cifar_asymmetric", {"norm": "batch", "dropout": 0.5}),
    ],
)
def test_bfloat16_computes_in_bfloat16_with_float32_parameters(name, options):
    model = zoo.create(name, dtype="bfloat16", width=4, **options)
    x = jnp.zeros((2, 16, 16, 3))
    variables = abstract(model, 16, 16, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    forward = partial(model.apply, train=True, mutable=["batch_stats"])
    assert jax.eval_shape(forward, variables, x, rngs={"dropout": KEY})[0].dtype == jnp.bfloat16


# What bad input gets


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"init": "hee"}, "mlp: init 'hee' is unknown; did you mean 'he'"),
        ("mlp", {"norm": "bach"}, "norm 'bach' is unknown; did you mean 'batch'"),
        ("mlp", {"activation": "crelu"}, "activation 'crelu' is unknown; did you mean '.*relu'"),
        ("mlp", {"dropout": 1.5}, r"mlp: dropout 1.5 is a probability; it must be in \[0, 1\]"),
        ("mlp", {"dropout": -0.1}, r"mlp: dropout -0.1 is a probability"),
        ("mlp", {"scale": 0.1}, "mlp: scale 0.1 is for init gaussian and gaussian_all, not he; leave it out"),
        ("mlp", {"init": "gaussian", "scale": 0.0}, "scale 0.0 must be"),
        ("mlp", {"order": "pre", "norm": "batch"}, "mlp: order 'pre' is unknown"),
        ("mlp", {"order": "last"}, "mlp: order last has no effect with norm none; set norm batch"),
        ("mlp", {"depth": 1, "norm": "batch"}, "depth 1 has no hidden layer for norm batch"),
        ("mlp", {"depth": 1, "dropout": 0.5}, "depth 1 has no hidden layer .* dropout 0.5"),
        ("mlp", {"dropout": "0.5"}, "must be float"),
        ("mlp", {"dropout": True}, "must be float"),
        ("mlp", {"width": 0}, "width 0"),
        ("mnist_cnn", {"drop": "drop_connect"}, "drop 'drop_connect' is unknown; did you mean 'dropconnect'"),
        ("mnist_cnn", {"drop": "dropout", "rate": 2}, "mnist_cnn: rate 2 is a probability"),
        ("mnist_cnn", {"rate": 0.3}, "rate 0.3 does nothing with drop none"),
        ("mnist_cnn", {"width": 0}, "mnist_cnn: width 0"),
        ("mnist_cnn", {"num_classes": 0}, "num_classes 0"),
        ("cifar_asymmetric", {"norm": "lyer"}, "norm 'lyer' is unknown; did you mean 'layer'"),
        ("cifar_asymmetric", {"dropout": 1.01}, "cifar_asymmetric: dropout 1.01"),
        ("cifar_asymmetric", {"width": -1}, "cifar_asymmetric: width -1"),
    ],
)
def test_options_are_checked(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        zoo.create(name, **options)
    assert "\n" not in str(error.value)


def test_a_whole_number_is_a_rate_too():
    assert zoo.create("mlp", dropout=0) == zoo.create("mlp", dropout=0.0) == zoo.create("mlp")


def test_the_command_line_lists_them(capsys):
    general = {"return_logits": True, "features_only": False, "init": None}
    for name, options in (
        ("mnist_cnn", {"width": 32, "drop": "none", "rate": 0.5, **general}),
        ("cifar_asymmetric", {"width": 32, "norm": "none", "dropout": 0.0, **general}),
    ):
        assert cli.main(["models", "--options", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == options
    for name, total in (("mnist_cnn", "207,356"), ("cifar_asymmetric", "549,156")):
        assert cli.main(["summary", name]) == 0
        assert f"{total} parameters" in capsys.readouterr().out
