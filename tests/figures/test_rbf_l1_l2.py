"""Penalties of a network with a kernel per sample, against scikit-learn in float64, for another seed."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import Lasso, Ridge

from deepjax.figures import Settings
from deepjax.figures import rbf_l1_l2 as experiment


@pytest.mark.slow
def test_the_claim_holds_and_the_weights_are_scikit_learns():
    numbers = experiment.numbers(Settings(1))
    assert experiment.claim(numbers).holds
    x, y = np.array(numbers.inputs), np.array(numbers.targets)
    gaussians = np.exp(-((x[:, None] - x) ** 2) / (2 * experiment.WIDTH**2))
    _, l2, l1 = experiment.FITS
    assert_allclose(numbers.weights[l2], Ridge(2.0).fit(gaussians, y).coef_, atol=1e-4)
    # neighboring kernels are almost alike, so that the fit is certain to more digits than the weights
    lasso = Lasso(0.003, tol=1e-10, max_iter=1_000_000).fit(gaussians, y)
    assert_allclose(gaussians @ numbers.weights[l1], gaussians @ lasso.coef_, atol=2e-2)
    assert abs(np.abs(numbers.weights[l1]).sum() - np.abs(lasso.coef_).sum()) < 0.02
