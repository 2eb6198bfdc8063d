"""Batch norm and its variants against float64 NumPy and PyTorch, in values, running moments and gradients."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, layers
from deepjax.errors import InputError
from deepjax.functional import Moments

KEY = jax.random.key(0)


def arrays(seed, *shapes, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def to_torch(torch, x):
    """[batch, ..., features] -> a leaf tensor [batch, features, ...]."""
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def assert_close_to(ours, theirs, rtol=1e-4):
    """Relative to the largest value: a sum of many has the error of its largest part."""
    theirs = np.asarray(theirs)
    assert_allclose(ours, theirs, rtol=rtol, atol=rtol * max(np.abs(theirs).max(), 1e-30))


# Batch norm

SHAPES = [(16, 3), (8, 5, 3), (4, 5, 6, 3), (3, 2, 4, 5, 3)]


def batch_norm_inputs(shape, spread=0.05):
    """Inputs, scale, bias, running moments. A small spread makes a wrong epsilon visible."""
    x, scale, bias, mean, var = arrays(len(shape), shape, *[shape[-1:]] * 4)
    return spread * x + 0.1, 1 + 0.3 * scale, bias, Moments(0.1 * mean, 0.003 * (0.5 + var**2))


def batch_norm_reference(x, scale, bias, running, *, train, momentum=0.9, epsilon=1e-5):
    x, scale, bias, mean, var = (np.asarray(a, np.float64) for a in (x, scale, bias, *running))
    if train:
        rows = x.reshape(-1, x.shape[-1])
        mean, var = rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
        running = Moments(*(momentum * np.float64(o) + (1 - momentum) * n for o, n in zip(running, (mean, var))))
    return scale * (x - mean) / np.sqrt(var + epsilon) + bias, running


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_the_definition(shape, train):
    inputs = batch_norm_inputs(shape)
    y, running = functional.batch_norm(*inputs, train=train)
    expected, expected_running = batch_norm_reference(*inputs, train=train)
    assert_allclose(y, expected, rtol=1e-5, atol=3e-5)
    assert_allclose(running.mean, expected_running.mean, rtol=1e-5, atol=1e-7)
    assert_allclose(running.var, expected_running.var, rtol=1e-5)
    # The tolerance tells epsilons apart.
    other, _ = batch_norm_reference(*inputs, train=train, epsilon=1e-3)
    assert np.abs(other - expected).max() > 0.02


def test_batch_norm_takes_its_momentum_and_epsilon():
    inputs = batch_norm_inputs((16, 3))
    y, running = functional.batch_norm(*inputs, train=True, momentum=0.5, epsilon=1e-2)
    expected, expected_running = batch_norm_reference(*inputs, train=True, momentum=0.5, epsilon=1e-2)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert_allclose(running.var, expected_running.var, rtol=1e-5)


def test_batch_norm_without_scale_and_bias():
    x, _, _, running = batch_norm_inputs((16, 3))
    y, _ = functional.batch_norm(x, None, None, running, train=True)
    expected, _ = batch_norm_reference(x, np.ones(3), np.zeros(3), running, train=True)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_torchs(shape, train):
    torch = pytest.importorskip("torch")
    x, scale, bias, running = batch_norm_inputs(shape)
    (weights,) = arrays(9, shape)

    def loss(x, scale, bias):
        y, moments = functional.batch_norm(x, scale, bias, running, train=train)
        return (y * weights).sum(), (y, moments)

    gradients, (y, moments) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, scale, bias)

    tx, tscale, tbias = to_torch(torch, x), *(torch.tensor(a, requires_grad=True) for a in (scale, bias))
    tmean, tvar = (torch.tensor(np.array(a)) for a in running)
    ty = torch.nn.functional.batch_norm(tx, tmean, tvar, tscale, tbias, training=train, momentum=0.1, eps=1e-5)
    (ty * to_torch(torch, weights)).sum().backward()

    assert_allclose(y, from_torch(ty), rtol=1e-5, atol=3e-5)
    for ours, theirs in zip(gradients, (from_torch(tx.grad), tscale.grad, tbias.grad), strict=True):
        assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(ours).max())
    assert_allclose(moments.mean, tmean, rtol=1e-5, atol=1e-7)
    n = x.size // x.shape[-1]
    if train:  # PyTorch divides the running variance by n - 1
        tvar = 0.9 * running.var + (tvar.numpy() - 0.9 * running.var) * (n - 1) / n
    assert_allclose(moments.var, tvar, rtol=1e-5)


@pytest.mark.parametrize("padding", [1e6, np.nan])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_masked_batch_is_the_unpadded_one(shape, padding):
    x, scale, bias, running = batch_norm_inputs(shape)
    (weights,) = arrays(9, shape)
    real = len(x) - 2
    mask = np.arange(len(x)) < real

    def loss(x, scale, bias, mask):
        y, moments = functional.batch_norm(x, scale, bias, running, train=True, mask=mask)
        return (y * weights[: len(x)])[:real].sum(), (y[:real], moments)

    gradient = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    padded = np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, np.float32(padding))
    ours, aux = gradient(padded, scale, bias, mask)
    expected, expected_aux = gradient(x[:real], scale, bias, None)
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
    running = Moments(jnp.zeros(2), jnp.ones(2))
    for _ in range(40):
        x, running = functional.batch_norm(x, None, None, running, train=True, mask=mask)
        assert np.isfinite(x).all()
        assert np.isfinite(running.var).all()


def test_a_batch_of_nothing_but_padding_has_finite_moments():
    x, scale, bias, running = batch_norm_inputs((4, 3))
    y, moments = functional.batch_norm(x, scale, bias, running, train=True, mask=np.zeros(4, bool))
    assert np.isfinite(y).all()
    assert_allclose(moments.var, 0.9 * running.var, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_axis_name_takes_moments_over_all_shards(masked):
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    (weights,) = arrays(9, x.shape)
    mask = np.arange(8) < 5 if masked else None  # of the four shards, one is half padding and one all
    if masked:
        weights = weights * mask[:, None, None]

    def whole(x, scale, bias):
        y, moments = functional.batch_norm(x, scale, bias, running, train=True, mask=mask)
        return (y * weights).sum(), moments

    def shards(x, scale, bias):
        def one(x, mask):
            return functional.batch_norm(
                x, scale, bias, running, train=True, mask=mask if masked else None, axis_name="data"
            )

        shard_masks = jnp.ones(8, bool) if mask is None else mask
        y, moments = jax.vmap(one, axis_name="data")(x.reshape(4, 2, 5, 3), shard_masks.reshape(4, 2))
        assert_allclose(*(np.asarray(jax.lax.stop_gradient(m)) for m in (moments.var[0], moments.var[3])))
        return (y.reshape(x.shape) * weights).sum(), jax.tree.map(lambda m: m[0], moments)

    (value, moments) = shards(x, scale, bias)
    (expected, expected_moments) = whole(x, scale, bias)
    assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
    assert_allclose(moments.mean, expected_moments.mean, rtol=1e-5, atol=1e-7)
    assert_allclose(moments.var, expected_moments.var, rtol=1e-5)


def test_axis_name_gives_the_whole_batchs_gradients():
    x, scale, bias, running = batch_norm_inputs((8, 3))
    (weights,) = arrays(9, x.shape)

    def loss(x, scale, bias, shards):
        def one(x):
            return functional.batch_norm(x, scale, bias, running, train=True, axis_name="data" if shards > 1 else None)[
                0
            ]

        y = jax.vmap(one, axis_name="data")(x.reshape(shards, -1, 3))
        return (y.reshape(x.shape) * weights).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)
    for ours, whole in zip(gradient(x, scale, bias, 4), gradient(x, scale, bias, 1), strict=True):
        assert_allclose(ours, whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_with_a_large_mean(dtype, masked):
    (noise,) = arrays(0, (64, 4))
    x = jnp.asarray(500 + 4 * noise, dtype)
    running = Moments(jnp.zeros(4), jnp.ones(4))
    mask = np.ones(64, bool) if masked else None
    y, moments = functional.batch_norm(x, jnp.ones(4), jnp.zeros(4), running, train=True, mask=mask, momentum=0.0)
    assert y.dtype == dtype
    assert moments.mean.dtype == moments.var.dtype == jnp.float32
    wide = np.asarray(x, np.float64)
    assert_allclose(moments.mean, wide.mean(0), rtol=1e-5)
    assert_allclose(moments.var, wide.var(0), rtol=1e-3)
    assert_allclose(np.asarray(y, np.float64), (wide - wide.mean(0)) / wide.std(0), atol=0.02)


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4, -3e5])
def test_variance_is_never_negative(mean):
    x = jnp.full((64, 3), mean) + 1e-3 * jnp.eye(64, 3)
    running = Moments(jnp.zeros(3), jnp.ones(3))
    for dtype in (jnp.float32, jnp.bfloat16):
        y, moments = functional.batch_norm(x.astype(dtype), None, None, running, train=True, momentum=0.0)
        assert (moments.var >= 0).all()
        assert jnp.isfinite(y).all()


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((16, 3))
        y, moments = functional.batch_norm(jnp.asarray(x), None, None, Moments(jnp.zeros(3), jnp.ones(3)), train=True)
        assert y.dtype == moments.var.dtype == jnp.float64
        assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [(4, None, "x has 3 features"), (3, (7,), "it must be"), (3, (8, 1), "it must be")],
)
def test_batch_norm_errors(features, mask, message):
    running = Moments(jnp.zeros(features), jnp.ones(features))
    mask = mask and jnp.ones(mask, bool)
    with pytest.raises(InputError, match=message):
        functional.batch_norm(jnp.ones((8, 3)), None, None, running, train=True, mask=mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": jnp.ones(4)}, "scale has shape"),
        ({"bias": jnp.ones((3, 1))}, "bias has shape"),
        ({"running": Moments(jnp.zeros(3), jnp.ones(4))}, "running var"),
        ({"momentum": 1.5}, "momentum 1.5"),
        ({"momentum": -0.1}, "momentum -0.1"),
        ({"epsilon": -1e-5}, "epsilon -1e-05"),
        ({"x": jnp.ones((8, 3), jnp.int32)}, "int32"),
        ({"x": jnp.ones(())}, "features last"),
        ({"x": jnp.ones((8, 0))}, "features last"),
        ({"x": jnp.ones((1, 3)), "unbiased": True}, "at least 2 values of each feature, but x has 1"),
    ],
)
def test_batch_norm_names_the_argument(change, message):
    arguments = {"x": jnp.ones((8, 3)), "scale": None, "bias": None, "running": Moments(jnp.zeros(3), jnp.ones(3))}
    with pytest.raises(InputError, match=message):
        functional.batch_norm(**{**arguments, **change}, train=True)


# Unbiased running variance


def torch_batch_norm(torch, shape, features, **options):
    kind = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}
    return kind[len(shape)](features, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_running_moments_are_torchs(shape):
    torch = pytest.importorskip("torch")
    theirs = torch_batch_norm(torch, shape, 3)
    ours = layers.BatchNorm(unbiased=True)
    variables = ours.init(KEY, np.zeros(shape, np.float32), train=False)
    for step in range(3):
        (x,) = arrays(step, shape)
        ty = theirs(to_torch(torch, 2 * x + step))
        y, new = ours.apply(variables, 2 * x + step, train=True, mutable="batch_stats")
        variables = {**variables, **new}
        assert_allclose(y, from_torch(ty), rtol=1e-4, atol=1e-5)
    assert_allclose(new["batch_stats"]["mean"], theirs.running_mean, rtol=1e-5, atol=1e-7)
    assert_allclose(new["batch_stats"]["var"], theirs.running_var, rtol=1e-5)
    ty = theirs.eval()(to_torch(torch, x))
    assert_allclose(ours.apply(variables, x, train=False), from_torch(ty), rtol=1e-4, atol=1e-5)


def test_unbiased_counts_real_rows_of_all_shards():
    x, _, _, running = batch_norm_inputs((8, 5, 3))
    mask = np.arange(8) < 5
    _, expected = functional.batch_norm(x[:5], None, None, running, train=True, unbiased=True)
    _, biased = functional.batch_norm(x[:5], None, None, running, train=True)
    _, masked = functional.batch_norm(x, None, None, running, train=True, mask=mask, unbiased=True)

    def one(x, mask):
        return functional.batch_norm(x, None, None, running, train=True, mask=mask, unbiased=True, axis_name="data")[1]

    shards = jax.vmap(one, axis_name="data")(x.reshape(4, 2, 5, 3), mask.reshape(4, 2))
    assert_allclose(masked.var, expected.var, rtol=1e-6)
    assert_allclose(shards.var[0], expected.var, rtol=1e-6)
    new = biased.var - 0.9 * running.var
    assert_allclose(expected.var - 0.9 * running.var, new * 25 / 24, rtol=1e-4)


# The backward pass written out


@pytest.mark.parametrize(("shape", "scaled"), [*((shape, True) for shape in SHAPES), (SHAPES[0], False)])
def test_backward_is_autodiffs_and_torchs(shape, scaled):
    torch = pytest.importorskip("torch")
    x, dy, scale = arrays(1, shape, shape, shape[-1:], dtype=np.float64)
    scale = scale if scaled else None
    running = Moments(np.zeros(3), np.ones(3))
    tx, tscale, tbias = (
        to_torch(torch, x),
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
        autodiff = jax.jit(lambda dy: jax.vjp(forward, x, *parameters)[1](dy))(dy)
        moments = functional.batch_moments(x)
        ours = jax.jit(functional.batch_norm_backward)(dy, x, scale, moments, 1e-3)
    for mine, derived, theirs in zip(ours, autodiff, (from_torch(tx.grad), tscale.grad, tbias.grad), strict=True):
        assert mine.dtype == jnp.float64
        assert_allclose(mine, derived, rtol=1e-9, atol=1e-11)
        assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)


def test_backward_in_half_precision_is_float32s_rounded():
    x, dy = (jnp.asarray(a, jnp.bfloat16) for a in arrays(1, (64, 3), (64, 3)))
    moments = functional.batch_moments(x)
    half = functional.batch_norm_backward(dy, x, None, moments)
    full = functional.batch_norm_backward(dy.astype(jnp.float32), x.astype(jnp.float32), None, moments)
    assert [a.dtype for a in half] == [jnp.bfloat16, jnp.float32, jnp.float32]
    assert_allclose(half[0].astype(jnp.float32), full[0], rtol=2**-8)
    assert_allclose(half[1], full[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": jnp.ones((8, 2))}, "dy has shape"),
        ({"scale": jnp.ones(8)}, "scale has shape"),
        ({"moments": Moments(jnp.zeros(3), jnp.zeros(()))}, "var has shape"),
        ({"epsilon": -1.0}, "epsilon -1.0"),
    ],
)
def test_backward_errors(change, message):
    arguments = {"dy": jnp.ones((8, 3)), "x": jnp.ones((8, 3)), "scale": None, "moments": Moments(*jnp.ones((2, 3)))}
    with pytest.raises(InputError, match=message):
        functional.batch_norm_backward(**{**arguments, **change})


# Properties: y and its Jacobian do not change with the scale of the weights; their gradient does, by its inverse


@pytest.mark.parametrize("factor", [0.01, 1000.0])
def test_the_scale_of_the_weights_does_not_matter(factor):
    """Exactly so at epsilon 0. Else the variance is off by epsilon / factor^2, which is checked to explain it all."""
    u, kernel, weights = arrays(2, (16, 4), (4, 3), (16, 3), dtype=np.float64)
    running = Moments(np.zeros(3), np.ones(3))
    with jax.enable_x64(True):

        @partial(jax.jit, static_argnums=2)
        def normalized(u, kernel, epsilon=0.0):
            return functional.batch_norm(u @ kernel, None, None, running, train=True, epsilon=epsilon)[0]

        assert_allclose(normalized(u, factor * kernel), normalized(u, kernel), rtol=1e-9, atol=1e-12)
        jacobian = jax.jacrev(normalized)
        assert_allclose(jacobian(u, factor * kernel), jacobian(u, kernel), rtol=1e-8, atol=1e-10)
        gradient = jax.grad(lambda kernel: (normalized(u, kernel) * weights).sum())
        assert_allclose(gradient(factor * kernel), gradient(kernel) / factor, rtol=1e-8, atol=1e-10 / factor)

        epsilon = 1e-5
        assert_allclose(
            normalized(u, factor * kernel, epsilon), normalized(u, kernel, epsilon / factor**2), rtol=1e-9, atol=1e-12
        )


# Batch renormalization


def renorm_reference(x, scale, bias, running, r, d, epsilon=1e-5):
    """The paper's algorithm 1 for given r and d."""
    mean, std = x.mean(0), np.sqrt(x.var(0) + epsilon)
    return scale * ((x - mean) / std * r + d) + bias


@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (1.2, 0.1), (3.0, 5.0)])
def test_batch_renorm_is_the_definition(r_max, d_max):
    x, scale, bias, dy, (mean, var) = arrays(3, (8, 3), 3, 3, (8, 3), (2, 3), dtype=np.float64)
    running = Moments(mean, 0.5 + var**2)
    std = np.sqrt(running.var + 1e-5)
    r = np.clip(np.sqrt(x.var(0) + 1e-5) / std, 1 / r_max, r_max)
    d = np.clip((x.mean(0) - mean) / std, -d_max, d_max)

    def numeric(step):  # central differences with r and d held fixed
        values = [(renorm_reference(x + s * step, scale, bias, running, r, d) * dy).sum() for s in (1e-5, -1e-5)]
        return (values[0] - values[1]) / 2e-5

    with jax.enable_x64(True):
        renorm = jax.jit(partial(functional.batch_renorm, train=True, r_max=r_max, d_max=d_max))
        y, new = renorm(x, scale, bias, running)
        dx = jax.grad(lambda x: (renorm(x, scale, bias, running)[0] * dy).sum())(x)
    assert_allclose(y, renorm_reference(x, scale, bias, running, r, d), rtol=1e-10, atol=1e-12)
    assert_allclose(new.mean, 0.9 * mean + 0.1 * x.mean(0), rtol=1e-12)
    assert_allclose(new.var, 0.9 * running.var + 0.1 * x.var(0), rtol=1e-12)
    for row, feature in ((0, 0), (5, 2)):
        step = np.zeros_like(x)
        step[row, feature] = 1
        assert_allclose(dx[row, feature], numeric(step), rtol=1e-5, atol=1e-8)


def test_unclipped_renorm_trains_as_it_evaluates():
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    renorm = partial(functional.batch_renorm, x, scale, bias, running, r_max=1e6, d_max=1e6)
    assert_allclose(renorm(train=True)[0], renorm(train=False)[0], rtol=1e-4, atol=1e-4)


def test_renorm_without_room_is_batch_norm_with_its_options():
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    options = {"train": True, "mask": np.arange(8) < 6, "momentum": 0.7, "epsilon": 1e-3, "unbiased": True}
    ours = functional.batch_renorm(x, scale, bias, running, r_max=1.0, d_max=0.0, **options)
    chex.assert_trees_all_close(ours, functional.batch_norm(x, scale, bias, running, **options), rtol=1e-5, atol=1e-5)


def test_renorms_limits_may_be_traced():
    x, scale, bias, running = batch_norm_inputs((8, 3))
    renorm = jax.jit(lambda r, d: functional.batch_renorm(x, scale, bias, running, train=True, r_max=r, d_max=d)[0])
    expected = functional.batch_renorm(x, scale, bias, running, train=True, r_max=1.5, d_max=0.5)[0]
    assert_allclose(renorm(1.5, 0.5), expected, rtol=1e-5, atol=1e-5)
    for limits, message in (({"r_max": 0.9}, "r_max 0.9"), ({"d_max": -1}, "d_max -1")):
        with pytest.raises(InputError, match=message):
            functional.batch_renorm(x, scale, bias, running, train=True, **limits)


# The moving average


def test_moving_average_is_dinhs_with_gradients_through_this_batch_alone():
    torch = pytest.importorskip("torch")
    x, scale, bias, dy, (mean, var) = arrays(4, (4, 3), 3, 3, (4, 3), (2, 3), dtype=np.float64)
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
    assert_allclose(jnp.stack(drunning), 0)


def test_moving_average_without_memory_is_batch_norm():
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    options = {"train": True, "mask": np.arange(8) < 6, "momentum": 0.0, "epsilon": 1e-3}
    ours = functional.moving_average_batch_norm(x, scale, bias, running, **options)
    chex.assert_trees_all_close(ours, functional.batch_norm(x, scale, bias, running, **options), rtol=1e-5, atol=1e-5)


# Ghost batches


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_ghost_batches_are_batches_one_after_the_other(shape):
    """PyTorch's batch norm on each group: outputs, gradients, running moments."""
    torch = pytest.importorskip("torch")
    shape = (12, *shape[1:])
    x, dy = arrays(5, shape, shape)
    theirs = torch_batch_norm(torch, shape, 3, momentum=0.2)
    tx = to_torch(torch, x)
    ty = torch.cat([theirs(group) for group in tx.split(4)])
    (ty * to_torch(torch, dy)).sum().backward()

    def loss(x):
        y, new = functional.ghost_batch_norm(
            x, None, None, Moments(jnp.zeros(3), jnp.ones(3)), train=True, group_size=4, momentum=0.8, unbiased=True
        )
        return (y * dy).sum(), (y, new)

    dx, (y, new) = jax.jit(jax.grad(loss, has_aux=True))(x)
    assert_allclose(y, from_torch(ty), rtol=1e-4, atol=1e-5)
    assert_close_to(dx, from_torch(tx.grad))
    assert_allclose(new.mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
    assert_allclose(new.var, theirs.running_var, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_ghost_batches_with_padding(momentum):
    """Of three groups of four rows, one is whole, one half padding, one all padding: it moves nothing."""
    x, scale, bias, running = batch_norm_inputs((12, 5, 3))
    expected, moments = [], running
    for group in (x[:4], x[4:6]):
        y, moments = functional.batch_norm(group, scale, bias, moments, train=True, momentum=momentum)
        expected.append(y)
    padded = np.where(np.arange(12)[:, None, None] < 6, x, np.nan)
    ghost = jax.jit(partial(functional.ghost_batch_norm, train=True, group_size=4, momentum=momentum))
    y, new = ghost(padded, scale, bias, running, mask=np.arange(12) < 6)
    assert_allclose(y[:6], np.concatenate(expected), rtol=1e-4, atol=1e-4)
    assert jnp.isfinite(y).all()
    chex.assert_trees_all_close(new, moments, rtol=1e-5, atol=1e-6)


def test_one_ghost_batch_is_the_batch():
    x, scale, bias, running = batch_norm_inputs((8, 3))
    for train in (True, False):
        ours = jax.jit(partial(functional.ghost_batch_norm, train=train, group_size=8))(x, scale, bias, running)
        expected = functional.batch_norm(x, scale, bias, running, train=train)
        chex.assert_trees_all_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group_size", [0, 3, -4, 16, 4.0])
def test_ghost_batches_must_divide_the_batch(group_size):
    x, scale, bias, running = batch_norm_inputs((8, 3))
    with pytest.raises(InputError, match=f"group_size {group_size}"):
        functional.ghost_batch_norm(x, scale, bias, running, train=True, group_size=group_size)
    functional.ghost_batch_norm(x, scale, bias, running, train=False, group_size=3)  # evaluation has no groups


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
    y, running = variant(*inputs, train=False)
    assert_allclose(y, batch_norm_reference(*inputs, train=False)[0], rtol=1e-5, atol=3e-5)
    assert running is inputs[3]


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_is_float32_rounded_and_vmap_a_loop(variant):
    x, scale, bias, running = batch_norm_inputs((2, 8, 5, 3))
    x = jnp.asarray(x, jnp.bfloat16)
    train = jax.jit(partial(variant, scale=scale, bias=bias, running=running, train=True))
    y, new = jax.jit(jax.vmap(train))(x)
    assert y.dtype == jnp.bfloat16
    for i in range(2):
        expected, moments = train(x[i].astype(jnp.float32))
        assert_allclose(y[i].astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)
        assert_allclose(new.var[i], moments.var, rtol=1e-5)
    with jax.enable_x64(True):
        y, new = train(np.asarray(x, np.float64)[0])
        assert y.dtype == new.var.dtype == jnp.float64


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_variants_over_shards_are_those_of_the_whole_batch(variant):
    x, scale, bias, running = batch_norm_inputs((8, 5, 3))
    expected, moments = variant(x, scale, bias, running, train=True)
    one = partial(variant, scale=scale, bias=bias, running=running, train=True, axis_name="data")
    y, new = jax.vmap(one, axis_name="data")(x.reshape(4, 2, 5, 3))
    assert_allclose(y.reshape(x.shape), expected, rtol=1e-4, atol=1e-4)
    assert_allclose(new.var[2], moments.var, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_say_what_is_wrong(variant):
    x, scale, bias, running = batch_norm_inputs((8, 3))
    with pytest.raises(InputError, match="x has 4 features"):
        variant(jnp.ones((8, 4)), None, None, running, train=True)
    with pytest.raises(InputError, match="mask has shape"):
        variant(x, scale, bias, running, train=True, mask=jnp.ones(3, bool))


# Modules


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
    chex.assert_trees_all_equal_shapes_and_dtypes(module.init(KEY, x, train=True), variables)
    assert_allclose(module.init(KEY, x, train=True)["batch_stats"]["mean"], 0)
    mask = np.arange(8) < 6
    for train in (True, False):
        y, new = jax.jit(partial(module.apply, train=train, mutable="batch_stats"))(variables, x, mask=mask)
        expected, moments = jax.jit(partial(function, train=train))(x, scale, bias, running, mask=mask)
        assert_allclose(y, expected, rtol=1e-6)
        chex.assert_trees_all_close(new["batch_stats"], moments._asdict(), rtol=1e-6)


def test_modules_without_scale_or_bias():
    x, _, bias, running = batch_norm_inputs((8, 3))
    module = layers.BatchNorm(use_scale=False)
    assert module.init(KEY, x, train=False)["params"].keys() == {"bias"}
    variables = {"params": {"bias": bias}, "batch_stats": running._asdict()}
    y = module.apply(variables, x, train=False)
    assert_allclose(y, functional.batch_norm(x, None, bias, running, train=False)[0], rtol=1e-6)
    module = layers.BatchNorm(use_scale=False, use_bias=False, unbiased=True)  # made from one example, too
    module.init(KEY, x[:1], train=True)
    assert "params" not in module.init(KEY, x, train=False)


@pytest.mark.parametrize("kind", [layers.BatchNorm, layers.BatchRenorm, layers.MovingAverageBatchNorm])
def test_modules_take_moments_over_a_mapped_axis(kind):
    x, scale, bias, running = batch_norm_inputs((8, 3))
    variables = kind(axis_name="data").init(KEY, x, train=True)  # the axis does not exist here
    assert_allclose(variables["batch_stats"]["mean"], 0)
    run = partial(kind(axis_name="data").apply, variables, train=True, mutable="batch_stats")
    y, new = jax.vmap(run, axis_name="data")(x.reshape(4, 2, 3))
    expected, moments = kind().apply(variables, x, train=True, mutable="batch_stats")
    assert_allclose(y.reshape(8, 3), expected, rtol=1e-4, atol=1e-4)
    assert_allclose(new["batch_stats"]["var"][1], moments["batch_stats"]["var"], rtol=1e-5)
