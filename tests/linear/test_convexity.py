"""Losses of linear models are convex: their Hessians in the weights are those of the lecture, and have no negative
eigenvalue. The squared error behind a sigmoid is not convex."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax import functional

X, WEIGHTS = (2 * array.astype(np.float64) for array in helpers.random_arrays(0, (5, 3), (3,)))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def squared(w, x):
    return functional.mse(x @ w, jnp.float64(0.7)) / 2


def logistic(w, x):
    return functional.binary_cross_entropy(x @ w, jnp.float64(1))


def behind_sigmoid(w, x):
    return functional.mse(jax.nn.sigmoid(x @ w), jnp.float64(1)) / 2


def softmax(w, x):
    return functional.cross_entropy(w.reshape(2, 3) @ x, 0)


def each(derivative, loss, weights):
    """Return a derivative of the loss of each example, [5, ...]."""
    return np.asarray(jax.jit(jax.vmap(derivative(loss), (None, 0)))(weights, X))


def test_derivatives_are_the_formulas():
    p = 1 / (1 + np.exp(-X @ WEIGHTS))
    outer = X[:, :, None] * X[:, None]
    np.testing.assert_allclose(each(jax.hessian, squared, WEIGHTS), outer, rtol=1e-12, atol=1e-12)
    curved = (p * (1 - p))[:, None, None] * outer
    np.testing.assert_allclose(each(jax.hessian, logistic, WEIGHTS), curved, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(each(jax.grad, logistic, WEIGHTS), -(1 - p)[:, None] * X, rtol=1e-9)
    flat = ((p - 1) * p * (1 - p))[:, None] * X
    np.testing.assert_allclose(each(jax.grad, behind_sigmoid, WEIGHTS), flat, rtol=1e-9)


@pytest.mark.parametrize("loss", [squared, logistic, softmax])
def test_no_eigenvalue_is_negative(loss):
    weights = np.concatenate([WEIGHTS, -WEIGHTS]) if loss is softmax else WEIGHTS
    assert np.linalg.eigvalsh(each(jax.hessian, loss, weights)).min() > -1e-12


def test_a_squared_error_behind_a_sigmoid_is_not_convex():
    assert np.linalg.eigvalsh(each(jax.hessian, behind_sigmoid, WEIGHTS)).min() < -1e-3
