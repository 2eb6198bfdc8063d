"""Folding batch norm: outputs stay the same, and norms go."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import layers, zoo
from deepjax.errors import InputError
from deepjax.transforms import fold_batch_norm
from deepjax.units import stack
from deepjax.zoo import plain, residual, small
from transforms.folding import KEY, Block, Together, assert_folds, draw, images, normalization, repeated, scanned

# The zoo

ZOO = {
    "cifar_resnet20": {"width": 4},
    "cifar_resnet": {"depth": 8, "width": 4, "shortcut": "C"},
    "cifar_plain": {"depth": 8, "width": 4, "scan": False},
    "resnet50": {"width": 4},
    "mlp": {"depth": 4, "width": 8},
}


@pytest.mark.parametrize("name", ZOO)
def test_zoo_networks_fold_whole(name):
    model = zoo.create(name, num_classes=5, **ZOO[name])
    x = images(2, 16, 16, 3)
    variables = draw(model, x, train=False)
    folding = assert_folds(model, variables, x, train=False)
    assert folding.left == {}
    assert folding.parameters_left == 0
    assert normalization(folding.variables) == set()
    assert "batch_stats" not in folding.variables


@pytest.mark.parametrize(("scan", "shortcut"), [(True, "B"), (False, "A")])
def test_pre_activation_keeps_what_follows_an_addition(scan, shortcut):
    model = zoo.create("cifar_preact", num_classes=5, depth=29 if scan else 20, width=4, shortcut=shortcut, scan=scan)
    x = images(2, 8, 8, 3)
    variables = draw(model, x, train=False)
    folding = assert_folds(model, variables, x, train=False)
    units = ["unit"] if scan else ["unit1"]
    left = [f"stage{i}_rest/{unit}/branch/norm1" for i in (1, 2, 3) for unit in units]
    left += ["stage2_first/before/norm", "stage3_first/before/norm", "final/norm"]
    if shortcut == "A":
        assert "stage1_first/before/norm" in folding.folded
    assert set(folding.left) == set(left)
    # features 16, 32, 64: as often as a stage has units, with the next stage's first one or the final norm
    assert folding.parameters_left == 2 * (3 if scan else 2) * (16 + 32 + 64)
    assert len(normalization(folding.variables)) == 4 * len(left)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "left"),
    [
        ("mobilenet_v3_small", 64, 0),
        ("googlenet", 64, 2),
        ("xception", 64, 0),
        ("vgg11_bn", 32, 0),
        ("shake_shake", 16, 3),
    ],
)
def test_other_families_fold(name, side, left):
    """Norms of auxiliary heads are left, because inference does not call them, and those after two convolutions."""
    model, x = zoo.create(name, num_classes=5), images(2, side, side, 3)
    folding = fold_batch_norm(model, variables := draw(model, x, train=False), x)
    assert len(folding.left) == left
    expected = jax.jit(lambda v: model.apply(v, x, train=False))(variables)
    y = jax.jit(lambda v: folding.model.apply(v, x, train=False))(folding.variables)
    assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_every_name_in_the_zoo_folds_as_issued():
    """Which norms are folded depends only on how the layers are connected, so nothing is computed."""
    for name in residual.MODELS | plain.MODELS | small.MODELS | {"cifar_preact164": None}:
        if name.endswith(("1202", "1001", "152")):  # the same code as their shorter namesakes, but slow to write out
            continue
        model = zoo.create(name, **({"width": 32} if "width" in zoo.options_of(name) else {}))
        x = jax.ShapeDtypeStruct((1, *model.usual_input), jnp.float32)
        abstract = jax.eval_shape(partial(model.init, train=False), KEY, x)
        folding = fold_batch_norm(model, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract), x)
        assert bool(folding.left) == name.startswith("cifar_preact")
        assert bool(folding.parameters_left) == name.startswith("cifar_preact")


def test_masks_do_not_matter_and_other_variables_stay():
    model = zoo.create("cifar_resnet", num_classes=5, depth=8, width=4)
    x = images(4, 8, 8, 3)
    variables = draw(model, x, train=False)
    before = jax.tree.map(np.array, variables)
    folding = assert_folds(model, variables, x, train=False, mask=jnp.arange(4) < 3)
    chex.assert_trees_all_equal(variables, before)  # folding makes new ones
    chex.assert_trees_all_equal(folding.variables["params"]["head"], variables["params"]["head"])
    assert folding.variables["params"]["stem_conv"]["bias"].dtype == jnp.float32


def test_bfloat16_computation():
    model = zoo.create("cifar_resnet", num_classes=5, depth=8, width=8, dtype="bfloat16")
    x = images(4, 8, 8, 3)
    # one rounding per layer: 2^-8 each, some ten of them
    assert_folds(model, draw(model, x, train=False), x, rtol=0.05, train=False)


def test_float64_variables_stay_float64():
    with jax.enable_x64(True):
        model = nn.Sequential([nn.Dense(4, param_dtype=float), nn.BatchNorm(True, param_dtype=float), nn.Dense(2)])
        x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)))
        noise = np.random.default_rng(1).standard_normal
        shapes = jax.eval_shape(lambda: model.init(KEY, x))
        variables = jax.tree.map(lambda leaf: jnp.asarray(0.5 + abs(noise(leaf.shape))), shapes)
        folding = assert_folds(model, variables, x, rtol=1e-12)
        assert folding.variables["params"]["layers_0"]["bias"].dtype == jnp.float64


# A user's own models


class Users(nn.Module):
    """Flax's own layers, a `training` argument, biases or not, groups, strides, a layer without scale."""

    @nn.compact
    def __call__(self, x, training=False):
        norm = partial(nn.BatchNorm, use_running_average=not training)
        x = nn.Conv(8, (3, 3), padding="SAME", name="with_bias")(x)
        x = nn.relu(norm(epsilon=1e-2, name="norm1")(x))
        x = nn.Conv(12, (3, 3), 2, feature_group_count=4, use_bias=False, padding="CIRCULAR", name="grouped")(x)
        x = nn.gelu(norm(use_scale=False, name="norm2")(x))
        x = nn.Conv(6, (1, 1), use_bias=False, name="pointwise")(x)
        x = norm(use_bias=False, axis=3, name="norm3")(x).mean((1, 2))
        x = nn.Dense(10, use_bias=False, name="dense")(x)
        x = nn.tanh(norm(name="norm4")(x))
        return nn.Dense(3, name="head")(x)


def test_flaxs_own_layers_fold():
    x = images(3, 8, 8, 3)
    folding = assert_folds(Users(), draw(Users(), x), x)
    assert folding.folded == {
        "norm1": "with_bias",
        "norm2": "grouped",
        "norm3": "pointwise",
        "norm4": "dense",
    }
    assert folding.parameters_left == 0


def test_norms_of_every_kind_fold():
    kinds = (layers.BatchNorm, layers.BatchRenorm, layers.GhostBatchNorm, layers.MovingAverageBatchNorm)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            for i, kind in enumerate(kinds):
                x = nn.relu(kind(name=f"norm{i}", epsilon=10.0**-i)(nn.Dense(4)(x), train=train))
            return nn.Dense(3)(x)

    x = images(5, 4)
    assert len(assert_folds(Net(), draw(Net(), x, train=False), x, train=False).folded) == len(kinds)


AFTER_A_NORM = [  # whether the norm folds into it
    (nn.Conv(6, (3, 3), padding="VALID"), True),
    (nn.Conv(6, (3, 3), 2, padding=0, feature_group_count=2, use_bias=False), True),
    (nn.Conv(8, (2, 2), padding=((0, 0), (0, 0)), feature_group_count=4), True),
    (nn.Conv(6, (1, 1), 2), True),  # "SAME", but of a single pixel
    (nn.Dense(6), True),
    (nn.Dense(6, use_bias=False), True),
    (layers.Conv(6, (3, 2), padding=0, groups=2), True),
    (layers.Conv(6, (3, 3), padding="VALID", dilation=2, use_bias=True), True),
    (nn.Conv(6, (3, 3)), False),
    (nn.Conv(6, (3, 3), padding=((0, 0), (0, 1))), False),
    (layers.Conv(6, (3, 3), padding=1), False),
    (layers.Conv(6, (1, 1), padding=(1, 0)), False),
    (nn.Conv(6, (2, 2), padding="VALID", mask=np.ones((2, 2, 4, 6))), False),
]


def test_a_norm_before_a_layer_folds_where_nothing_is_padded():
    model = Together(tuple(nn.Sequential([nn.BatchNorm(True), layer]) for layer, _ in AFTER_A_NORM))
    x = images(2, 7, 6, 4)
    folding = assert_folds(model, draw(model, x), x)
    names = [(f"models_{i}/layers_0", f"models_{i}/layers_1", folds) for i, (_, folds) in enumerate(AFTER_A_NORM)]
    assert folding.folded == {norm: layer for norm, layer, folds in names if folds}
    assert folding.left == {norm: f"{layer} after it pads" for norm, layer, folds in names if not folds}


def test_a_layer_between_two_norms_takes_up_both_and_two_norms_in_a_row_too():
    norm = partial(nn.BatchNorm, use_running_average=True)
    model = nn.Sequential([norm(), nn.Conv(6, (3,), padding="VALID"), norm(), norm(epsilon=0.1), nn.Dense(2)])
    x = images(2, 7, 4)
    folding = assert_folds(model, draw(model, x), x)
    assert folding.folded == dict.fromkeys(["layers_0", "layers_2", "layers_3"], "layers_1")


class Transformed(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        if self.kind == "stack":
            return stack(Block(), 4, name="blocks")(x, train=False)
        if self.kind == "remat":
            return nn.remat(Block)(name="block")(x)
        if self.kind == "jit":
            return nn.jit(Block)(name="block")(x)
        if self.kind == "tied scan":
            body = repeated(lambda block, x, _: (block(x), None), variable_broadcast=["params", "batch_stats"])
            return body(Block(name="block"), x, None)[0]
        if self.kind == "vmap":
            options = {"variable_axes": axes, "split_rngs": {"params": True}}
            return nn.vmap(Block, in_axes=None, out_axes=1, axis_size=4, **options)(name="blocks")(x)
        once = scanned(lambda block, x, _: (block(x), None), axes)
        if self.kind == "scan of remat":
            return once(nn.remat(Block)(name="block"), x, None)[0]
        return scanned(lambda block, x, _: once(block, x, None), axes)(Block(name="block"), x, None)[0]


def test_transformed_modules():
    """Depth and features are equal, so that an axis taken for another would show."""
    kinds = ("stack", "remat", "jit", "tied scan", "vmap", "scan of remat", "scan of scan")
    model, x = Together(tuple(map(Transformed, kinds))), images(3, 4)
    folding = assert_folds(model, draw(model, x), x)
    assert len(folding.folded) == len(kinds)
    assert folding.left == {}
    assert normalization(folding.variables) == set()


# Errors


def test_a_folded_model_refuses_to_train():
    for model, x, call in (
        (zoo.create("cifar_resnet", num_classes=5, depth=8, width=4), images(2, 8, 8, 3), {"train": True}),
        (zoo.create("cifar_preact", num_classes=5, depth=11, width=4), images(2, 8, 8, 3), {"train": True}),
        (zoo.create("mlp", num_classes=5), images(2, 8), {"train": True}),
        (Users(), images(2, 8, 8, 3), {"training": True}),
    ):
        evaluation = {"train": False} if "train" in call else {}
        folding = fold_batch_norm(model, draw(model, x, **evaluation), x)
        with pytest.raises(InputError, match="for inference"):
            jax.eval_shape(partial(folding.model.apply, **call, mutable="batch_stats"), folding.variables, x)


def test_errors_say_what_fits():
    model = zoo.create("cifar_resnet", num_classes=5, depth=8, width=4)
    x = images(2, 8, 8, 3)
    variables = draw(model, x, train=False)
    with pytest.raises(InputError, match="images must be"):
        fold_batch_norm(model, variables, x[0])
    with pytest.raises(InputError, match=r"does not take an input of shape \(2, 8, 8, 2\)"):
        fold_batch_norm(model, variables, x[..., :2])
    with pytest.raises(InputError, match="arguments of an inference call"):
        fold_batch_norm(model, variables, x, train=True)
    with pytest.raises(InputError, match="does not take an input"):
        fold_batch_norm(model, {"params": variables["params"]}, x)
    folding = fold_batch_norm(model, variables, x)
    with pytest.raises(InputError, match="stem_conv has no bias"):
        folding.model.apply(variables, x, train=False)
