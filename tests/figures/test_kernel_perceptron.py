"""The kernel perceptron on two moons, for another seed than the usual one."""

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import kernel_perceptron as experiment


@pytest.mark.slow
def test_the_claim_holds_and_the_drawn_decisions_are_those_of_the_counts():
    numbers = experiment.numbers(Settings(1))
    assert experiment.claim(numbers).holds
    first, second = np.meshgrid(np.linspace(-2, 3, experiment.SIDE), np.linspace(-1.5, 2, experiment.SIDE))
    kernel = (1 + np.stack([first, second], -1) @ np.transpose(numbers.points)) ** 3
    agree = np.sign(kernel @ np.array(numbers.counts)) == np.array(numbers.grid)
    assert agree.mean() > 0.999  # decisions on the boundary may differ by rounding
