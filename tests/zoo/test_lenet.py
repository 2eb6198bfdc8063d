"""LeNet-5 held against a float64 NumPy forward pass with the paper's table, and its heirs' counts."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, zoo
from deepjax.errors import InputError
from deepjax.zoo.lenet import TABLE, codes

KEY = jax.random.key(0)
X_OF_TABLE_1 = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""


@cache
def parameters(name, **options):
    model = zoo.create(name, **options)
    x = jnp.zeros((1, *model.usual_input))
    return jax.eval_shape(lambda: model.init(KEY, x, train=False))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Counts


def test_lenet5_trains_what_the_paper_counts():
    variables = parameters("lenet5")
    assert set(variables) == {"params"}  # the codes are no variables
    counts = {name: count(tree) for name, tree in variables["params"].items()}
    assert counts == {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert count(variables) == 60_000


def test_counts_of_the_others():
    layers = parameters("lenet5_modern")["params"]
    counts = {name: count(tree) for name, tree in layers.items()}
    assert counts == {"conv1": 156, "conv2": 2_416, "hidden1": 48_120, "hidden2": 10_164, "head": 850}
    layers = parameters("mnist_convnet")["params"]
    counts = {name: count(tree) for name, tree in layers.items()}
    assert counts == {"conv1": 832, "conv2": 51_264, "hidden1": 256 * 200 + 200, "head": 2_010}


def test_table_is_the_papers():
    rows = X_OF_TABLE_1.split()
    assert tuple(tuple(m for m in range(6) if rows[m][column] == "X") for column in range(16)) == TABLE


# Maps


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("lenet5", 32, {"c1": (28, 6), "s2": (14, 6), "c3": (10, 16), "s4": (5, 16), "c5": (1, 120)}),
        ("lenet5", 28, {"c1": (28, 6), "s2": (14, 6), "c3": (10, 16), "s4": (5, 16), "c5": (1, 120)}),
        ("lenet5", 45, {"c1": (41, 6), "s2": (20, 6), "c3": (16, 16), "s4": (8, 16), "c5": (4, 120)}),
        ("lenet5_modern", 28, {"stage1": (14, 6), "stage2": (5, 16)}),
        ("mnist_convnet", 28, {"stage1": (8, 32), "stage2": (2, 64)}),
    ],
)
def test_maps_and_logits(name, size, maps):
    x = jnp.zeros((2, size, size, 1))

    def forward(**options):
        model = zoo.create(name, num_classes=7, **options)
        return jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False)[0])

    shapes = {key: value.shape for key, value in forward(features_only=True).items()}
    assert shapes == {key: (2, side, side, features) for key, (side, features) in maps.items()}
    assert forward().shape == (2, 7)
    assert forward(return_logits=False).shape == (2, {"mnist_convnet": 200}.get(name, 84))
    assert forward(dtype="bfloat16").dtype == jnp.bfloat16


@pytest.mark.parametrize(("name", "min_size"), [("lenet5", 28), ("lenet5_modern", 12), ("mnist_convnet", 22)])
def test_minimum_size(name, min_size):
    model = zoo.create(name)

    def forward(model, size):
        return jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((1, size, size, 1)), train=False)[0])

    assert forward(model, min_size).shape == (1, 10)
    with pytest.raises(InputError, match=f"minimum of {min_size}x{min_size}"):
        forward(model, min_size - 1)
    if name != "lenet5":  # whose minimum is the paper's, not the arithmetic's
        with pytest.raises(InputError):
            forward(model.clone(min_size=1), min_size - 1)


# Numbers


def squash(x):
    return 1.7159 * np.tanh(2 / 3 * x)


def correlate(x, kernel):
    """x [H, W] with a kernel [5, 5], without padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape)
    return np.einsum("hwij,ij->hw", windows, kernel)


def subsample(x, layer):
    """x [maps, H, W]: sum of 2x2, coefficient, bias, squashed."""
    total = x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
    return squash(layer["scale"][:, None, None] * total + layer["bias"][:, None, None])


def paper_forward(p, image):
    """Section II.B, map by map, in float64: image [32, 32] -> F6 [84]."""
    x = np.stack([squash(correlate(image, p["c1"]["kernel"][:, :, 0, m]) + p["c1"]["bias"][m]) for m in range(6)])
    x = subsample(x, p["s2"])
    maps, at = [], {3: 0, 4: 0, 6: 0}
    for inputs in TABLE:
        part, i = p["c3"][f"from{len(inputs)}"], at[len(inputs)]
        at[len(inputs)] += 1
        total = sum(correlate(x[m], part["kernel"][:, :, j, i]) for j, m in enumerate(inputs))
        maps.append(squash(total + part["bias"][i]))
    x = subsample(np.stack(maps), p["s4"])
    c5 = squash(np.einsum("mij,ijmo->o", x, p["c5"]["kernel"]) + p["c5"]["bias"])
    return squash(c5 @ p["f6"]["kernel"] + p["f6"]["bias"])


def random_parameters(name, size, seed=0):
    """A network and variables that are random throughout, biases and coefficients too."""
    model, rng = zoo.create(name), np.random.default_rng(seed)
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, size, size, 1)), train=False))
    return model, jax.tree.map(lambda a: rng.normal(0, 0.2, a.shape).astype(np.float32), variables)


@cache
def forward(model, train=False):
    return jax.jit(lambda variables, x, key: model.apply(variables, x, train=train, rngs={"dropout": key}))


def test_lenet5_is_the_papers():
    model, variables = random_parameters("lenet5", 32)
    images = np.random.default_rng(1).normal(size=(3, 32, 32, 1)).astype(np.float32)
    wide = jax.tree.map(np.float64, variables["params"])
    f6 = np.stack([paper_forward(wide, image[..., 0].astype(np.float64)) for image in images])
    features = forward(model.clone(return_logits=False))(variables, images, KEY)
    assert_allclose(features, f6, rtol=1e-4, atol=1e-5)
    distances = ((f6[:, None] - codes(10).astype(np.float64)) ** 2).sum(-1)
    logits = forward(model)(variables, images, KEY)
    assert_allclose(logits, -distances, rtol=1e-5)
    assert_allclose(forward(model, train=True)(variables, images, KEY), logits)


def test_lenet5_pads_small_images_by_their_edges():
    model, variables = random_parameters("lenet5", 32)
    small = np.random.default_rng(1).normal(size=(3, 28, 31, 1)).astype(np.float32)
    padded = np.pad(small, ((0, 0), (2, 2), (0, 1), (0, 0)), mode="edge")
    run = forward(model)
    assert_allclose(run(variables, small, KEY), run(variables, padded, KEY), rtol=1e-5)


def test_the_nearest_code_has_the_largest_logit():
    model = zoo.create("lenet5", num_classes=13)
    variables = jax.tree.map(np.zeros_like, random_parameters("lenet5", 32)[1])
    x = np.zeros((1, 32, 32, 1), np.float32)

    @jax.jit
    @jax.vmap
    def logits(bias):
        params = variables["params"] | {"f6": variables["params"]["f6"] | {"bias": bias}}
        return model.apply({"params": params}, x, train=False)[0]

    answers = logits(1.5 * np.float32(codes(13)))  # F6 squashes them to nearly the codes
    assert np.asarray(answers).argmax(1).tolist() == list(range(13))


def test_codes():
    assert codes(10).shape == (10, 84)
    assert set(np.unique(codes(300))) == {-1, 1}
    assert (codes(300)[:7] == codes(7)).all()
    assert (codes(300)[:40] == codes(40)).all()
    differing = (codes(1000)[:, None] != codes(1000)).sum(-1) + 84 * np.eye(1000, dtype=int)
    assert differing[:10, :10].min() == 10
    assert differing[10:, 10:].min() == 21


def test_initial_kernels():
    params = jax.jit(lambda: zoo.create("lenet5").init(KEY, jnp.zeros((1, 32, 32, 1)), train=False))()["params"]
    assert_allclose(np.abs(params["c5"]["kernel"]).max(), 2.4 / 400, rtol=1e-3)
    assert_allclose(np.abs(params["c3"]["from4"]["kernel"]).max(), 2.4 / 100, rtol=0.02)
    assert_allclose(params["s2"]["scale"], 0.25)


def test_mnist_convnet_is_the_lectures():
    model, variables = random_parameters("mnist_convnet", 28)
    torch = pytest.importorskip("torch")
    f, p = torch.nn.functional, variables["params"]
    x = np.random.default_rng(1).normal(size=(2, 28, 28, 1)).astype(np.float32)
    y = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    for name, window in (("conv1", 3), ("conv2", 2)):
        kernel = torch.from_numpy(p[name]["conv"]["kernel"].transpose(3, 2, 0, 1).copy())
        y = f.max_pool2d(f.relu(f.conv2d(y, kernel, torch.from_numpy(p[name]["conv"]["bias"]))), window)
    y = y.permute(0, 2, 3, 1).reshape(2, -1).numpy()
    y = np.maximum(y @ p["hidden1"]["kernel"] + p["hidden1"]["bias"], 0)
    logits = forward(model)(variables, x, KEY)
    assert_allclose(logits, y @ p["head"]["kernel"] + p["head"]["bias"], rtol=1e-4, atol=1e-4)
    dropped = forward(model.clone(dropout=0.5), train=True)(variables, x, KEY)
    assert np.abs(dropped - logits).max() > 1e-3


def test_one_step_lowers_the_loss():
    model, variables = random_parameters("lenet5", 32)
    x = np.random.default_rng(2).normal(size=(8, 28, 28, 1)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return functional.cross_entropy(model.apply({"params": params}, x, train=True), np.arange(8)).mean()

    before, gradients = jax.device_get(loss(variables["params"]))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
    stepped = jax.tree.map(lambda p, g: p - np.float32(1e-4) * g, variables["params"], gradients)
    assert loss(stepped)[0] < before


# Options


def test_norm_takes_the_place_of_biases_unless_it_comes_last():
    post, last = (parameters("lenet5_modern", norm="batch", order=order) for order in ("post", "last"))
    assert set(post["params"]["conv1"]) == set(last["params"]["conv1"]) == {"conv", "norm"}
    assert set(post["params"]["conv2"]["conv"]) == {"kernel"}
    assert set(last["params"]["conv2"]["conv"]) == {"kernel", "bias"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet5", {"num_classes": 0}, "num_classes 0"),
        ("lenet5_modern", {"norm": "bach"}, "norm 'bach'"),
        ("lenet5_modern", {"order": "last"}, "has no effect with norm none"),
        ("lenet5_modern", {"norm": "batch", "order": "pre"}, "order 'pre'"),
        ("mnist_convnet", {"dropout": 1.5}, "dropout 1.5"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)
