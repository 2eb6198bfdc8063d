"""Batch norm, pooling and losses against float64 NumPy and PyTorch, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional
from deepjax.errors import InputError
from deepjax.functional import Moments


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def to_torch(torch, x):
    """[batch, ..., features] -> a leaf tensor [batch, features, ...]."""
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


# Activations


def test_relu_and_its_gradient():
    x = jnp.array([-2.0, 0.0, 3.0])
    assert_allclose(functional.relu(x), [0, 0, 3])
    assert_allclose(jax.grad(lambda x: functional.relu(x).sum())(x), [0, 0, 1])


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


# Pooling


def pool_reference(x, window, stride, padding, reduce, fill):
    pads = [(0, 0), *((p, p) for p in padding), (0, 0)]
    x = np.pad(np.asarray(x, np.float64), pads, constant_values=fill)
    out = [(s - w) // t + 1 for s, w, t in zip(x.shape[1:-1], window, stride)]
    y = np.empty((x.shape[0], *out, x.shape[-1]))
    for i in np.ndindex(*out):
        window_of = tuple(slice(k * t, k * t + w) for k, t, w in zip(i, stride, window))
        y[(slice(None), *i)] = reduce(x[(slice(None), *window_of)], axis=tuple(range(1, x.ndim - 1)))
    return y


POOLS = [  # spatial axes, window, stride, padding
    ((7,), (3,), (2,), (1,)),
    ((7, 8), (2, 2), (2, 2), (0, 0)),
    ((7, 8), (3, 3), (2, 2), (1, 1)),
    ((7, 8), (3, 2), (1, 3), (0, 1)),
    ((4, 5, 6), (2, 3, 3), (2, 1, 2), (1, 0, 1)),
]


@pytest.mark.parametrize(("spatial", "window", "stride", "padding"), POOLS)
def test_pooling_is_the_definition(spatial, window, stride, padding):
    (x,) = arrays(0, (2, *spatial, 3))
    x = x - 5  # where padding with zeros would win
    y = functional.max_pool(x, window, stride=stride, padding=padding)
    assert_allclose(y, pool_reference(x, window, stride, padding, np.max, -np.inf), rtol=1e-7)
    y = functional.avg_pool(x, window, stride=stride, padding=padding)
    assert_allclose(y, pool_reference(x, window, stride, padding, np.mean, 0), rtol=1e-5)


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, None, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2), (3, 2, 0)])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling_is_torchs(kind, window, stride, padding):
    torch = pytest.importorskip("torch")
    (x,) = arrays(1, (2, 9, 8, 3))
    ours = {"max": functional.max_pool, "avg": functional.avg_pool}[kind]
    pool = jax.jit(lambda x: ours(x, window, stride=stride, padding=padding))
    y = pool(x - 5)
    (weights,) = arrays(2, y.shape)
    gradient = jax.jit(jax.grad(lambda x: (pool(x) * weights).sum()))(x - 5)  # in jit, where training takes it

    tx = to_torch(torch, x - 5)
    theirs = {"max": torch.nn.functional.max_pool2d, "avg": torch.nn.functional.avg_pool2d}[kind]
    ty = theirs(tx, window, stride=stride, padding=padding)
    (ty * to_torch(torch, weights)).sum().backward()
    assert_allclose(y, from_torch(ty), rtol=1e-5)
    assert_allclose(gradient, from_torch(tx.grad), rtol=1e-5, atol=1e-6)


def test_pooling_of_integers_and_half_precision():
    x = jnp.arange(16, dtype=jnp.int32).reshape(1, 4, 4, 1) - 100
    assert functional.max_pool(x, 2).dtype == jnp.int32
    assert functional.max_pool(x, 3, padding=1, stride=2)[0, 0, 0, 0] == -95
    half = x.astype(jnp.bfloat16)
    assert functional.max_pool(half, 2).dtype == functional.avg_pool(half, 2).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (4, 5, 6, 3), (4, 2, 5, 6, 3)])
def test_global_avg_pool(shape):
    (x,) = arrays(0, shape)
    assert_allclose(functional.global_avg_pool(x), x.reshape(4, -1, 3).mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [functional.max_pool, functional.avg_pool])
@pytest.mark.parametrize(
    ("window", "options", "message"),
    [
        (5, {}, "window 5"),
        (0, {}, "window 0"),
        (2, {"stride": 0}, "stride 0"),
        (3, {"padding": 2}, "at most half"),
        (3, {"padding": -1}, "padding -1"),
        ((2, 2, 2), {}, "needs 2 entries"),
        (2, {"stride": (2,)}, "needs 2 entries"),
        (2, {"padding": (1, 1, 1)}, "needs 2 entries"),
    ],
)
def test_pooling_errors(pool, window, options, message):
    with pytest.raises(InputError, match=message):
        pool(jnp.ones((1, 4, 4, 1)), window, **options)


# Losses


def cross_entropy_reference(logits, labels, smoothing):
    z = np.asarray(logits, np.float64)
    highest = z.max(-1, keepdims=True)
    log_p = z - highest - np.log(np.exp(z - highest).sum(-1, keepdims=True))
    target = (1 - smoothing) * np.eye(z.shape[-1])[labels] + smoothing / z.shape[-1]
    return -(target * log_p).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(), (6,), (3, 4)])
def test_cross_entropy_is_the_definition(shape, smoothing):
    (logits,) = arrays(0, (*shape, 7))
    labels = np.random.default_rng(1).integers(0, 7, shape)
    loss = functional.cross_entropy(3 * logits, jnp.asarray(labels), smoothing=smoothing)
    assert loss.shape == shape
    assert_allclose(loss, cross_entropy_reference(3 * logits, labels, smoothing), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing):
    torch = pytest.importorskip("torch")
    (logits,) = arrays(0, (6, 7))
    labels = np.array([0, 6, 3, 3, 1, 2])
    loss, gradient = jax.value_and_grad(
        lambda z: functional.cross_entropy(z, jnp.asarray(labels), smoothing=smoothing).sum()
    )(logits)
    z = torch.tensor(logits, requires_grad=True)
    theirs = torch.nn.functional.cross_entropy(z, torch.tensor(labels), label_smoothing=smoothing, reduction="sum")
    theirs.backward()
    assert_allclose(loss, theirs.detach(), rtol=1e-5)
    assert_allclose(gradient, z.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_finite_for_extreme_logits(smoothing):
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]])
    labels = jnp.array([1, 0, 2])
    loss = functional.cross_entropy(logits, labels, smoothing=smoothing)
    assert_allclose(loss, cross_entropy_reference(logits, labels, smoothing), rtol=1e-5, atol=1e-3)
    gradient = jax.grad(lambda z: functional.cross_entropy(z, labels, smoothing=smoothing).sum())(logits)
    assert jnp.isfinite(gradient).all()
    # bfloat16 and float16 logits are widened first
    for dtype in (jnp.bfloat16, jnp.float16):
        loss = functional.cross_entropy(logits.astype(dtype), labels, smoothing=smoothing)
        assert loss.dtype == jnp.float32
        assert jnp.isfinite(loss).all()


def test_smooth_labels():
    targets = functional.smooth_labels(jnp.array([[1], [0]]), 0.2, 4)
    assert_allclose(targets, [[[0.05, 0.85, 0.05, 0.05]], [[0.85, 0.05, 0.05, 0.05]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "smoothing", "message"),
    [
        (jnp.zeros(3, jnp.int32), 0.0, "do not match"),
        (jnp.zeros((2, 1), jnp.int32), 0.0, "do not match"),
        (jnp.zeros(2), 0.0, "must be integers"),
        (jnp.zeros(2), 0.1, "must be integers"),
        (jnp.zeros(2, jnp.int32), -0.1, "label smoothing"),
        (jnp.zeros(2, jnp.int32), 1.1, "label smoothing"),
        (jnp.zeros(2, jnp.int32), float("nan"), "label smoothing"),
    ],
)
def test_cross_entropy_errors(labels, smoothing, message):
    with pytest.raises(InputError, match=message):
        functional.cross_entropy(jnp.ones((2, 5)), labels, smoothing=smoothing)
