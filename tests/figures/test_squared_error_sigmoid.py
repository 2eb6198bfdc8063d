"""The gradient of the squared error, against the lecture's formula."""

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import squared_error_sigmoid as experiment


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_claim_holds_for_other_seeds(seed):
    numbers = experiment.numbers(Settings(seed))
    assert experiment.claim(numbers).holds


def test_gradients_are_the_formulas():
    numbers = experiment.numbers(Settings())
    z = np.asarray(numbers.logits)
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(numbers.gradients["squared error"], (p - 1) * p * (1 - p), rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(numbers.gradients["cross entropy"], p - 1, rtol=1e-4, atol=1e-7)
