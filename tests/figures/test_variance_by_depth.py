"""Variances by depth: the layers of a network, and what the claim needs."""

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import variance_by_depth as experiment


@pytest.mark.slow
def test_the_claim_holds_for_another_seed():
    assert experiment.claim(experiment.numbers(Settings(1))).holds


class Fixed:
    """Draws nothing: inputs alternate in sign, and all weights are the standard deviation asked for."""

    def normal(self, scale=1.0, size=None):
        return np.full(size, scale) if isinstance(size, tuple) else np.where(np.arange(size) % 4, 1.0, -1.0)


def test_a_layer_is_the_weights_times_the_activated_units_in_front():
    units = experiment._units(Fixed(), experiment.FUNCTIONS["ReLU"], 4.0)
    assert units.shape == (9, 100)
    np.testing.assert_allclose(units[1], 75 * 0.2)  # 75 inputs are 1, and 25 are -1
    np.testing.assert_allclose(units[2], 100 * 0.2 * 15)
    linear = experiment._units(Fixed(), experiment.FUNCTIONS["linear"], 4.0)
    np.testing.assert_allclose(linear[1], 50 * 0.2)


def made_up(last=0.0):
    def case(activation, gain, factor):
        variances = factor ** np.arange(9.0) + np.array([0] * 8 + [0.01 * last])
        return experiment.Case(activation, gain, tuple(variances), (0.01,) * 9, ((0.0,) * 61,) * 9)

    gains = [(activation, gain) for activation, gains in experiment.GAINS.items() for gain in gains]
    return experiment.Numbers(tuple(case(*each, factor) for each, factor in zip(gains, (2 / 3, 1, 3 / 2) * 2)))


def test_the_claim_needs_every_layer_within_four_standard_errors():
    assert experiment.claim(made_up()).holds
    assert not experiment.claim(made_up(-4.1)).holds
    assert len(experiment.draw(made_up()).axes) == 6
