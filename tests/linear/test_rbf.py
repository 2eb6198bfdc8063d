"""Radial basis function networks: features by the formula, and what each phase of learning reaches."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import LinearRegression

from deepjax import functional, linear

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (60, 2)).astype(np.float32)
Y = np.sin(3 * X[:, 0]) * X[:, 1]


def test_features_are_the_formula():
    centers, widths = np.float32([[0, 0], [1, 0.5]]), np.float32([0.5, 2])
    expected = [np.exp(-((X - c) ** 2).sum(1, dtype=np.float64) / (2 * s**2)) for c, s in zip(centers, widths)]
    features = jax.jit(linear.rbf_features)(X, centers, widths)
    assert_allclose(features, np.stack([np.ones(60), *expected], 1), rtol=1e-5)
    network = linear.RBF(centers, widths, np.float32([1, 2, -1]))
    assert_allclose(jax.jit(linear.rbf_outputs)(network, X), 1 + 2 * expected[0] - expected[1], rtol=1e-4, atol=1e-5)


def test_widths_are_the_distances_of_two_neighbors():
    widths = jax.jit(linear.nearest_widths)(np.float32([[0.0], [1.0], [3.0]]))
    assert_allclose(widths, np.sqrt([(1 + 9) / 2, (1 + 4) / 2, (4 + 9) / 2]), rtol=1e-6)


def test_repeated_centers_are_no_neighbors_of_each_other():
    widths = jax.jit(linear.nearest_widths)(np.float32([[1.0], [1.0 + 1e-7], [0.0], [0.0], [3.0]]))
    assert_allclose(widths, np.sqrt([(1 + 1) / 2, (1 + 1) / 2, (1 + 1) / 2, (1 + 1) / 2, (4 + 4) / 2]), rtol=1e-6)
    two = jax.jit(linear.nearest_widths)(np.float32([[0.0], [2.0], [2.0]]))
    assert_allclose(two, 2, rtol=1e-6)
    few = np.float32([[0, 0], [1, 0], [0, 1]]).repeat(4, 0)
    placed = jax.jit(lambda x: linear.rbf_place(jax.random.key(0), x, 6))(few)
    assert np.isfinite(placed.widths).all()
    assert placed.widths.min() > 0.5


def test_the_second_phase_is_the_closed_form_and_the_third_goes_on():
    @jax.jit
    def phases(x, y):
        placed = linear.rbf_place(jax.random.key(0), x, 6)
        second, loss = linear.rbf_fit(placed, x, y, functional.mse, everything=False)
        third, least = linear.rbf_fit(second, x, y, functional.mse, everything=True)
        return placed, second, loss, third, least, linear.rbf_outputs(third, x)

    placed, second, loss, third, least, outputs = jax.device_get(phases(X, Y))
    for part in ("centers", "widths"):
        assert (getattr(placed, part) == getattr(second, part)).all()
        assert (getattr(second, part) != getattr(third, part)).any()
    gaussians = np.exp(-((X[:, None] - np.float64(placed.centers)) ** 2).sum(-1) / (2 * np.float64(placed.widths) ** 2))
    residual = Y - LinearRegression().fit(gaussians, Y).predict(gaussians)
    assert_allclose(loss, (residual**2).mean(), rtol=1e-2)
    assert least < loss / 10
    assert_allclose(least, ((outputs - Y) ** 2).mean(), rtol=1e-3)


@pytest.mark.slow
def test_xor_is_learned_with_a_sigmoid():
    labels = (X[:, 0] * X[:, 1] > 0).astype(np.float32)

    @jax.jit
    def train(x, y):
        placed = linear.rbf_place(jax.random.key(1), x, 8)
        network, _ = linear.rbf_fit(placed, x, y, functional.binary_cross_entropy, everything=False, steps=50)
        return linear.rbf_outputs(network, x)

    assert ((train(X, labels) > 0) == (labels > 0)).mean() > 0.95
