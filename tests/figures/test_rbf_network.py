"""Radial basis function networks by placement and phase, for another seed than the usual one."""

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import rbf_network as experiment


@pytest.mark.slow
def test_the_claim_holds_and_the_weights_are_the_best_for_their_centers():
    numbers = experiment.numbers(Settings(1))
    assert experiment.claim(numbers).holds
    x, y, centers = np.array(numbers.inputs), np.array(numbers.targets), np.array(numbers.centers["weights"])
    distances = np.sort((centers[:, None] - centers) ** 2, 1)[:, 1:3].mean(1)
    phi = np.c_[np.ones(len(x)), np.exp(-((x[:, None] - centers) ** 2) / (2 * distances))]
    residual = y - phi @ np.linalg.lstsq(phi, y)[0]
    np.testing.assert_allclose(numbers.losses["k-means++"]["weights"][0], (residual**2).mean(), rtol=1e-2)
