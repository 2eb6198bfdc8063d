"""The lecture's computational graphs: its derivatives by hand against those that JAX takes forward and in reverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax import functional

X, W1, W2 = (each.astype(np.float64) / 3 for each in helpers.random_arrays(0, (8,), (8,), (8,)))
MODES = (lambda f: jax.jit(jax.jacfwd(f)), lambda f: jax.jit(jax.jacrev(f)))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_a_linear_regression_with_a_batch():
    """J = mean of (y1 - y)^2 with y1 = X w + b: dJ/dw is 2/M (y1 - y)^T X."""
    x, w, y = (each.astype(np.float64) for each in helpers.random_arrays(1, (64, 8), (8,), (64,)))
    expected = 2 / 64 * (x @ w + 0.3 - y) @ x
    for mode in MODES:
        found = mode(lambda w: functional.mse(x @ w + 0.3, jnp.asarray(y)).mean())(w)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_two_paths_are_summed():
    """y = y3 y4, y3 = f(w1 x), y4 = f(w2 x): dy/dx is y4 f'(w1 x) w1 + y3 f'(w2 x) w2."""
    f = functional.sigmoid

    def graph(x):
        return f(W1 @ x) * f(W2 @ x)

    y3, y4 = (1 / (1 + np.exp(-w @ X)) for w in (W1, W2))
    for mode in MODES:
        np.testing.assert_allclose(mode(graph)(X), y4 * y3 * (1 - y3) * W1 + y3 * y4 * (1 - y4) * W2, rtol=1e-10)


def test_forward_and_reverse_mode_give_the_slides_sums():
    """y1 = w1 x, y2 = w2 x, y3 = y1 exp(y2), y4 = y2 exp(y1), y = y3 y4."""

    def graph(x):
        y1, y2 = W1 @ x, W2 @ x
        return (y1 * jnp.exp(y2)) * (y2 * jnp.exp(y1))

    y1, y2 = W1 @ X, W2 @ X
    y3, y4 = y1 * np.exp(y2), y2 * np.exp(y1)
    forward = y3 * np.exp(y1) * (W2 + y2 * W1) + y4 * np.exp(y2) * (W1 + y1 * W2)
    reverse = (y4 * y1 * np.exp(y2) + y3 * np.exp(y1)) * W2 + (y3 * y2 * np.exp(y1) + y4 * np.exp(y2)) * W1
    np.testing.assert_allclose(forward, reverse, rtol=1e-10)
    for mode in MODES:
        np.testing.assert_allclose(mode(graph)(X), forward, rtol=1e-10)


def test_errors_go_back_through_the_weights_of_the_forward_pass():
    """L = g(y, W2 f(W1 x)): delta2 = dg/dz2, delta1 = delta2 W2 diag(f'(z1)), and dL/dW1 = delta1 x^T."""
    first, second = (each.astype(np.float64) for each in helpers.random_arrays(2, (6, 8), (4, 6)))

    def loss(first, second):
        return functional.cross_entropy(second @ functional.tanh(first @ X), 2)

    z1 = first @ X
    scores = np.exp(second @ np.tanh(z1))
    delta2 = scores / scores.sum() - np.eye(4)[2]
    delta1 = delta2 @ second @ np.diag(1 - np.tanh(z1) ** 2)
    gradients = jax.jit(jax.grad(loss, (0, 1)))(first, second)
    np.testing.assert_allclose(gradients[0], np.outer(delta1, X), rtol=1e-9)
    np.testing.assert_allclose(gradients[1], np.outer(delta2, np.tanh(z1)), rtol=1e-9)
