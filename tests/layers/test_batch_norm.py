"""Batch norms as Linen modules: their functions, running moments as PyTorch's, mapped axes."""

from functools import partial

import chex
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional, layers
from helpers import batch_norm_inputs, from_torch, random_arrays, torch_leaf

KEY = jax.random.key(0)


@pytest.mark.parametrize(("shape", "kind"), [((16, 3), "BatchNorm1d"), ((4, 5, 6, 3), "BatchNorm2d")])
def test_both_running_moments_are_torchs(shape, kind):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, kind)(3)
    ours = layers.BatchNorm(unbiased=True)
    variables = jax.jit(partial(ours.init, train=False))(KEY, np.zeros(shape, np.float32))
    train = jax.jit(partial(ours.apply, train=True, mutable="batch_stats"))
    for step in range(3):
        x = 2 * random_arrays(step, shape)[0] + step
        ty = theirs(torch_leaf(torch, x))
        y, new = train(variables, x)
        variables = {**variables, **new}
        assert_allclose(y, from_torch(ty), rtol=1e-4, atol=1e-5)
    assert_allclose(new["batch_stats"]["mean"], theirs.running_mean, rtol=1e-5, atol=1e-7)
    assert_allclose(new["batch_stats"]["var"], theirs.running_var, rtol=1e-5)
    ty = theirs.eval()(torch_leaf(torch, x))
    assert_allclose(jax.jit(partial(ours.apply, train=False))(variables, x), from_torch(ty), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (layers.BatchNorm(momentum=0.7, unbiased=True), partial(functional.batch_norm, momentum=0.7, unbiased=True)),
        (layers.BatchRenorm(r_max=1.1, d_max=0.1), partial(functional.batch_renorm, r_max=1.1, d_max=0.1)),
        (layers.MovingAverageBatchNorm(epsilon=0.1), partial(functional.moving_average_batch_norm, epsilon=0.1)),
        (
            layers.GhostBatchNorm(group_size=2, unbiased=True),
            partial(functional.ghost_batch_norm, group_size=2, unbiased=True),
        ),
    ],
)
def test_modules_bind_names_to_the_functions(module, function):
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": running._asdict()}
    mask = np.arange(8) < 6

    @jax.jit
    def both(x):
        first = module.init(KEY, x, train=True)
        ours = [module.apply(variables, x, train=t, mask=mask, mutable="batch_stats") for t in (True, False)]
        return first, ours, [function(x, scale, bias, running, train=t, mask=mask) for t in (True, False)]

    first, ours, expected = both(x)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, variables)
    assert_array_equal(first["batch_stats"]["mean"], 0)
    for (y, new), (wanted, moments) in zip(ours, expected, strict=True):
        assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(new["batch_stats"], moments._asdict(), rtol=1e-6)


def init_shapes(module, x, train):
    return jax.eval_shape(lambda: module.init(KEY, x, train=train))


def test_modules_without_scale_or_bias():
    x, _, bias, running = batch_norm_inputs((8, 3))
    module = layers.BatchNorm(use_scale=False)
    assert init_shapes(module, x, train=False)["params"].keys() == {"bias"}
    variables = {"params": {"bias": bias}, "batch_stats": running._asdict()}
    expected = jax.jit(lambda: functional.batch_norm(x, None, bias, running, train=False)[0])()
    assert_allclose(jax.jit(partial(module.apply, train=False))(variables, x), expected, rtol=1e-6)
    module = layers.BatchNorm(use_scale=False, use_bias=False, unbiased=True)  # made from one example, too
    init_shapes(module, x[:1], train=True)
    assert "params" not in init_shapes(module, x, train=False)


@pytest.mark.parametrize("kind", [layers.BatchNorm, layers.BatchRenorm, layers.MovingAverageBatchNorm])
def test_modules_take_moments_over_a_mapped_axis(kind):
    x, scale, bias, running = batch_norm_inputs((8, 3))
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": running._asdict()}
    made = init_shapes(kind(axis_name="data"), x, train=True)  # the axis does not exist here
    chex.assert_trees_all_equal_shapes_and_dtypes(made, variables)
    shard, whole = (partial(m.apply, train=True, mutable="batch_stats") for m in (kind(axis_name="data"), kind()))
    mapped = jax.vmap(partial(shard, variables), axis_name="data")
    run = jax.jit(lambda x: (mapped(x.reshape(4, 2, 3)), whole(variables, x)))
    (y, new), (expected, moments) = jax.tree.map(np.asarray, run(x))
    assert_allclose(y.reshape(8, 3), expected, rtol=1e-4, atol=1e-4)
    assert_allclose(new["batch_stats"]["var"][1], moments["batch_stats"]["var"], rtol=1e-5)
