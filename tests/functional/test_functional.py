"""Pooling against float64 NumPy and PyTorch, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional
from deepjax.errors import InputError


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def to_torch(torch, x):
    """[batch, ..., features] -> a leaf tensor [batch, features, ...]."""
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)


def from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


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
        ((2, 2, 2), {}, "must have 2 entries"),
        (2, {"stride": (2,)}, "must have 2 entries"),
        (2, {"padding": (1, 1, 1)}, "must have 2 entries"),
    ],
)
def test_pooling_errors(pool, window, options, message):
    with pytest.raises(InputError, match=message):
        pool(jnp.ones((1, 4, 4, 1)), window, **options)
