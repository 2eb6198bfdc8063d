"""The lecture's printed example of dropout, against the formulas of outputs and gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import dropout_gradient as experiment
from deepjax.functional import dropout


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_numbers_are_the_lectures_and_the_formulas(seed):
    numbers = experiment.numbers(Settings(seed))
    assert experiment.claim(numbers).holds
    y = experiment.MASK / (1 - 0.75)
    np.testing.assert_array_equal(numbers.outputs, y)
    norms = np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(numbers.gradients, experiment.MASK * 4 * y / norms, rtol=1e-6)
    worse = np.asarray(numbers.gradients)
    worse[2, 4] += 1e-4
    assert not experiment.claim(dataclasses.replace(numbers, gradients=worse)).holds


def test_keys_give_any_mask():
    mask = np.random.default_rng(0).random((4, 5)) < 0.5
    keys = experiment.keys_of(jax.random.key(1), mask, 0.4)
    kept = [[dropout(key, np.ones((), np.float32), 0.4, train=True) > 0 for key in row] for row in keys]
    np.testing.assert_array_equal(kept, mask)
