"""A line by first order methods: the updates against the lecture's formulas in float64, and the claim."""

import dataclasses

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import linear_regression as experiment
from deepjax.figures.loss_surface import samples

MOMENTUM = {"SGD": 0.0, "momentum 0.6": 0.6, "Nesterov 0.8": 0.8}


@pytest.mark.parametrize("name", experiment.METHODS)
def test_updates_are_the_lectures(name):
    x, y = samples(3)
    order = np.random.default_rng(0).permutation(30)
    theta, v, mu, seen = np.array(experiment.START), np.zeros(2), MOMENTUM[name], []
    for i in order:
        ahead = theta + mu * v if name == "Nesterov 0.8" else theta
        seen.append(ahead)
        error = y[i] - ahead[0] - ahead[1] * x[i]
        v = mu * v + 0.005 * 2 * error * np.array([1, x[i]])
        theta = theta + v
    path = experiment.descend(experiment.METHODS[name], x, y, order)
    # With a constant rate, PyTorch's form of Nesterov's momentum is the lecture's at the points looked ahead to.
    np.testing.assert_allclose(path[:-1], np.stack(seen), rtol=1e-4, atol=1e-4)


def test_the_claim_holds_for_another_seed_and_can_fail():
    numbers = experiment.numbers(Settings(1))
    assert experiment.claim(numbers).holds
    slope, intercept = np.polyfit(*samples(1), 1)
    np.testing.assert_allclose(numbers.minimum, (intercept, slope))
    moved = dataclasses.replace(numbers, ends=numbers.ends | {"SGD": (2.0, 3.1)})
    assert not experiment.claim(moved).holds
