"""Batch normalization in any model: frozen it is that of evaluation, and its batch moments are NumPy's."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import helpers
from deepjax import layers, zoo
from deepjax.trace import around_calls
from deepjax.trace.batch_norm import frozen_batch_norms, is_batch_norm, observed_batch_moments
from deepjax.units import Branch, ConvNorm, Reversible, norm_factory, stack

KEY = jax.random.key(0)


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def test_which_modules_are_batch_norms():
    kinds = (layers.BatchNorm, layers.BatchRenorm, layers.GhostBatchNorm, layers.MovingAverageBatchNorm, nn.BatchNorm)
    assert all(is_batch_norm(kind()) for kind in kinds)
    others = (ConvNorm(2), nn.LayerNorm(), layers.GroupNorm(), nn.SpectralNorm(nn.Dense(2)), nn.Dense(2))
    assert not any(is_batch_norm(module) for module in others)


# Frozen norms

FAMILIES = {  # one network of each family that is made of ConvNorm, and others; (options, side of the images)
    "mobilenet_v2": ({"width": 0.1}, 32),
    "cifar_densenet": ({"depth": 10, "growth": 4}, 8),
    "vgg11_bn": ({}, 32),
    "monster": ({"depth": 2, "width": 4}, 7),
    "cifar_resnet": ({"depth": 14, "width": 4}, 8),
    "efficientnet_b0": ({"width": 0.1, "survival": 1.0}, 32),
    "googlenet": ({}, 15),
}
SLOW = ("efficientnet_b0", "googlenet")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAMILIES])
def test_a_network_whose_norms_are_frozen_computes_as_in_evaluation(name):
    """Training with frozen norms traces to the very program of evaluation, moments included; otherwise it does not."""
    options, side = FAMILIES[name]
    model, x = zoo.create(name, features_only=True, **options), jnp.ones((2, side, side, 3))
    variables = jax.eval_shape(lambda: model.init(KEY, x, train=False))

    def program(train, frozen):
        def run(variables):
            with frozen_batch_norms(frozen):
                return model.apply(variables, x, train=train, mutable=["batch_stats"])

        return str(jax.make_jaxpr(run)(variables))

    assert program(True, {"*": True}) == program(False, {}) != program(True, {"*": False})


class Users(nn.Module):
    """A user's model of Flax's layers: a norm of each style, a shared one, one in a scan of recomputed steps."""

    evaluate: bool = False  # compute as if `first` and `units` were frozen

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(momentum=0.8, name="first")(x, not train or self.evaluate)
        shared = nn.BatchNorm(use_running_average=not train, name="shared")
        x = shared(nn.relu(shared(x)))
        axes = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        units = nn.scan(nn.remat(UsersUnit), length=3, **axes)
        return units(train and not self.evaluate, name="units")(x, None)[0]


class UsersUnit(nn.Module):
    training: bool

    @nn.compact
    def __call__(self, x, _):
        norm = nn.BatchNorm(use_running_average=not self.training, name="norm")
        return nn.tanh(norm(nn.Dense(x.shape[-1], name="dense")(x))), None


def test_norms_of_a_users_flax_model_freeze_by_pattern():
    """The values, moments and gradients are those of a model that evaluates the frozen norms."""
    x = images(6, 4)
    variables = helpers.draw_variables(Users(), x)

    def loss(params, model):
        y, new = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sin(y).sum(), new["batch_stats"]

    def frozen(params, now):
        with frozen_batch_norms({"shared/*": False, "first/*": now, "units/*": now}):
            return jax.value_and_grad(loss, has_aux=True)(params, Users())

    @jax.jit
    def run(params, now):
        evaluated = jax.value_and_grad(loss, has_aux=True)(params, Users(evaluate=True))
        return frozen(params, now), frozen(params, True), evaluated, loss(params, Users())

    traced, always, evaluated, _ = run(variables["params"], True)
    chex.assert_trees_all_close(traced, evaluated, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(always, evaluated, rtol=1e-5, atol=1e-6)
    (thawed, _), _, _, trained = run(variables["params"], False)
    chex.assert_trees_all_close(thawed, trained, rtol=1e-5, atol=1e-6)


def reversible_unit(norm):
    f, g = (Branch((2,), (3,), (1,), "pre", norm=norm) for _ in range(2))
    return Reversible(f, g)


@pytest.mark.parametrize(
    ("unit", "remat", "norm"),
    [
        (partial(ConvNorm, 4), "unit", nn.BatchNorm),
        (partial(ConvNorm, 4), "sqrt", norm_factory("batch")),
        (reversible_unit, "reversible", norm_factory("batch")),
        (reversible_unit, "reversible", nn.BatchNorm),
    ],
)
def test_norms_freeze_and_publish_under_remat(unit, remat, norm):
    """Frozen by a traced flag: gradients and moments are those of evaluation. Batch moments: those without remat."""
    x, depth = images(3, 4, 4, 4), 5
    model, plain = (stack(unit(norm=norm), depth, remat=each) for each in (remat, "none"))
    variables = helpers.draw_variables(model, x)

    @jax.jit
    def run(params, now):
        def loss(params, train):
            call = {"train": train, "mutable": ["batch_stats"]}
            y, new = model.apply({**variables, "params": params}, x, **call)
            return jnp.sin(y).sum(), new["batch_stats"]

        with frozen_batch_norms({"*": now}):
            frozen = jax.value_and_grad(loss, has_aux=True)(params, True)
        evaluated = jax.value_and_grad(loss, has_aux=True)(params, False)
        moments = [observed_batch_moments(each, variables, x, train=True) for each in (model, plain)]
        return frozen, evaluated, moments

    frozen, evaluated, moments = run(variables["params"], True)
    chex.assert_trees_all_close(frozen, evaluated, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(*moments, rtol=1e-4, atol=1e-5)
    assert all(bool(called.all()) for called in jax.tree.leaves(moments[0][1]))


# Batch moments


class Shared(nn.Module):
    """A brick and a norm that are called three times each, a dead norm, and a spectral norm, which is none."""

    norm: type

    @nn.compact
    def __call__(self, x, *, train: bool, mask=None):
        brick, norm = ConvNorm(2, 1, norm=self.norm, activation=nn.tanh, name="brick"), self.norm(name="norm")
        call = {"use_running_average": not train} if self.norm is nn.BatchNorm else {"train": train, "mask": mask}
        if self.is_initializing():
            self.norm(name="dead")(x, **call)
        x = nn.SpectralNorm(nn.Dense(2, name="dense"), name="spectral")(x, update_stats=train)
        for _ in range(3):
            x = brick(norm(x, **call), train=train, mask=mask)
        return x


@pytest.mark.parametrize(
    ("norm", "ddof", "groups"),  # groups: of the real rows; each has its own moments
    [
        (layers.BatchNorm, 0, 1),
        (partial(layers.BatchNorm, unbiased=True), 1, 1),
        (partial(layers.GhostBatchNorm, group_size=2), 0, 2),
        (partial(layers.GhostBatchNorm, group_size=2, unbiased=True), 1, 2),
        (layers.BatchRenorm, 0, 1),
        (nn.BatchNorm, 0, 1),
    ],
)
def test_moments_of_a_shared_norm_are_the_mean_over_its_calls(norm, ddof, groups):
    x = images(6, 3, 3, 2)
    mask = None if norm is nn.BatchNorm else np.arange(6) < 4
    real = x if mask is None else x[:4]
    model = Shared(norm)
    variables = helpers.draw_variables(model, x)
    call, seen = {"train": True, "mask": mask}, {}

    def record(module, run, args, kwargs):
        if is_batch_norm(module):
            seen.setdefault(module.path[0], []).append(args[0])
        return run(*args, **kwargs)

    @jax.jit
    def observe(variables):
        with around_calls(record):
            _, new = model.apply(variables, x, **call, mutable=["batch_stats"])
        return observed_batch_moments(model, variables, x, **call), new, seen

    (moments, called), new, inputs = jax.device_get(observe(variables))
    seen = {name: [np.float64(y)[: len(real)].reshape(groups, -1, 2) for y in calls] for name, calls in inputs.items()}
    for name, stats in (("norm", moments["norm"]), ("brick", moments["brick"]["norm"])):
        assert_allclose(stats["mean"], np.mean([rows.mean(1) for rows in seen[name]], (0, 1)), rtol=1e-4, atol=1e-5)
        assert_allclose(stats["var"], np.mean([rows.var(1, ddof=ddof) for rows in seen[name]], (0, 1)), rtol=1e-4)
    chex.assert_trees_all_equal(moments["dead"], variables["batch_stats"]["dead"])
    chex.assert_trees_all_close(moments["spectral"], new["batch_stats"]["spectral"], rtol=1e-5)
    flags = {name: {bool(each.all()) for each in jax.tree.leaves(called[name])} for name in called}
    assert flags == {"norm": {True}, "brick": {True}, "dead": {False}, "spectral": {False}}


def test_ghost_batch_norm_publishes_the_moments_that_it_keeps():
    """The mean over groups, as the running moments have it; the last group here is all padding."""
    x = np.array([[1.0], [3.0], [11.0], [13.0], [50.0], [70.0]], np.float32)
    norm = layers.GhostBatchNorm(group_size=2, momentum=0.0)
    variables = {"params": {"scale": np.ones(1), "bias": np.ones(1)}}
    variables["batch_stats"] = {"mean": np.zeros(1, np.float32), "var": np.ones(1, np.float32)}
    moments = jax.jit(lambda mask: observed_batch_moments(norm, variables, x, train=True, mask=mask)[0])
    for real, groups in ((4, [[1, 3], [11, 13]]), (6, [[1, 3], [11, 13], [50, 70]])):
        found = moments(np.arange(6) < real)
        assert_allclose(found["mean"], [np.mean(groups)], rtol=1e-6)
        assert_allclose(found["var"], [np.var(groups, axis=1).mean()], rtol=1e-6)
