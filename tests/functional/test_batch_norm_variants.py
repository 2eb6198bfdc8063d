"""Variants of batch norm: renormalization, the moving average and ghost batches, against NumPy and PyTorch."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional
from deepjax.errors import InputError
from deepjax.functional import Moments
from helpers import batch_norm_inputs, batch_norm_reference, from_torch, random_arrays, torch_leaf


def jitted(function, **options):
    """The function of x, scale, bias, running, mask, with these options."""
    return jax.jit(partial(function, **options))


# Batch renormalization


def renorm_reference(x, scale, bias, running, r, d, epsilon=1e-5):
    """The paper's algorithm 1 for given r and d."""
    mean, std = x.mean(0), np.sqrt(x.var(0) + epsilon)
    return scale * ((x - mean) / std * r + d) + bias


@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (1.2, 0.1), (3.0, 5.0)])
def test_batch_renorm_is_the_definition(r_max, d_max):
    x, scale, bias, dy, (mean, var) = map(np.float64, random_arrays(3, (8, 3), (3,), (3,), (8, 3), (2, 3)))
    running = Moments(mean, 0.5 + var**2)
    std = np.sqrt(running.var + 1e-5)
    r = np.clip(np.sqrt(x.var(0) + 1e-5) / std, 1 / r_max, r_max)
    d = np.clip((x.mean(0) - mean) / std, -d_max, d_max)

    def numeric(step):  # central differences with r and d held fixed
        values = [(renorm_reference(x + s * step, scale, bias, running, r, d) * dy).sum() for s in (1e-5, -1e-5)]
        return (values[0] - values[1]) / 2e-5

    with jax.enable_x64(True):

        def loss(x):
            y, new = functional.batch_renorm(x, scale, bias, running, train=True, r_max=r_max, d_max=d_max)
            return (y * dy).sum(), (y, new)

        dx, (y, new) = jax.tree.map(np.asarray, jax.jit(jax.grad(loss, has_aux=True))(x))
    assert_allclose(y, renorm_reference(x, scale, bias, running, r, d), rtol=1e-10, atol=1e-12)
    assert_allclose(new.mean, 0.9 * mean + 0.1 * x.mean(0), rtol=1e-12)
    assert_allclose(new.var, 0.9 * running.var + 0.1 * x.var(0), rtol=1e-12)
    for row, feature in ((0, 0), (5, 2)):
        step = np.zeros_like(x)
        step[row, feature] = 1
        assert_allclose(dx[row, feature], numeric(step), rtol=1e-5, atol=1e-8)


def test_unclipped_renorm_trains_as_it_evaluates():
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    renorm = partial(functional.batch_renorm, r_max=1e6, d_max=1e6)
    train, test = (jitted(renorm, train=train)(x, scale, bias, running)[0] for train in (True, False))
    assert_allclose(train, test, rtol=1e-4, atol=1e-4)


def test_renorm_without_room_is_batch_norm_with_its_options():
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    options = {"train": True, "momentum": 0.7, "epsilon": 1e-3, "unbiased": True}
    inputs = x, scale, bias, running
    renorm = jitted(functional.batch_renorm, r_max=1.0, d_max=0.0, **options)(*inputs, mask=np.arange(8) < 6)
    expected = jitted(functional.batch_norm, **options)(*inputs, mask=np.arange(8) < 6)
    chex.assert_trees_all_close(renorm, expected, rtol=1e-5, atol=1e-5)


def test_renorms_limits_may_be_traced():
    x, scale, bias, running = batch_norm_inputs((8, 3))
    renorm = partial(functional.batch_renorm, x, scale, bias, running, train=True)
    run = jax.jit(lambda r, d: (renorm(r_max=r, d_max=d)[0], renorm(r_max=1.5, d_max=0.5)[0]))
    assert_allclose(*run(1.5, 0.5), rtol=1e-5, atol=1e-5)
    for limits, message in (({"r_max": 0.9}, "r_max 0.9"), ({"d_max": -1}, "d_max -1")):
        with pytest.raises(InputError, match=message):
            functional.batch_renorm(x, scale, bias, running, train=True, **limits)


# The moving average


def test_moving_average_is_dinhs_with_gradients_through_this_batch_alone():
    torch = pytest.importorskip("torch")
    x, scale, bias, dy, (mean, var) = map(np.float64, random_arrays(4, (4, 3), (3,), (3,), (4, 3), (2, 3)))
    running = Moments(mean, 0.5 + var**2)
    tx = torch.tensor(x, requires_grad=True)
    tmean = 0.9 * torch.tensor(mean) + 0.1 * tx.mean(0)
    tvar = 0.9 * torch.tensor(running.var) + 0.1 * tx.var(0, correction=0)
    ty = torch.tensor(scale) * (tx - tmean) / torch.sqrt(tvar + 1e-5) + torch.tensor(bias)
    (ty * torch.tensor(dy)).sum().backward()
    with jax.enable_x64(True):

        def loss(x, running):
            y, new = functional.moving_average_batch_norm(x, scale, bias, running, train=True)
            return (y * dy).sum(), (y, new)

        (dx, drunning), (y, new) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, running)
    assert_allclose(y, ty.detach(), rtol=1e-12)
    assert_allclose(dx, tx.grad, rtol=1e-10, atol=1e-12)
    assert_allclose(new.mean, tmean.detach(), rtol=1e-12)
    assert_allclose(new.var, tvar.detach(), rtol=1e-12)
    assert_allclose(np.stack(drunning), 0)


def test_moving_average_without_memory_is_batch_norm():
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    options, inputs = {"train": True, "momentum": 0.0, "epsilon": 1e-3}, (x, scale, bias, running)
    ours = jitted(functional.moving_average_batch_norm, **options)(*inputs, mask=np.arange(8) < 6)
    expected = jitted(functional.batch_norm, **options)(*inputs, mask=np.arange(8) < 6)
    chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-5)


# Ghost batches


@pytest.mark.parametrize(("shape", "kind"), [((12, 3), "BatchNorm1d"), ((12, 5, 6, 3), "BatchNorm2d")])
def test_ghost_batches_are_batches_one_after_the_other(shape, kind):
    """PyTorch's batch norm on each group: outputs, gradients, running moments."""
    torch = pytest.importorskip("torch")
    x, dy = random_arrays(5, shape, shape)
    theirs = getattr(torch.nn, kind)(3, momentum=0.2)
    tx = torch_leaf(torch, x)
    ty = torch.cat([theirs(group) for group in tx.split(4)])
    (ty * torch_leaf(torch, dy)).sum().backward()

    def loss(x):
        running = Moments(jnp.zeros(3), jnp.ones(3))
        options = {"train": True, "group_size": 4, "momentum": 0.8, "unbiased": True}
        y, new = functional.ghost_batch_norm(x, None, None, running, **options)
        return (y * dy).sum(), (y, new)

    dx, (y, new) = jax.jit(jax.grad(loss, has_aux=True))(x)
    assert_allclose(y, from_torch(ty), rtol=1e-4, atol=1e-5)
    dx_torch = from_torch(tx.grad)
    assert_allclose(dx, dx_torch, rtol=1e-4, atol=1e-4 * np.abs(dx_torch).max())  # a sum has its largest part's error
    assert_allclose(new.mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
    assert_allclose(new.var, theirs.running_var, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_ghost_batches_with_padding(momentum):
    """Of three groups of four rows, one is whole, one half padding, one all padding: it moves nothing."""
    x, scale, bias, running = batch_norm_inputs((12, 5, 3))
    padded, mask = np.where(np.arange(12)[:, None, None] < 6, x, np.float32(np.nan)), np.arange(12) < 6

    @jax.jit
    def run(x, padded):
        expected, moments = [], running
        for group in (x[:4], x[4:6]):
            y, moments = functional.batch_norm(group, scale, bias, moments, train=True, momentum=momentum)
            expected.append(y)
        ghost = partial(functional.ghost_batch_norm, train=True, group_size=4, momentum=momentum)
        return ghost(padded, scale, bias, running, mask=mask), (jnp.concatenate(expected), moments)

    (y, new), (expected, moments) = jax.tree.map(np.asarray, run(x, padded))
    assert_allclose(y[:6], expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(y).all()
    chex.assert_trees_all_close(new, moments, rtol=1e-5, atol=1e-6)


def test_one_ghost_batch_is_the_batch():
    x, scale, bias, running = batch_norm_inputs((8, 3))
    for train in (True, False):
        ours = jitted(functional.ghost_batch_norm, train=train, group_size=8)(x, scale, bias, running)
        expected = jitted(functional.batch_norm, train=train)(x, scale, bias, running)
        chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group_size", [0, 3, -4, 16, 4.0])
def test_ghost_batches_must_divide_the_batch(group_size):
    x, scale, bias, running = batch_norm_inputs((8, 3))
    with pytest.raises(InputError, match=f"group_size {group_size}"):
        functional.ghost_batch_norm(x, scale, bias, running, train=True, group_size=group_size)
    evaluate = partial(functional.ghost_batch_norm, train=False, group_size=3)
    jax.eval_shape(evaluate, x, scale, bias, running)  # evaluation has no groups


# All of them

VARIANTS = [
    functional.batch_norm,
    functional.batch_renorm,
    functional.moving_average_batch_norm,
    partial(functional.ghost_batch_norm, group_size=4),
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_is_the_same_for_all(variant):
    inputs = batch_norm_inputs((8, 5, 3))
    y, running = jitted(variant, train=False)(*inputs)
    assert_allclose(y, batch_norm_reference(*inputs, train=False)[0], rtol=1e-5, atol=3e-5)
    jax.tree.map(np.testing.assert_array_equal, running, inputs[3])


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_float32_rounded_and_vmap_a_loop(variant):
    x, scale, bias, running = batch_norm_inputs((2, 8, 5, 3))
    x = x.astype(jnp.bfloat16)
    train = partial(variant, scale=scale, bias=bias, running=running, train=True)
    run = jax.jit(lambda x: (jax.vmap(train)(x), [train(row.astype(jnp.float32)) for row in x]))
    (y, new), alone = run(x)
    assert y.dtype == jnp.bfloat16
    for i, (expected, moments) in enumerate(alone):
        assert_allclose(np.float32(y)[i], expected, rtol=2**-8, atol=1e-5)
        assert_allclose(np.asarray(new.var)[i], moments.var, rtol=1e-5)
    with jax.enable_x64(True):
        x = np.asarray(x, np.float64)[0]
        y, new = jax.eval_shape(train, x)
        assert (y.dtype, new.var.dtype) == (jnp.float64, jnp.float32)  # the running moments may be a scan's carry
        jax.eval_shape(
            lambda: jax.lax.scan(lambda m, x: train(x, running=m)[::-1], jax.tree.map(jnp.array, running), x[None])
        )


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_variants_over_shards_are_those_of_the_whole_batch(variant):
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    train = partial(variant, scale=scale, bias=bias, running=running, train=True)
    shards = jax.vmap(partial(train, axis_name="data"), axis_name="data")
    run = jax.jit(lambda x: (shards(x.reshape(4, 2, 5, 3)), train(x)))
    (y, new), (expected, moments) = jax.tree.map(np.asarray, run(x))
    assert_allclose(y.reshape(x.shape), expected, rtol=1e-4, atol=1e-4)
    assert_allclose(new.var[2], moments.var, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_say_what_is_wrong(variant):
    x, scale, bias, running = batch_norm_inputs((8, 3))
    with pytest.raises(InputError, match="x has 4 features"):
        variant(np.ones((8, 4), np.float32), None, None, running, train=True)
    with pytest.raises(InputError, match="mask has shape"):
        variant(x, scale, bias, running, train=True, mask=np.ones(3, bool))
