"""Closed forms and their penalties against scikit-learn in float64."""

import jax
import numpy as np
from numpy.testing import assert_allclose
from sklearn.linear_model import Lasso, LinearRegression, Ridge

from deepjax import linear

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 4)).astype(np.float32)
Y = (X @ [1.0, -2.0, 0.0, 0.1] + 3 + 0.3 * RNG.standard_normal(50)).astype(np.float32)
ONES = np.concatenate([np.ones((50, 1), np.float32), X], 1)
NOT_BIAS = np.array([0, 1, 1, 1, 1], np.float32)
solve = jax.jit(lambda x, y, ridge: linear.least_squares(x, y, ridge=ridge))


def weights(model):
    model.fit(X.astype(np.float64), Y.astype(np.float64))
    return np.concatenate([[model.intercept_], model.coef_])


def test_least_squares_and_ridge_are_scikit_learns():
    assert_allclose(solve(ONES, Y, 0 * NOT_BIAS), weights(LinearRegression()), rtol=1e-4)
    assert_allclose(solve(ONES, Y, 2 * NOT_BIAS), weights(Ridge(2)), rtol=1e-4)


def test_a_scalar_penalty_is_for_the_bias_too_and_solves_the_slides_equations():
    x, y = np.float64(ONES), np.float64(Y)
    expected = np.linalg.solve(x.T @ x + 5 * np.eye(5), x.T @ y)
    two = np.stack([Y, -Y], 1)
    assert_allclose(
        jax.jit(lambda x, y: linear.least_squares(x, y, ridge=5.0))(ONES, two).T, [expected, -expected], rtol=1e-4
    )


def test_points_along_a_line_have_the_shortest_of_many_solutions():
    x = np.outer(np.arange(4.0), [1, 2]).astype(np.float32)
    y = np.arange(4.0).astype(np.float32)
    found = jax.jit(lambda x, y: linear.least_squares(x, y))(x, y)
    assert_allclose(found, [0.2, 0.4], rtol=1e-5)
    assert_allclose(jax.jit(lambda x, y: linear.least_squares(x, y, ridge=1e-4))(x, y), found, rtol=1e-4)


def test_lasso_is_scikit_learns_with_zeros_where_it_has_them():
    ours = np.asarray(jax.jit(lambda x, y: linear.lasso(x, y, penalty=0.2 * NOT_BIAS))(ONES, Y))
    expected = weights(Lasso(0.2, tol=1e-12))
    assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert ((ours == 0) == (expected == 0)).all()
    assert (ours == 0).sum() == 2
