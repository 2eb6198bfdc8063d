"""The loss of a linear regression as a quadratic, against the mean of squares, and the rate of gradient descent."""

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import loss_surface as experiment


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_claim_holds(seed):
    assert experiment.claim(experiment.numbers(Settings(seed))).holds


def test_the_quadratic_is_the_mean_squared_error():
    x, y = experiment.samples(0)
    assert x.shape == (30,)
    assert np.abs(y - 3 * x - 2).max() <= 0.1
    hessian, minimum, lowest = experiment.quadratic(x, y)
    np.testing.assert_allclose(minimum, [2, 3], atol=0.1)
    for point in (np.array([10.0, 5.0]), np.array([-1.0, 2.0])):
        value = lowest + (point - minimum) @ hessian @ (point - minimum) / 2
        np.testing.assert_allclose(value, np.mean((y - point[0] - point[1] * x) ** 2), rtol=1e-10)


def test_every_path_ends_in_the_same_line_as_far_as_its_condition_number_allows():
    numbers = experiment.numbers(Settings())
    for name, condition in numbers.conditions.items():  # distances shrink at least by this factor in each step
        path, minimum = np.asarray(numbers.paths[name]), np.asarray(numbers.minima[name])
        far = np.linalg.norm(path - minimum, axis=1)
        assert far[-1] <= far[0] * ((condition - 1) / (condition + 1)) ** 59 + 1e-4
