"""SGD against the optimum of linear models, and ridge regression along a line, for other seeds than the usual one."""

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import delta_rule as experiment


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_claim_holds_and_ridge_is_the_slides_equation(seed):
    numbers = experiment.numbers(Settings(seed))
    assert experiment.claim(numbers).holds
    x = np.outer(np.arange(-2.0, 3.0), [1, 2])
    for ridge, weights in list(numbers.along_a_line.items())[1:]:
        expected = np.linalg.solve(x.T @ x + float(ridge) * np.eye(2), x.T @ x.sum(1))
        np.testing.assert_allclose(weights, expected, rtol=1e-4)
