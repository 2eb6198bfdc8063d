"""The mistakes of perceptrons against their bound, for another seed than the usual one."""

import dataclasses

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import perceptron_bound as experiment


@pytest.mark.slow
def test_the_claim_holds_and_fails_when_a_bound_is_passed():
    numbers = experiment.numbers(Settings(1))
    assert experiment.claim(numbers).holds
    assert np.min(numbers.bounds[0]) > 1 / experiment.MARGINS[0] ** 2 / 4  # examples have a norm above 1/2
    halved = tuple(tuple(np.divide(bounds, 100).tolist()) for bounds in numbers.bounds)
    assert not experiment.claim(dataclasses.replace(numbers, bounds=halved)).holds
    assert not experiment.claim(dataclasses.replace(numbers, xor=(3, 0))).holds
