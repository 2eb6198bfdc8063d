"""The gradient of max pooling against a loop in float64 NumPy, and against XLA's own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

native = pytest.importorskip("deepjax_native", reason="deepjax_native is not installed: pip install ./native")


def reference(x, dy, window, stride, low):
    """Give dy to the first of the largest pixels of each window, in row-major order."""
    dx = np.zeros(x.shape)
    for at in itertools.product(*(range(n) for n in dy.shape[:-1])):
        ranges = [
            range(max(0, o * s - p), min(n, o * s - p + w))
            for o, s, p, n, w in zip(at[1:], stride, low, x.shape[1:-1], window)
        ]
        pixels = list(itertools.product(*ranges))
        if not pixels:
            continue
        largest = np.argmax([x[(at[0], *p)] for p in pixels], 0)
        for feature, index in enumerate(largest):
            dx[(at[0], *pixels[index], feature)] += dy[(*at, feature)]
    return dx


def case(seed):
    """Return x, dy and the numbers of a random pooling. x has many equal numbers."""
    rng = np.random.default_rng(seed)
    spatial = 1 + seed % 3
    size = rng.integers(4, (20, 11, 7)[spatial - 1], spatial)
    window, stride = rng.integers(1, 5, spatial), rng.integers(1, 4, spatial)
    low, high = (rng.integers(0, window // 2 + 1) for _ in range(2))
    window = np.minimum(window, size)
    batch, features = int(rng.integers(1, 5)), int(rng.choice([1, 3, 16, 70, 200]))
    x = rng.integers(-3, 4, (batch, *size, features)).astype(np.float32)
    out = (size + low + high - window) // stride + 1
    dy = rng.standard_normal((batch, *out, features)).astype(np.float32)
    return x, dy, *(tuple(map(int, v)) for v in (window, stride, low, high))


@pytest.mark.parametrize("seed", range(30))
def test_random_poolings(seed):
    x, dy, window, stride, low, high = case(seed)
    result = jax.jit(native.max_pool_gradient, static_argnums=(2, 3, 4))(x, dy, window, stride, low)
    np.testing.assert_allclose(result, reference(x, dy, window, stride, low), rtol=1e-5, atol=1e-5)

    def pool(x):
        pads = ((0, 0), *zip(low, high), (0, 0))
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), pads)

    np.testing.assert_allclose(result, jax.vjp(pool, jnp.asarray(x))[1](dy)[0], rtol=1e-5, atol=1e-5)


def test_empty_batch():
    x, dy = np.zeros((0, 6, 3), np.float32), np.zeros((0, 3, 3), np.float32)
    assert native.max_pool_gradient(x, dy, (2,), (2,), (0,)).shape == (0, 6, 3)


def test_what_is_supported(monkeypatch):
    assert native.supports_max_pool(2, jnp.float32)
    assert not native.supports_max_pool(4, jnp.float32)
    assert not native.supports_max_pool(2, jnp.bfloat16)
    monkeypatch.setenv("DEEPJAX_NATIVE", "0")
    assert not native.supports_max_pool(2, jnp.float32)
