"""The paths of three optimizers: against the lecture's updates in NumPy, and the claim."""

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import optimizer_paths as experiment


@pytest.mark.parametrize("seed", [0, 1])
def test_the_claim_holds(seed):
    assert experiment.claim(experiment.numbers(Settings(seed))).holds


@pytest.mark.parametrize(
    ("name", "mu", "look_ahead"), [("SGD", 0, 0), ("momentum 0.6", 0.6, 0), ("Nesterov 0.8", 0.8, 1)]
)
def test_the_updates_are_the_lectures(name, mu, look_ahead):
    """v <- mu v - rate gradient(theta + mu v), theta <- theta + v. The path is of the points with the gradients."""
    x, y = np.random.default_rng(0).uniform(0, 10, (2, 20))
    theta, v, points = np.array([10.0, 5.0]), np.zeros(2), []
    for a, b in zip(x, y):
        ahead = theta + look_ahead * mu * v
        points.append(ahead)
        v = mu * v - 0.005 * 2 * (ahead[0] + ahead[1] * a - b) * np.array([1, a])
        theta = theta + v
    found = experiment._descend(experiment.OPTIMIZERS[name], x, y)
    np.testing.assert_allclose(found[:-1], points, rtol=1e-3, atol=1e-4)
