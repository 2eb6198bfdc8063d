"""Bumps of a hidden layer: they sum to 1, are where they should be, and approximate functions."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import universal_approximation as experiment


@pytest.mark.slow
def test_the_claim_holds():
    assert experiment.claim(experiment.numbers(Settings(1))).holds


@pytest.mark.parametrize("bumps", [experiment.sigmoid_bumps, experiment.gaussian_bumps])
def test_bumps_sum_to_one_and_are_highest_at_their_centers(bumps):
    centers = (np.arange(-8, 18) + 0.5) / 10
    values = np.asarray(bumps(jnp.linspace(0, 1, 51), jnp.asarray(centers), 0.1), float)
    np.testing.assert_allclose(values.sum(1), 1, atol=2e-3)
    at_centers = np.asarray(bumps(jnp.asarray(centers), jnp.asarray(centers), 0.1))
    np.testing.assert_array_equal(at_centers.argmax(1), np.arange(len(centers)))


def test_a_bump_is_the_difference_of_two_units():
    found = experiment.sigmoid_bumps(jnp.array([0.3]), jnp.array([0.5]), 0.2)
    left, right = (1 / (1 + np.exp(-20 * (0.3 - end))) for end in (0.4, 0.6))
    np.testing.assert_allclose(found, [[left - right]], rtol=1e-5)
