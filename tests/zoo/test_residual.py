"""Wide, grouped, stochastically deep and shaken residual networks: counts, numbers by PyTorch, options, errors."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose

from deepjax import functional, zoo
from deepjax.errors import InputError
from deepjax.units import unstack_units
from deepjax.zoo.residual import resnet
from deepjax.zoo.shake import TwoPaths

KEY = jax.random.key(0)


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@cache
def shapes_of(name):
    """(Variables, logits) of a network at its usual size, as shapes."""
    model = zoo.create(name)
    x = jnp.zeros((2, *model.usual_input))
    return jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))


def draw(model, x):
    """Variables of the model, by NumPy."""
    rng = np.random.default_rng(0)

    def one(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise * np.float32(np.sqrt(1 / np.prod(leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1])))
        around = {"scale": 1 + 0.2 * noise, "bias": 0.2 * noise, "mean": 0.05 * noise, "var": 0.5 + 0.1 * abs(noise)}
        return around[path[-1].key]

    shapes = jax.eval_shape(lambda: model.init(KEY, x, train=False))
    return jax.tree_util.tree_map_with_path(one, shapes)


# Counts

PUBLISHED = {  # torchvision's table, and to the digit known of the CIFAR nets
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "resnet50_paper": 25_557_032,
    "resnet101_paper": 44_549_160,
    "resnet152_paper": 60_192_808,
    "wrn_28_10": 36_479_194,
    "stochastic_depth110": 1_727_962,
    "stochastic_depth1202": 19_421_274,
    "shake_shake26_2x96d": 26_192_922,
}
ROUNDED = {  # millions, in the papers' tables
    "wrn_40_4": 8.9,
    "wrn_16_8": 11.0,
    "resnext29_8x64d": 34.4,
    "resnext29_16x64d": 68.1,
    "shake_shake26_2x32d": 2.9,
    "shake_shake26_2x64d": 11.7,
}


def count(name):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(name)[1]["params"]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    assert count(name) == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_parameters_round_to_the_papers(name):
    assert abs(count(name) / 1e6 - ROUNDED[name]) < 0.06


@pytest.mark.parametrize("name", PUBLISHED | ROUNDED)
def test_logits(name):
    logits = shapes_of(name)[0]
    assert logits.shape == (2, 10 if zoo.create(name).usual_input[0] == 32 else 1000)


@pytest.mark.parametrize(("depth", "widen"), [(10, 1), (22, 3)])
def test_wide_counts_in_closed_form(depth, widen):
    model = zoo.create("wide_resnet", depth=depth, widen=widen)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    total, features_in = 27 * 16, 16
    for features in (16 * widen, 32 * widen, 64 * widen):
        for _ in range((depth - 4) // 6):
            total += 9 * features_in * features + 9 * features * features + 2 * features_in + 2 * features
            total += features_in * features if features_in != features else 0
            features_in = features
    total += 2 * features_in + 10 * features_in + 10
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total


# Strides, dropout, norms


@pytest.mark.parametrize(("paper", "size"), [(False, 8), (True, 4)])
def test_the_paper_strides_in_the_first_convolution(paper, size):
    model = resnet((1, 2), 5, bottleneck=True, paper_stride=paper, width=4)

    def forward():
        return model.init_with_output(KEY, jnp.zeros((1, 32, 32, 3)), train=False, capture_intermediates=True)

    convs = jax.eval_shape(forward)[1]["intermediates"]["stage2_first"]["branch"]
    assert convs["conv1"]["__call__"][0].shape == (1, size, size, 8)
    assert convs["conv2"]["__call__"][0].shape == (1, 4, 4, 8)
    if paper:
        with pytest.raises(InputError, match="torchvision has no such network"):
            model.torch_names()


@pytest.mark.parametrize("name", ["cifar_resnet", "cifar_preact", "wide_resnet", "cifar_resnext", "plain18"])
def test_dropout_acts_in_training_alone(name):
    depth = {"cifar_resnet": 8, "cifar_preact": 11, "wide_resnet": 10, "cifar_resnext": 11}
    width = {"wide_resnet": {"widen": 1}, "cifar_resnext": {"groups": 2, "group_width": 2}}
    options = {"depth": depth[name]} if name in depth else {}
    options |= width.get(name, {"width": 4})
    x = images(2, 16, 16, 3)
    plain, drops = (zoo.create(name, num_classes=3, dropout=rate, **options) for rate in (0.0, 0.5))
    variables = draw(plain, x)

    @jax.jit
    def evaluate(variables):
        return [model.apply(variables, x, train=False) for model in (plain, drops)]

    @jax.jit
    def train(key):
        return drops.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0]

    expected, y = evaluate(variables)
    assert_allclose(y, expected)
    assert not np.allclose(train(KEY), train(jax.random.key(1)))


@pytest.mark.parametrize("norm", ["group", "none"])
def test_projections_of_pre_activation_have_no_norm(norm):
    model = zoo.create("wide_resnet", depth=10, widen=2, norm=norm)
    shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
    assert set(shapes) == {"params"}
    assert set(shapes["params"]["stage1_first"]["shortcut"]) == {"conv"}


def test_features_of_wide_networks():
    model = zoo.create("wrn_28_10", features_only=True)
    maps = jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((2, 24, 20, 3)), train=False)[0])
    shapes = {"stem": (24, 20, 16), "stage1": (24, 20, 160), "stage2": (12, 10, 320), "stage3": (6, 5, 640)}
    assert {name: map.shape[1:] for name, map in maps.items()} == shapes


# Stochastic depth


def test_survival_decays_linearly_over_all_units():
    model = zoo.create("stochastic_depth", depth=20, survival=0.5)
    survivals = [p for stage in range(3) for p in model._per_unit(stage)["survival"]]
    assert_allclose(survivals, 1 - np.arange(1, 10) / 9 * 0.5)


@pytest.mark.parametrize("scan", [True, False])
def test_stochastic_depth_scales_its_branches_at_test(scan):
    """Its logits are those of cifar_resnet with each branch's last norm scaled by the survival (eq. 5)."""
    x = images(3, 8, 8, 3)
    drop, add = (zoo.create(name, depth=20, width=4, scan=scan) for name in ("stochastic_depth", "cifar_resnet"))
    variables = draw(add, x)
    scaled = jax.tree.map(np.copy, variables["params"])
    survival = functional.linear_survival(np.arange(1, 10), 9, 0.5)
    for stage in range(3):
        survivals = survival[3 * stage : 3 * stage + 3].astype(np.float32)
        rest = scaled[f"stage{stage + 1}_rest"]
        units = [(scaled[f"stage{stage + 1}_first"], survivals[0])]
        units += (
            [(rest["unit"], survivals[1:, None])]
            if scan
            else [(rest["unit1"], survivals[1]), (rest["unit2"], survivals[2])]
        )
        for unit, p in units:
            unit["branch"]["norm2"] = {name: p * leaf for name, leaf in unit["branch"]["norm2"].items()}
    y = jax.jit(lambda v: drop.apply(v, x, train=False))(variables)
    expected = jax.jit(lambda v: add.apply(v, x, train=False))({**variables, "params": scaled})
    assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(y, jax.jit(lambda v: add.apply(v, x, train=False))(variables), rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "remat"),
    [({}, "unit"), ({"remat": "sqrt"}, "sqrt"), ({"remat": "none"}, "none"), ({"scan": False}, "none"),
     ({"per": "example"}, "none")],
)  # fmt: skip
def test_stochastic_depth_keeps_nothing_of_what_it_drops(options, remat):
    assert zoo.create("stochastic_depth", depth=20, **options).remat == remat


def test_stochastic_depth_of_survival_1_is_the_residual_network():
    x = images(3, 8, 8, 3)
    drop, add = (
        zoo.create("stochastic_depth", depth=14, width=4, survival=1.0),
        zoo.create("cifar_resnet", depth=14, width=4),
    )
    variables = draw(add, x)

    @jax.jit
    def train(variables):
        return [model.apply(variables, x, train=True, mutable=["batch_stats"]) for model in (drop, add)]

    chex.assert_trees_all_close(*train(variables))


def test_stochastic_depth_of_survival_0_drops_the_last_unit():
    """Per batch: the last unit's branch has no gradient in any step, the first's has in about 8 of 9."""
    x = images(2, 8, 8, 3)
    model = zoo.create("stochastic_depth", depth=20, width=4, survival=0.0)
    variables = draw(model, x)

    @jax.jit
    @jax.vmap
    @jax.grad
    def gradients(params, key):
        rngs = {"dropout": key}
        return model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"], rngs=rngs)[0].sum()

    keys = jax.random.split(KEY, 20)
    params = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (20, *leaf.shape)), variables["params"])
    g = gradients(params, keys)
    last = g["stage3_rest"]["unit"]["branch"]["conv1"]["kernel"][:, -1]
    assert (last == 0).all()
    first = np.abs(g["stage1_first"]["branch"]["conv1"]["kernel"]).reshape(20, -1).max(1) > 0
    assert abs(first.mean() - 8 / 9) < 4 * np.sqrt(8 / 81 / 20)


def test_equal_networks_are_equal():
    names = ("stochastic_depth110", "wrn_28_10", "resnext50_32x4d", "shake_shake26_2x32d")
    for name in names:
        assert zoo.create(name) == zoo.create(name)
        hash(zoo.create(name))


# Shake-shake


def torch_shake(torch, variables, x, depths):
    """The network as Gastaldi's code builds it, in evaluation or with even shares: both branches count half."""
    f = torch.nn.functional
    flat = {
        collection: {
            "/".join(path): torch.from_numpy(np.float64(leaf)).requires_grad_(collection == "params")
            for path, leaf in flatten_dict(unstack_units(tree)).items()
        }
        for collection, tree in variables.items()
    }
    params, moments = flat["params"], flat["batch_stats"]

    def conv(y, name, stride=1):
        kernel = params[f"{name}/kernel"].permute(3, 2, 0, 1)
        return f.conv2d(y, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(y, name):
        p, m = (lambda key: params[f"{name}/{key}"]), (lambda key: moments[f"{name}/{key}"])
        return f.batch_norm(y, m("mean"), m("var"), p("scale"), p("bias"), False, 0.1, 1e-5)

    def branch(y, name, stride):
        y = norm(conv(f.relu(y), f"{name}/conv1", stride), f"{name}/norm1")
        return norm(conv(f.relu(y), f"{name}/conv2"), f"{name}/norm2")

    def shortcut(y, name, stride):
        y = f.relu(y)
        first = conv(f.avg_pool2d(y, 1, stride), f"{name}/conv1")
        second = conv(f.avg_pool2d(f.pad(y, (-1, 1, -1, 1)), 1, stride), f"{name}/conv2")
        return norm(torch.cat([first, second], 1), f"{name}/norm")

    y = norm(conv(torch.from_numpy(np.moveaxis(np.float64(x), -1, 1).copy()), "stem_conv"), "stem_norm")
    for stage, depth in enumerate(depths, 1):
        for i in range(depth):
            name, stride = (
                f"stage{stage}_rest/unit{i}" if i else f"stage{stage}_first",
                2 if stage > 1 and i == 0 else 1,
            )
            mixed = 0.5 * branch(y, f"{name}/branch/a", stride) + 0.5 * branch(y, f"{name}/branch/b", stride)
            y = mixed + (y if i else shortcut(y, f"{name}/shortcut", stride))
    return f.relu(y).mean((2, 3)) @ params["head/kernel"] + params["head/bias"], params


@pytest.mark.parametrize("scan", [True, False])
def test_shake_shake_is_its_authors(scan):
    torch = pytest.importorskip("torch")
    x, weights = images(2, 9, 8, 3), images(2, 5, seed=1)
    model = zoo.create("shake_shake", num_classes=5, depth=20, width=4, scan=scan)
    variables = draw(model, x)

    @jax.jit
    @jax.grad
    def gradient(params):
        return (model.apply({**variables, "params": params}, x, train=False) * weights).sum()

    expected, params = torch_shake(torch, variables, x, (3, 3, 3))
    (expected * torch.from_numpy(weights)).sum().backward()
    y = jax.jit(lambda v: model.apply(v, x, train=False))(variables)
    assert_allclose(y, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    ours = {"/".join(path): leaf for path, leaf in flatten_dict(unstack_units(gradient(variables["params"]))).items()}
    assert set(ours) == set(params)
    for name, leaf in params.items():
        theirs = leaf.grad.numpy()
        assert_allclose(ours[name], theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max() + 1e-7, err_msg=name)


def test_shake_shake_mixes_as_its_options_say():
    x = images(4, 8, 8, 3)
    even = zoo.create("shake_shake", depth=8, width=4, forward="even", backward="even")
    variables = draw(even, x)

    def train(key, **options):
        model = zoo.create("shake_shake", depth=8, width=4, **options)

        @jax.jit
        def step(params):
            def loss(params):
                rngs = {} if key is None else {"dropout": key}
                variables_ = {**variables, "params": params}
                y, _ = model.apply(variables_, x, train=True, mutable=["batch_stats"], rngs=rngs)
                return y.sum(), y

            (_, y), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            return y, gradients["stage3_first"]["branch"]["a"]["norm2"]["bias"]

        return [np.asarray(each) for each in step(variables["params"])]

    y, g = train(None, forward="even", backward="even")
    shaken, _ = train(KEY)
    assert not np.allclose(shaken, y, rtol=1e-2)
    backwards, other = train(KEY, forward="even")
    assert_allclose(backwards, y, rtol=1e-5)
    assert not np.allclose(other, g, rtol=1e-2)
    assert not np.allclose(train(KEY, per="batch")[0], shaken, rtol=1e-2)


def test_two_paths_of_an_odd_number_of_features():
    x = images(1, 5, 5, 3)
    shapes = jax.eval_shape(lambda: TwoPaths(5, 2).init_with_output(KEY, x, train=False))
    assert shapes[0].shape == (1, 3, 3, 5)
    assert [shapes[1]["params"][name]["kernel"].shape[-1] for name in ("conv1", "conv2")] == [2, 3]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wide_resnet", {"depth": 27}, "depth 27 is not 6n \\+ 4; the nearest are 22 and 28"),
        ("wide_resnet", {"widen": 0}, "widen 0"),
        ("wide_resnet", {"branch_init": "zero_scale"}, "zero_scale needs order post"),
        ("wrn_28_10", {"dropout": 1.5}, "dropout 1.5 is a probability"),
        ("wrn_28_10", {"widen": 2}, "no option 'widen'"),
        ("cifar_resnext", {"groups": 0}, "groups 0"),
        ("cifar_resnext", {"depth": 30}, "nearest are 29 and 38"),
        ("stochastic_depth110", {"survival": -0.1}, "survival -0.1 is a probability"),
        ("stochastic_depth110", {"scaling": "invert"}, "did you mean 'inverted'"),
        ("stochastic_depth110", {"per": "image"}, "per 'image' is unknown"),
        ("shake_shake", {"depth": 28}, "nearest are 26 and 32"),
        ("shake_shake", {"forward": "keep"}, "forward 'keep' is unknown"),
        ("shake_shake", {"backward": "shaken"}, "did you mean 'shake'"),
        ("shake_shake", {"per": "example"}, "per 'example' is unknown"),
        ("shake_shake", {"norm": "zero_batch"}, "norm 'zero_batch' is unknown"),
        ("shake_shake", {"width": 0}, "width 0"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)


def test_errors_of_the_factory():
    with pytest.raises(InputError, match="groups 3 must divide"):
        resnet((1, 1), groups=3)
    with pytest.raises(InputError, match="paper_stride: units of two 3x3"):
        resnet((1, 1), paper_stride=True)
    with pytest.raises(InputError, match="widen 0"):
        resnet((1, 1), widen=0)
