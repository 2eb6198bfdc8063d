"""Shifts of PCA lighting, against the covariance of colors."""

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import color_pca as experiment


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_claim_holds(seed):
    numbers = experiment.numbers(Settings(seed))
    assert experiment.claim(numbers).holds
    components = np.asarray(numbers.components)
    np.testing.assert_allclose(np.linalg.norm(components, axis=1), numbers.variances, rtol=1e-4)
    np.testing.assert_allclose(0.01 * components.T @ components, numbers.expected, rtol=1e-3, atol=1e-9)


def test_a_wrong_covariance_fails(monkeypatch):
    scaled = experiment.color.lighting_components
    monkeypatch.setattr(experiment.color, "lighting_components", lambda split: 1.1 * scaled(split))
    assert not experiment.claim(experiment.numbers(Settings())).holds
