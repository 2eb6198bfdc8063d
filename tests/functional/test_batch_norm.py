"""Batch norm against float64 NumPy and PyTorch, in values, running moments and gradients."""

import functools
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

batch_norm = jax.jit(functional.batch_norm, static_argnames=("train", "momentum", "epsilon", "unbiased", "axis_name"))


def ones(*shape):
    return np.ones(shape, np.float32)


def fresh_moments(features):
    return Moments(np.zeros(features, np.float32), ones(features))


# Batch norm

SHAPES = [(16, 3), (8, 5, 3), (4, 5, 6, 3), (3, 2, 4, 5, 3)]


@functools.cache
def value_and_gradients(shape, train):
    """((dx, dscale, dbias), (y, moments)) as NumPy arrays; the gradients are those of a sum with weights."""
    x, scale, bias, running = batch_norm_inputs(shape)
    (weights,) = random_arrays(9, shape)

    def loss(x, scale, bias):
        y, moments = functional.batch_norm(x, scale, bias, running, train=train)
        return (y * weights).sum(), (y, moments)

    return jax.tree.map(np.asarray, jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, scale, bias))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_the_definition(shape, train):
    inputs = batch_norm_inputs(shape)
    _, (y, running) = value_and_gradients(shape, train)
    expected, expected_running = batch_norm_reference(*inputs, train=train)
    assert_allclose(y, expected, rtol=1e-5, atol=3e-5)
    assert_allclose(running.mean, expected_running.mean, rtol=1e-5, atol=1e-7)
    assert_allclose(running.var, expected_running.var, rtol=1e-5)
    # The tolerance tells epsilons apart.
    other, _ = batch_norm_reference(*inputs, train=train, epsilon=1e-3)
    assert np.abs(other - expected).max() > 0.02


def test_batch_norm_takes_its_momentum_and_epsilon():
    inputs = batch_norm_inputs((16, 3))
    y, running = batch_norm(*inputs, train=True, momentum=0.5, epsilon=1e-2)
    expected, expected_running = batch_norm_reference(*inputs, train=True, momentum=0.5, epsilon=1e-2)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert_allclose(running.var, expected_running.var, rtol=1e-5)


def test_batch_norm_without_scale_and_bias():
    x, _, _, running = batch_norm_inputs((16, 3))
    y, _ = batch_norm(x, None, None, running, train=True)
    expected, _ = batch_norm_reference(x, np.ones(3), np.zeros(3), running, train=True)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_every_kind_are_those_of_the_definition(masked):
    """Tangents, gradients and Hessians, in y, both moments and epsilon, against autodiff of the plain formula."""
    x, scale, bias, _ = batch_norm_inputs((6, 2, 3))
    mask = np.array([True] * 5 + [False]) if masked else None
    rows = jnp.asarray(mask if masked else np.ones(6, bool))[:, None, None]
    weights, *others = random_arrays(9, (6, 2, 3), (3,), (3,))

    def plain(x, scale, bias, epsilon):
        x = jnp.where(rows, x, 0)
        n = rows.sum() * x.shape[1]
        mean = (x * rows).sum((0, 1), keepdims=True) / n
        var = ((x - mean) ** 2 * rows).sum((0, 1), keepdims=True) / n
        y = scale[None, None] * (x - mean) / jnp.sqrt(var + epsilon) + bias[None, None]
        return y, Moments(0.1 * mean.ravel(), 0.1 * var.ravel() + 0.9)

    def ours(x, scale, bias, epsilon):
        return functional.batch_norm(x, scale, bias, fresh_moments(3), train=True, mask=mask, epsilon=epsilon)

    def loss(function, *inputs):
        y, moments = function(*inputs)
        return (jnp.sin(y) * weights).sum() + (moments.mean**2 @ others[0]) + (moments.var**2 @ others[1])

    inputs = (x, scale, bias, jnp.float32(0.1))
    for derive in (jax.jacfwd, jax.jacrev, lambda f, n: jax.jacfwd(jax.jacrev(f, n), n)):
        got, expected = (jax.jit(derive(partial(loss, f), (0, 1, 2, 3)))(*inputs) for f in (ours, plain))
        chex.assert_trees_all_close(got, expected, rtol=2e-3, atol=2e-4)


def test_gradients_store_one_array_of_the_inputs_size():
    """Inside a scan, XLA does not merge equal arrays that are stored for the backward pass."""
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))

    def function(x):
        return functional.batch_norm(x, scale, bias, running, train=True)[0]

    stored = jax.tree.leaves(jax.vjp(jax.jit(function), jnp.asarray(x))[1])
    assert sum(leaf.shape == x.shape for leaf in stored) == 1


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_torchs(shape, train):
    torch = pytest.importorskip("torch")
    x, scale, bias, running = batch_norm_inputs(shape)
    (weights,) = random_arrays(9, shape)
    gradients, (y, moments) = value_and_gradients(shape, train)
    tx, tscale, tbias = torch_leaf(torch, x), *(torch.tensor(a, requires_grad=True) for a in (scale, bias))
    tmean, tvar = (torch.tensor(np.array(a)) for a in running)
    ty = torch.nn.functional.batch_norm(tx, tmean, tvar, tscale, tbias, training=train, momentum=0.1, eps=1e-5)
    (ty * torch_leaf(torch, weights)).sum().backward()

    assert_allclose(y, from_torch(ty), rtol=1e-5, atol=3e-5)
    for ours, theirs in zip(gradients, (from_torch(tx.grad), tscale.grad, tbias.grad), strict=True):
        assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(ours).max())
    assert_allclose(moments.mean, tmean, rtol=1e-5, atol=1e-7)
    n = x.size // x.shape[-1]
    if train:  # PyTorch divides the running variance by n - 1
        tvar = 0.9 * running.var + (tvar.numpy() - 0.9 * running.var) * (n - 1) / n
    assert_allclose(moments.var, tvar, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[::2])
def test_a_masked_batch_is_the_unpadded_one(shape):
    x, scale, bias, running = batch_norm_inputs(shape)
    (weights,) = random_arrays(9, shape)
    real = len(x) - 2
    mask = np.arange(len(x)) < real

    def loss(x, scale, bias, mask):
        y, moments = functional.batch_norm(x, scale, bias, running, train=True, mask=mask)
        return (y * weights[: len(x)])[:real].sum(), (y[:real], moments)

    gradient = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    expected, expected_aux = jax.tree.map(np.asarray, gradient(x[:real], scale, bias, None))
    for padding in (1e6, np.nan):
        padded = np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(padding))
        ours, aux = jax.tree.map(np.asarray, gradient(padded, scale, bias, mask))
        for a, b in zip(jax.tree.leaves(aux), jax.tree.leaves(expected_aux), strict=True):
            assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        for a, b in zip((ours[0][:real], *ours[1:]), expected, strict=True):
            assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
        assert_allclose(ours[0][real:], 0)


def test_padding_does_not_grow_through_a_deep_net():
    """A feature that is constant over the real rows is amplified by 1 / sqrt(epsilon) in padding."""
    x = np.ones((4, 2), np.float32)
    x[3] = 2
    mask = np.array([True, True, True, False])
    running = fresh_moments(2)
    for _ in range(40):
        x, running = batch_norm(x, None, None, running, train=True, mask=mask)
        assert np.isfinite(x).all()
        assert np.isfinite(running.var).all()


def test_a_batch_of_nothing_but_padding_has_finite_moments():
    x, scale, bias, running = batch_norm_inputs((4, 3))
    y, moments = batch_norm(x, scale, bias, running, train=True, mask=np.zeros(4, bool))
    assert np.isfinite(y).all()
    assert_allclose(moments.var, 0.9 * running.var, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_axis_name_takes_moments_and_gradients_over_all_shards(masked):
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    (weights,) = random_arrays(9, x.shape)
    mask = np.arange(8) < 5 if masked else None  # of the four shards, one is half padding and one all
    if masked:
        weights = weights * mask[:, None, None]

    def loss(x, scale, bias, shards):
        def one(x, mask):
            options = {"mask": mask, "axis_name": "data" if shards > 1 else None}
            return functional.batch_norm(x, scale, bias, running, train=True, **options)

        masks = mask.reshape(shards, -1) if masked else None
        y, moments = jax.vmap(one, axis_name="data")(x.reshape(shards, -1, 5, 3), masks)
        return (y.reshape(x.shape) * weights).sum(), (y, moments)

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
    (_, (y, moments)), gradients = jax.tree.map(np.asarray, run(x, scale, bias, 4))
    (_, (whole, expected)), of_whole = jax.tree.map(np.asarray, run(x, scale, bias, 1))
    assert_allclose(y.reshape(x.shape)[mask], whole[0][mask], rtol=1e-4, atol=1e-4)
    for shard in range(4):
        assert_allclose(moments.mean[shard], expected.mean[0], rtol=1e-5, atol=1e-7)
        assert_allclose(moments.var[shard], expected.var[0], rtol=1e-5)
    for a, b in zip(gradients, of_whole, strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(("dtype", "masked"), [(jnp.bfloat16, False), (jnp.bfloat16, True), (jnp.float16, False)])
def test_half_precision_with_a_large_mean(dtype, masked):
    (noise,) = random_arrays(0, (64, 4))
    x = (500 + 4 * noise).astype(dtype)
    ones, mask = np.ones(4, np.float32), np.ones(64, bool) if masked else None
    y, moments = batch_norm(x, ones, 0 * ones, fresh_moments(4), train=True, mask=mask, momentum=0.0)
    assert y.dtype == dtype
    assert moments.mean.dtype == moments.var.dtype == jnp.float32
    wide = np.asarray(x, np.float64)
    assert_allclose(moments.mean, wide.mean(0), rtol=1e-5)
    assert_allclose(moments.var, wide.var(0), rtol=1e-3)
    assert_allclose(np.asarray(y, np.float64), (wide - wide.mean(0)) / wide.std(0), atol=0.02)


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4, -3e5])
def test_variance_is_never_negative(mean):
    x = np.full((64, 3), mean, np.float32) + np.float32(1e-3) * np.eye(64, 3, dtype=np.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        y, moments = batch_norm(x.astype(dtype), None, None, fresh_moments(3), train=True, momentum=0.0)
        assert (np.asarray(moments.var) >= 0).all()
        assert np.isfinite(np.float32(y)).all()


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((16, 3))
        y, moments = batch_norm(x, None, None, Moments(np.zeros(3), np.ones(3)), train=True)
        assert y.dtype == moments.var.dtype == jnp.float64
        assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [(4, None, "x has 3 features"), (3, (7,), "it must be"), (3, (8, 1), "it must be")],
)
def test_batch_norm_errors(features, mask, message):
    mask = mask and np.ones(mask, bool)
    with pytest.raises(InputError, match=message):
        functional.batch_norm(ones(8, 3), None, None, fresh_moments(features), train=True, mask=mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": ones(4)}, "scale has shape"),
        ({"bias": ones(3, 1)}, "bias has shape"),
        ({"running": Moments(ones(3), ones(4))}, "running var"),
        ({"momentum": 1.5}, "momentum 1.5"),
        ({"momentum": -0.1}, "momentum -0.1"),
        ({"epsilon": -1e-5}, "epsilon -1e-05"),
        ({"x": np.ones((8, 3), np.int32)}, "int32"),
        ({"x": ones()}, "features last"),
        ({"x": ones(8, 0)}, "features last"),
        ({"x": ones(1, 3), "unbiased": True}, "at least 2 values of each feature, but x has 1"),
    ],
)
def test_batch_norm_names_the_argument(change, message):
    arguments = {"x": ones(8, 3), "scale": None, "bias": None, "running": fresh_moments(3)}
    with pytest.raises(InputError, match=message):
        functional.batch_norm(**{**arguments, **change}, train=True)


# Unbiased running variance


def test_unbiased_counts_real_rows_of_all_shards():
    x, _, _, running = batch_norm_inputs((8, 5, 3))
    mask = np.arange(8) < 5
    moments = partial(functional.batch_norm, scale=None, bias=None, running=running, train=True)

    @jax.jit
    def run():
        shard = partial(moments, unbiased=True, axis_name="data")
        shards = jax.vmap(lambda x, mask: shard(x, mask=mask)[1], axis_name="data")
        whole = moments(x[:5], unbiased=True), moments(x[:5]), moments(x, mask=mask, unbiased=True)
        return *(new for _, new in whole), shards(x.reshape(4, 2, 5, 3), mask.reshape(4, 2))

    expected, biased, masked, shards = jax.tree.map(np.asarray, run())
    assert_allclose(masked.var, expected.var, rtol=1e-6)
    assert_allclose(shards.var[0], expected.var, rtol=1e-6)
    new = biased.var - 0.9 * running.var
    assert_allclose(expected.var - 0.9 * running.var, new * 25 / 24, rtol=1e-4)


# The backward pass written out


@pytest.mark.parametrize(("shape", "scaled"), [(SHAPES[0], True), (SHAPES[2], True), (SHAPES[0], False)])
def test_backward_is_autodiffs_and_torchs(shape, scaled):
    torch = pytest.importorskip("torch")
    x, dy, scale = map(np.float64, random_arrays(1, shape, shape, shape[-1:]))
    scale = scale if scaled else None
    running = Moments(np.zeros(3), np.ones(3))
    tx, tscale, tbias = (
        torch_leaf(torch, x),
        torch.tensor(np.ones(3) if scale is None else scale),
        torch.zeros(3).double(),
    )
    tscale.requires_grad_(), tbias.requires_grad_()
    ty = torch.nn.functional.batch_norm(tx, None, None, tscale, tbias, training=True, eps=1e-3)
    (ty * torch.tensor(np.moveaxis(dy, -1, 1).copy())).sum().backward()
    with jax.enable_x64(True):

        def forward(x, scale, bias):
            return functional.batch_norm(x, scale, bias, running, train=True, epsilon=1e-3)[0]

        parameters = np.ones(3) if scale is None else scale, np.zeros(3)

        @jax.jit
        def both(dy):
            ours = functional.batch_norm_backward(dy, x, scale, functional.batch_moments(x), 1e-3)
            return ours, jax.vjp(forward, x, *parameters)[1](dy)

        ours, autodiff = both(dy)
    for mine, derived, theirs in zip(ours, autodiff, (from_torch(tx.grad), tscale.grad, tbias.grad), strict=True):
        assert mine.dtype == jnp.float64
        assert_allclose(mine, derived, rtol=1e-9, atol=1e-11)
        assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)


def test_backward_in_half_precision_is_float32s_rounded():
    x, dy = (a.astype(jnp.bfloat16) for a in random_arrays(1, (64, 3), (64, 3)))

    @jax.jit
    def both(dy, x):
        moments = functional.batch_moments(x)
        wide = dy.astype(jnp.float32), x.astype(jnp.float32)
        return [functional.batch_norm_backward(*pair, None, moments) for pair in ((dy, x), wide)]

    half, full = both(dy, x)
    assert [a.dtype for a in half] == [jnp.bfloat16, jnp.float32, jnp.float32]
    assert_allclose(np.float32(half[0]), full[0], rtol=2**-8)
    assert_allclose(half[1], full[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": ones(8, 2)}, "dy has shape"),
        ({"scale": ones(8)}, "scale has shape"),
        ({"moments": Moments(ones(3), ones())}, "var has shape"),
        ({"epsilon": -1.0}, "epsilon -1.0"),
    ],
)
def test_backward_errors(change, message):
    arguments = {"dy": ones(8, 3), "x": ones(8, 3), "scale": None, "moments": fresh_moments(3)}
    with pytest.raises(InputError, match=message):
        functional.batch_norm_backward(**{**arguments, **change})


# Properties: y and its Jacobian do not change with the scale of the weights; their gradient does, by its inverse


def test_the_scale_of_the_weights_does_not_matter():
    """Exactly so at epsilon 0. Else the variance is off by epsilon / factor^2, which is checked to explain it all."""
    u, kernel, weights = map(np.float64, random_arrays(2, (16, 4), (4, 3), (16, 3)))
    running = Moments(np.zeros(3), np.ones(3))

    def normalized(kernel, u=u, epsilon=0.0):
        return functional.batch_norm(u @ kernel, None, None, running, train=True, epsilon=epsilon)[0]

    @jax.jit
    def run(kernel, epsilon):
        slopes = (
            jax.jacrev(lambda u: normalized(kernel, u))(u),
            jax.grad(lambda k: (normalized(k) * weights).sum())(kernel),
        )
        return normalized(kernel), *slopes, normalized(kernel, epsilon=epsilon)

    with jax.enable_x64(True):
        for factor in (0.01, 1000.0):
            y, jacobian, gradient, at_epsilon = run(factor * kernel, 1e-5)
            expected = run(kernel, 1e-5 / factor**2)
            assert_allclose(y, expected[0], rtol=1e-9, atol=1e-12)
            assert_allclose(jacobian, expected[1], rtol=1e-8, atol=1e-10)
            assert_allclose(gradient, np.asarray(expected[2]) / factor, rtol=1e-8, atol=1e-10 / factor)
            assert_allclose(at_epsilon, expected[3], rtol=1e-9, atol=1e-12)
