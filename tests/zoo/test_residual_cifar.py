"""Residual networks for CIFAR: wide, grouped and stochastically deep ones; their options and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, zoo
from deepjax.errors import InputError
from helpers import draw_variables

KEY = jax.random.key(0)


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


def test_dropout_acts_in_training_alone():
    for name in ("cifar_resnet", "cifar_preact", "wide_resnet", "cifar_resnext", "stochastic_depth", "cifar_plain"):
        assert zoo.create(name, dropout=0.5).dropout == 0.5
    x = images(2, 8, 8, 3)
    options = {"num_classes": 3, "depth": 11, "width": 4}
    plain, drops = (zoo.create("cifar_preact", dropout=rate, **options) for rate in (0.0, 0.5))
    variables = draw_variables(plain, x)

    @jax.jit
    def run(keys):
        def train(key):
            return drops.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0]

        return [model.apply(variables, x, train=False) for model in (plain, drops)], jax.vmap(train)(keys)

    (expected, y), trained = run(jax.random.split(KEY))
    assert_allclose(y, expected)
    assert not np.allclose(trained[0], trained[1])


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
    drop, add = (zoo.create(name, depth=14, width=4, scan=scan) for name in ("stochastic_depth", "cifar_resnet"))
    variables = draw_variables(add, x)
    scaled = jax.tree.map(np.copy, variables["params"])
    survivals = iter(functional.linear_survival(np.arange(1, 7), 6, 0.5).astype(np.float32))
    for stage in (1, 2, 3):
        rest = scaled[f"stage{stage}_rest"]
        for unit in (scaled[f"stage{stage}_first"], rest["unit"] if scan else rest["unit1"]):
            p = next(survivals)
            unit["branch"]["norm2"] = {name: p * leaf for name, leaf in unit["branch"]["norm2"].items()}

    @jax.jit
    def run(variables):
        return [net.apply(variables, x, train=False) for net in (drop, add)]

    y, unscaled = run(variables)
    assert_allclose(y, run({**variables, "params": scaled})[1], rtol=1e-4, atol=1e-4)
    assert not np.allclose(y, unscaled, rtol=1e-2)


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
        zoo.create("stochastic_depth", depth=8, width=4, survival=1.0),
        zoo.create("cifar_resnet", depth=8, width=4),
    )
    variables = draw_variables(add, x)

    @jax.jit
    def train(variables):
        return [model.apply(variables, x, train=True, mutable=["batch_stats"]) for model in (drop, add)]

    chex.assert_trees_all_close(*train(variables))


def test_stochastic_depth_of_survival_0_drops_the_last_unit():
    """Per batch: the last unit's branch has no gradient in any step, the first's has in about 2 of 3."""
    x = images(2, 8, 8, 3)
    model = zoo.create("stochastic_depth", depth=8, width=4, survival=0.0)
    variables = draw_variables(model, x)

    @jax.jit
    @jax.vmap
    @jax.grad
    def gradients(params, key):
        rngs = {"dropout": key}
        return model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"], rngs=rngs)[0].sum()

    keys = jax.random.split(KEY, 20)
    params = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (20, *leaf.shape)), variables["params"])
    trees = jax.device_get(gradients(params, keys))
    first, last = (
        np.abs(trees[f"stage{stage}_first"]["branch"]["conv1"]["kernel"]).reshape(20, -1).max(1) > 0 for stage in (1, 3)
    )
    assert not last.any()
    assert abs(first.mean() - 2 / 3) < 4 * np.sqrt(2 / 9 / 20)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wide_resnet", {"depth": 27}, "depth 27 is not 6n \\+ 4; the nearest are 22 and 28"),
        ("wide_resnet", {"widen": 0}, "widen 0"),
        ("wide_resnet", {"branch_init": "zero_scale"}, "zero_scale needs order post"),
        ("wide_resnet", {"order": "last"}, "has no option 'order'"),
        ("cifar_resnet", {"order": "pre"}, "order 'pre' is unknown"),
        ("cifar_resnet", {"order": "last", "norm": "none"}, "order last has no effect with norm none"),
        ("wrn_28_10", {"dropout": 1.5}, "dropout 1.5 is a probability"),
        ("wrn_28_10", {"widen": 2}, "no option 'widen'"),
        ("cifar_resnext", {"groups": 0}, "groups 0"),
        ("cifar_resnext", {"depth": 30}, "nearest are 29 and 38"),
        ("stochastic_depth110", {"survival": -0.1}, "survival -0.1 is a probability"),
        ("stochastic_depth110", {"scaling": "invert"}, "did you mean 'inverted'"),
        ("stochastic_depth110", {"per": "image"}, "per 'image' is unknown"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        zoo.create(name, **options)
