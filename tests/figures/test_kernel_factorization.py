"""The saved parameters, against the lecture's formulas."""

import numpy as np

from deepjax.figures import Settings
from deepjax.figures import kernel_factorization as experiment


def test_the_counts_are_the_formulas_and_the_claim_holds():
    numbers = experiment.numbers(Settings())
    alpha = np.asarray(numbers.alphas)
    root = numbers.saved["sqrt(alpha) n"]
    stacked = 1 - (9 * np.sqrt(alpha) + 9 * np.sqrt(alpha) * alpha) / (25 * alpha)
    np.testing.assert_allclose(root["two 3x3 for a 5x5"], stacked, atol=0.003)
    factorized = 1 - (3 * np.sqrt(alpha) + 3 * np.sqrt(alpha) * alpha) / (9 * alpha)
    np.testing.assert_allclose(root["1x3 and 3x1 for a 3x3"], factorized, atol=0.003)
    assert root["two 3x3 for a 5x5"][0] == 1 - 18 / 25  # K filters everywhere: 18 K^2 for 25 K^2
    assert numbers.fields["two 3x3 for a 5x5"] == ((5, 5), (5, 5))
    assert experiment.claim(numbers).holds
