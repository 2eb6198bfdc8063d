"""Branches that start at zero: Fixup, SkipInit, ReZero, zero scales; what learns first, counts, what cannot learn."""

from operator import itemgetter

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import initializers, zoo
from deepjax.errors import InputError
from deepjax.units import Add, Branch, NormActivation, Plain, Projection, SkipInit, Unit, stack
from deepjax.zoo.residual import imagenet
from helpers import draw_variables, random_arrays, to_torch

KEY = jax.random.key(0)
FIXUP = {"norm": None, "branch_init": "fixup", "branches": 3}
SKIP_INIT = {"norm": None, "join": SkipInit}


def images(*shape, seed=0):
    return random_arrays(seed, shape)[0]


def basic_unit(order="post", features=4, *, join=Add, **branch):
    branch = Branch((features, features), (3, 3), (1, 1), order, **branch)
    return Unit(branch, join(), activation=nn.relu if order == "post" else None)


ZERO_STARTS = {  # order, options, what learns in the first step
    "zero_scale": ("post", {"branch_init": "zero_scale"}, {"branch/norm2/scale", "branch/norm2/bias"}),
    "skip_init": ("post", SKIP_INIT, {"join/alpha"}),
    "rezero": ("pre", {"join": SkipInit}, {"join/alpha"}),
    "fixup": ("post", FIXUP, {"branch/conv2/kernel", "branch/norm2/bias"}),
    "fixup_pre": ("pre", FIXUP, {"branch/conv2/kernel"}),
}


@pytest.mark.parametrize("name", ZERO_STARTS)
def test_zero_starts_are_the_identity_and_learn(name):
    """At first one parameter or two per branch have a gradient, after one step of descent all have."""
    order, options, first = ZERO_STARTS[name]
    x, weights = abs(images(3, 5, 5, 4)), images(3, 5, 5, 4, seed=1)
    net = stack(basic_unit(order, **options), 2)
    variables = jax.jit(lambda: net.init(KEY, x, train=False))()

    @jax.jit
    def run(params):
        def loss(params):
            y = net.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])[0]
            return (y * weights).sum(), y

        gradients, y = jax.grad(loss, has_aux=True)(params)
        return y, net.apply({**variables, "params": params}, x, train=False), gradients

    def learning(gradients):
        return [
            {"/".join(path) for path, leaf in flax.traverse_util.flatten_dict(unit).items() if np.abs(leaf).max() > 0}
            for unit in (jax.tree.map(itemgetter(i), gradients["unit"]) for i in range(2))
        ]

    params = jax.device_get(variables["params"])
    y, evaluated, gradients = jax.device_get(run(params))
    assert_allclose(y, x, rtol=1e-6)
    assert_allclose(evaluated, x, rtol=1e-6)
    assert learning(gradients) == [first] * 2
    stepped = jax.tree.map(lambda p, g: p - np.float32(0.01) * g, params, gradients)
    everything = {"/".join(path) for path in flax.traverse_util.flatten_dict(params["unit"])}
    assert learning(jax.device_get(run(stepped)[2])) == [everything] * 2


def test_a_zero_initialized_branch_is_the_identity():
    x = images(3, 5, 5, 4)
    net = stack(basic_unit("pre", kernel_init=initializers.zeros), 4, scan=False)
    assert_allclose(jax.jit(lambda: net.init_with_output(KEY, x, train=True)[0])(), x)


@pytest.mark.parametrize("features", [(40, 60), (40, 30, 60)])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_fixup_starts_small_and_at_zero(features, order):
    """L^(-1 / (2m - 2)) of He's deviation at four sigma, with m = 2 and m = 3 layers in the branch (rule 2)."""
    m, depth = len(features), 54
    branch = Branch(features, (3,) * m, (1,) * m, order, norm=None, branch_init="fixup", branches=depth)
    params = jax.device_get(jax.jit(lambda: branch.init(KEY, images(1, 3, 3, 40), train=False))()["params"])
    for i, width in enumerate(features[:-1]):
        kernel = np.float64(params[f"conv{i + 1}"]["kernel"])
        deviation = depth ** (-1 / (2 * m - 2)) * np.sqrt(2 / (9 * width))
        assert abs(np.mean(kernel**2) / deviation**2 - 1) < 4 * np.sqrt(2 / kernel.size)
    assert (params[f"conv{m}"]["kernel"] == 0).all()
    scalars = {key: leaf for key, leaf in flax.traverse_util.flatten_dict(params).items() if "kernel" not in key}
    assert {leaf.shape for leaf in scalars.values()} == {()}
    assert {key: float(leaf) for key, leaf in scalars.items()} == {
        **{(f"{part}{i + 1}", "bias"): 0.0 for part in ("shift", "norm") for i in range(m)},
        ("scale",): 1.0,
    }


def test_a_step_of_fixup_does_not_grow_with_depth():
    """A small step on the kernels changes the loss by |gradient|^2: alike for 32 units and 8; unscaled, 4 times."""
    x, weights = images(2, 5, 5, 8), images(2, 5, 5, 8, seed=1)

    def step(depth, branches):
        net = stack(basic_unit("pre", 8, norm=None, branch_init="fixup", branches=branches), depth)
        params = net.init(KEY, x, train=False)["params"]
        gradients = jax.grad(lambda p: (net.apply({"params": p}, x, train=True) * weights).sum())(params)
        return sum((leaf["kernel"] ** 2).sum() for leaf in map(gradients["unit"]["branch"].get, ("conv1", "conv2")))

    shallow, deep, unscaled = jax.device_get(jax.jit(lambda: [step(8, 8), step(32, 32), step(32, 8)])())
    assert_allclose(deep / shallow, 1, rtol=0.15)
    assert_allclose(unscaled / shallow, 4, rtol=0.15)


@pytest.mark.parametrize("windows", [(3, 3), (1, 3, 1)])
def test_a_fixup_unit_is_its_authors(windows):
    """FixupBasicBlock and FixupBottleneck of the paper's code, in PyTorch."""
    torch = pytest.importorskip("torch")
    m = len(windows)
    x = images(2, 5, 5, 4)
    features = (6, 4) if m == 2 else (3, 3, 4)
    branch = Branch(features, windows, (1,) * m, norm=None, branch_init="fixup", branches=1)
    unit = Unit(branch, Add(), activation=nn.relu)
    variables = draw_variables(unit, x)
    p = jax.tree.map(lambda a: torch.from_numpy(np.array(a, np.float64)), variables["params"]["branch"])
    identity = y = to_torch(x)
    for i, window in enumerate(windows):
        kernel = p[f"conv{i + 1}"]["kernel"].permute(3, 2, 0, 1)
        y = torch.nn.functional.conv2d(y + p[f"shift{i + 1}"]["bias"], kernel, padding=window // 2)
        if i < m - 1:
            y = torch.relu(y + p[f"norm{i + 1}"]["bias"])
    y = torch.relu(y * p["scale"] + p[f"norm{m}"]["bias"] + identity)
    ours = jax.jit(lambda v: unit.apply(v, x, train=True))(variables)
    assert_allclose(ours, y.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [FIXUP, SKIP_INIT])
def test_zero_starts_in_bfloat16(options):
    x = jnp.zeros((2, 4, 4, 4), jnp.bfloat16)
    net = stack(basic_unit(dtype=jnp.bfloat16, **options), 2)
    variables = jax.eval_shape(lambda: net.init(KEY, x, train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert jax.eval_shape(lambda v: net.apply(v, x, train=False), variables).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (lambda: basic_unit(norm="batch"), "norm 'batch' must be a module factory or None"),
        (lambda: basic_unit(norm=True), "norm True must be a module factory or None"),
        (lambda: basic_unit(branch_init="fix-up"), "branch_init 'fix-up' is unknown; did you mean 'fixup'"),
        (lambda: basic_unit(**FIXUP | {"branches": 0}), "branches 0 must be the network's number of branches"),
        (lambda: basic_unit(branch_init="fixup"), "fixup takes the place of normalization; set norm none"),
        (lambda: basic_unit(norm=None, branch_init="zero_scale"), "zero_scale needs a normalization"),
        (lambda: basic_unit("pre", branch_init="zero_scale"), "zero_scale needs order post"),
        (lambda: basic_unit(branch_init="zero_scale", join=SkipInit), "start the branch at 0 twice"),
        (lambda: basic_unit(**FIXUP, join=SkipInit), "start the branch at 0 twice"),
        (lambda: basic_unit(**FIXUP, join=Plain), "needs a skip, and the join Plain has none"),
        (lambda: basic_unit(branch_init="skip_init"), "skip_init is the join SkipInit"),
        (lambda: NormActivation(norm="layer"), "norm 'layer' must be a module factory"),
        (lambda: Projection(4, norm="none"), "norm 'none' must be a module factory"),
    ],
)
def test_starts_that_cannot_learn(unit, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: unit().init(KEY, images(2, 4, 4, 4), train=False))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar_resnet", {"norm": "bach"}, "norm 'bach' is unknown; did you mean 'batch'"),
        ("cifar_resnet", {"branch_init": "fix-up"}, "did you mean 'fixup'"),
        ("cifar_preact", {"branch_init": "zero_scale"}, "zero_scale needs order post"),
        ("cifar_resnet", {"branch_init": "fixup"}, "fixup takes the place of normalization"),
        ("resnet18", {"norm": "none", "branch_init": "zero_scale"}, "zero_scale needs a normalization"),
        ("stochastic_depth", {"branch_init": "skip_init"}, "cannot replace Drop"),
        ("monster", {"branch_init": "fixup"}, "fixup takes the place of normalization"),
        ("plain18", {"branch_init": "skip_init"}, "no option 'branch_init'"),
    ],
)
def test_networks_that_cannot_learn(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)
    with pytest.raises(InputError, match="skip_init needs a skip, and the join Plain has none"):
        imagenet((1, 1), join=Plain, branch_init="skip_init")


def test_plain_addition_without_normalization_explodes():
    x = images(4, 5, 5, 4)
    net = stack(basic_unit(norm=None), 54)
    y = jax.jit(lambda: net.init_with_output(KEY, x, train=False)[0])()
    assert np.square(y).mean() > 1e6


def test_fixup_networks_know_their_number_of_branches():
    """All branches of the network, not those of a stage; and the classifier starts at 0."""
    model = zoo.create("cifar_resnet", depth=20, width=4, norm="none", branch_init="fixup")
    logits, variables = jax.jit(lambda: model.init_with_output(KEY, images(2, 8, 8, 3), train=False))()
    kernels = np.float64(variables["params"]["stage3_rest"]["unit"]["branch"]["conv1"]["kernel"])
    assert abs(np.mean(kernels**2) * 9 * 9 * 16 / 2 - 1) < 4 * np.sqrt(2 / kernels.size)
    assert (np.asarray(logits) == 0).all()


CONVS = 1_727_962 - 2 * (16 + 36 * 112)  # of cifar_resnet110, less 2 per normalized feature: kernels and the head
STARTS = {
    "fixup": (
        "cifar_resnet110",
        {"norm": "none", "branch_init": "fixup"},
        CONVS + 54 * 5 + 2,
    ),  # as the paper's code: 5 per branch, stem, head
    "zero_scale": ("cifar_resnet110", {"branch_init": "zero_scale"}, 1_727_962),
    "skip_init": ("cifar_resnet110", {"norm": "none", "branch_init": "skip_init"}, CONVS + (16 + 36 * 112) + 54),
    "rezero": ("cifar_resnet110", {"branch_init": "skip_init"}, 1_727_962 + 54),
    # 53,120 numbers of normalization; 7 in each of 16 branches, 1 in each of 4 projections, the stem, the head
    "fixup_50": ("resnet50", {"norm": "none", "branch_init": "fixup"}, 25_557_032 - 53_120 + 16 * 7 + 4 + 2),
    "fixup_pre": ("cifar_preact164", {"norm": "none", "branch_init": "fixup"}, None),
}


@pytest.mark.parametrize("name", STARTS)
def test_parameters_of_zero_starts(name):
    model, options, count = STARTS[name]
    params = jax.eval_shape(lambda: zoo.create(model, **options).init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
    leaves = flax.traverse_util.flatten_dict(params["params"])
    if count is None:  # kernels as ever; 54 branches with 7 numbers, of which one is in `before` where shapes change
        usual = jax.eval_shape(lambda: zoo.create(model).init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))["params"]
        kernels = [leaf for path, leaf in flax.traverse_util.flatten_dict(usual).items() if path[-1] == "kernel"]
        count = sum(leaf.size for leaf in kernels) + 10 + 54 * 7 + 3 + 2  # the head's bias, projections, final and head
    assert sum(leaf.size for leaf in leaves.values()) == count
