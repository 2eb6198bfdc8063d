"""The ReLU that is tailored to a depth: its second moment, and its slope against the cosine map by quadrature."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional
from deepjax.errors import InputError

tailored_relu = jax.jit(functional.tailored_relu, static_argnums=1)


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.9, 1.0])
def test_tailored_relu_keeps_the_second_moment(slope):
    """Four sigma, on samples: E[y^2] = E[x^2]; var(y^2) is at most E[y^4] <= 4 E[x^4] = 12."""
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    y = np.asarray(tailored_relu(x, slope), np.float64)
    expected = np.sqrt(2 / (1 + slope**2)) * np.where(x > 0, x, slope * x)
    assert_allclose(y, expected, rtol=1e-5)
    assert abs((y**2).mean() - 1) < 4 * np.sqrt(12 / 100_000)


@pytest.mark.parametrize(("depth", "target"), [(20, 0.9), (100, 0.9), (100, 0.5), (2000, 0.9)])
def test_tailored_slope_solves_the_cosine_map(depth, target):
    """The map of one layer by quadrature over two correlated normals, not by its closed form."""
    slope = functional.tailored_slope(depth, target)
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)
    weights = np.outer(weights, weights) / weights.sum() ** 2

    def layer(c):
        def f(z):
            return np.where(z > 0, z, slope * z) * np.sqrt(2 / (1 + slope**2))

        a, b = np.meshgrid(nodes, nodes, indexing="ij")
        return (weights * f(a) * f(c * a + np.sqrt(1 - c * c) * b)).sum()

    grid = np.linspace(0, 1, 201)
    values = np.array([layer(c) for c in grid])
    c = 0.0
    for _ in range(depth):
        c = np.interp(c, grid, values)
    assert abs(c - target) < 0.02
    assert functional.tailored_slope(depth + 50, target) > slope


def test_shallow_nets_need_no_tailoring():
    assert functional.tailored_slope(3) == 0


@pytest.mark.parametrize(("depth", "target"), [(0, 0.9), (5, 1.0), (5, 0.0)])
def test_tailored_slope_errors(depth, target):
    with pytest.raises(InputError, match="tailored_slope: depth"):
        functional.tailored_slope(depth, target)
