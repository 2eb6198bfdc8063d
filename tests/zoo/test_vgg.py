"""VGG: torchvision's and the paper's counts, stages, and the columns that torchvision lacks against PyTorch."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, zoo
from deepjax.errors import InputError
from deepjax.units import unstack_units
from deepjax.zoo.steps import Convolve, Repeat
from deepjax.zoo.vgg import COLUMNS, GRID, MODELS, VGG

KEY = jax.random.key(0)
COUNTS = {
    "vgg11": 132_863_336,
    "vgg11_lrn": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16_1x1": 133_638_952,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg11_lrn_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_1x1_bn": 133_647_400,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
}
MILLIONS = {"vgg11": 133, "vgg11_lrn": 133, "vgg13": 133, "vgg16_1x1": 134, "vgg16": 138, "vgg19": 144}  # table 2
LAYERS = {"vgg11": 11, "vgg11_lrn": 11, "vgg13": 13, "vgg16_1x1": 16, "vgg16": 16, "vgg19": 19}


@cache
def abstract(name):
    model = zoo.create(name)
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *model.usual_input)), train=False))


def output(model, side):
    return jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((2, side, side, 3)), train=False)[0])


def test_every_name_is_counted():
    assert set(COUNTS) == set(MODELS)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_parameters_and_layers(name):
    params = abstract(name)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == COUNTS[name]
    assert name.endswith("_bn") or round(count / 1e6) == MILLIONS[name]
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    layers = sum(leaf.shape[0] if leaf.ndim == 5 else 1 for leaf in kernels)  # those of a scan have one more axis
    assert layers == LAYERS[name.removesuffix("_bn")]


def test_maps():
    maps = output(zoo.create("vgg16", features_only=True), 224)
    assert {name: x.shape[1:] for name, x in maps.items()} == {
        "stage1": (112, 112, 64),
        "stage2": (56, 56, 128),
        "stage3": (28, 28, 256),
        "stage4": (14, 14, 512),
        "stage5": (7, 7, 512),
    }


def test_the_minimum_size_is_the_smallest_that_works():
    model = zoo.create("vgg11", num_classes=7)
    assert (model.min_size, output(model, 32).shape) == (32, (2, 7))
    with pytest.raises(InputError, match="do not fit"):
        output(model.clone(min_size=1), 31)


# Numbers, of narrow networks

X = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)


FEATURES = {64: 4, 128: 6, 256: 6, 512: 8}


def narrow(column, **options):
    def thin(step):
        if isinstance(step, Repeat):
            return step._replace(step=thin(step.step))
        return step._replace(features=FEATURES[step.features]) if isinstance(step, Convolve) else step

    stages = {stage: tuple(thin(step) for step in steps) for stage, steps in COLUMNS[column].items()}
    usual = {"grid": GRID, "hidden": (10, 10), "use_bias": True, "scan": True, "norm": "none", "num_classes": 5}
    return VGG(stages, **usual | options)


def random_variables(model):
    """Positive moments and scales, the rest of both signs, no unit of a stack like another."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(KEY, X, train=False))

    def draw(path, a):
        wide = path[-1].key in ("scale", "var")
        return (np.exp(rng.normal(0, 0.3, a.shape)) if wide else rng.normal(0, 0.3, a.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def torch_forward(variables, x, order="post"):
    """Table 1 in float64, with the layers that the variables have."""
    torch = pytest.importorskip("torch")
    f, p = torch.nn.functional, unstack_units(variables["params"])
    moments = unstack_units(variables.get("batch_stats", {}))

    def tensor(a):
        return torch.from_numpy(np.asarray(a, np.float64))

    def layer(x, p, moments):
        kernel = tensor(p["conv"]["kernel"]).permute(3, 2, 0, 1)
        x = f.conv2d(x, kernel, tensor(p["conv"]["bias"]), padding=kernel.shape[-1] // 2)
        if not moments:
            return f.relu(x)
        arguments = [tensor(a) for a in (*(moments["norm"][k] for k in ("mean", "var")), p["norm"]["scale"])]
        x = f.relu(x) if order == "last" else x
        x = f.batch_norm(x, *arguments, tensor(p["norm"]["bias"]))
        return x if order == "last" else f.relu(x)

    x = tensor(x).permute(0, 3, 1, 2)
    for stage in range(1, 6):
        for part in ("first", "rest", "pointwise"):
            name = f"stage{stage}_{part}"
            if part == "rest":
                for unit in sorted(p.get(name, {})):
                    x = layer(x, p[name][unit], moments.get(name, {}).get(unit))
            elif name in p:
                x = layer(x, p[name], moments.get(name))
        x = f.max_pool2d(x, 2)
    x = f.adaptive_avg_pool2d(x, 7).permute(0, 2, 3, 1).flatten(1)
    for name in ("hidden1", "hidden2"):
        x = f.relu(x @ tensor(p[name]["kernel"]) + tensor(p[name]["bias"]))
    return (x @ tensor(p["head"]["kernel"]) + tensor(p["head"]["bias"])).numpy()


@pytest.mark.parametrize(
    ("config", "options"), [("C", {}), ("E", {"norm": "batch"}), ("C", {"norm": "batch", "order": "last"})]
)
def test_numbers_are_pytorchs(config, options):
    model = narrow(config, **options)
    variables = random_variables(model)
    ours = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, X)
    theirs = torch_forward(variables, X, options.get("order", "post"))
    assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_response_norm_follows_the_first_convolution():
    x = 100 * X
    plain, normed = (narrow(config, features_only=True) for config in ("A", "A-LRN"))
    variables = random_variables(plain)
    kernel, bias = (variables["params"]["stage1_first"]["conv"][k] for k in ("kernel", "bias"))

    @jax.jit
    def stages():
        y = functional.relu(functional.conv(x, kernel, bias, padding=1))
        y = functional.max_pool(functional.local_response_norm(y, 5, alpha=5e-4, beta=0.75, k=2.0), 2)
        return y, [net.apply(variables, x, train=False)["stage1"] for net in (normed, plain)]

    expected, (ours, unnormed) = jax.device_get(stages())
    assert_allclose(ours, expected, rtol=1e-4)
    assert np.abs(unnormed).max() > 1.5 * np.abs(ours).max()


def test_scanned_and_unrolled_are_equal():
    model = narrow("D", norm="batch")
    variables = random_variables(model)

    @jax.jit
    def train():
        pairs = ((model, variables), (model.clone(scan=False), unstack_units(variables)))
        return [net.apply(given, X, train=True, mutable=["batch_stats"]) for net, given in pairs]

    (logits, moments), (other, other_moments) = jax.device_get(train())
    assert_allclose(logits, other, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-4), unstack_units(moments), other_moments)


def test_dropout_drops_hidden_units():
    model = narrow("A")
    variables = random_variables(model)
    p = variables["params"]
    y = jax.jit(lambda v: model.clone(dropout=1.0).apply(v, X, train=True, rngs={"dropout": KEY}))(variables)
    assert_allclose(y, np.broadcast_to(p["head"]["bias"], (2, 5)), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vgg16_1x1", {}),
        ("vgg11_lrn_bn", {}),
        ("vgg11", {"norm": "group"}),
        ("vgg11_bn", {"order": "last"}),
    ],
)
def test_torchvisions_names_are_its_forms_alone(name, options):
    with pytest.raises(InputError, match="torchvision has no such network"):
        zoo.create(name, **options).torch_names()


def test_torch_names():
    assert zoo.create("vgg16", norm="batch").torch_names() == zoo.create("vgg16_bn").torch_names()
    places = [place for place in zoo.create("vgg13").torch_names().values() if place[0].startswith("f")]
    assert places == [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 15, 17, 20, 22)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg16", {"num_classes": 0}, "num_classes 0"),
        ("vgg16", {"norm": "bach"}, "norm 'bach'"),
        ("vgg16", {"order": "last"}, "has no effect with norm none"),
        ("vgg16_bn", {"norm": "group"}, "no option 'norm'"),
        ("vgg16", {"config": "A"}, "no option 'config'"),
        ("vgg16", {"dropout": 2}, "dropout 2"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)


def test_the_dense_map_is_the_mean_over_windows():
    """On 224 pixels, the map has one position; on 256x224, two, of which the logits are the mean."""
    stages = {"stage1": (Convolve(2, 3, 32, 1),)}  # maps of 7x7 pixels for images of 224x224
    model = VGG(stages, grid=GRID, hidden=(4, 4), num_classes=3, norm="none")
    x = np.random.default_rng(0).standard_normal((2, 256, 224, 3)).astype(np.float32)

    @jax.jit
    def run():
        variables = model.init(KEY, x[:, :224], train=False)
        sliding = model.clone(sliding=True)
        whole = sliding.apply(variables, x, train=False)
        maps = model.clone(features_only=True).apply(variables, x, train=False)["stage1"]
        heads = [model.clone(stages={}).apply(variables, maps[:, i : i + 7], train=False) for i in (0, 1)]
        one = [network.apply(variables, x[:, :224], train=False) for network in (model, sliding)]
        return whole, (heads[0] + heads[1]) / 2, *one

    whole, mean, dense, slid = run()
    assert_allclose(whole, mean, rtol=1e-5, atol=1e-6)
    assert_allclose(slid, dense, rtol=1e-5, atol=1e-6)
    assert not np.allclose(whole, slid)


def test_a_dense_map_needs_images_of_224_pixels():
    with pytest.raises(InputError, match="minimum of 224x224"):
        output(zoo.create("vgg11", sliding=True), 223)
