"""The disc experiment: what its claim needs."""

import numpy as np
import pytest

import helpers
from deepjax.figures import weight_scale_disc as experiment


@pytest.mark.slow
def test_the_claim_holds_for_another_seed(tmp_path):
    assert helpers.claim_holds("weight-scale-disc", tmp_path)


def made_up(baseline, batch):
    errors = [[(error, error + 0.02) for error in each] for each in (baseline, batch)]
    return experiment.Numbers((0.01, 0.1, 0.2, 1.0), dict(zip(experiment.NORMS, errors)))


@pytest.mark.parametrize(
    ("baseline", "batch", "holds"),
    [
        ((0.5, 0.5, 0.05, 0.98), (0.1, 0.1, 0.1, 0.1), True),
        ((0.5, 0.1, 0.05, 0.98), (0.5, 0.1, 0.1, 0.1), False),  # with it, a factor of 10 only
        ((0.1, 0.1, 0.05, 0.98), (0.1, 0.1, 0.1, 0.1), False),  # without it, a factor of 20
        ((0.5, 0.5, 0.5, 0.98), (0.1, 0.1, 0.1, 0.1), False),  # without it, no scale at all
        ((0.5, 0.5, 0.05, 0.98), (0.1, 0.5, 0.5, 0.2), False),  # with it, the mean of 0.20 and 0.22 is too large
    ],
)
def test_the_claim_needs_a_narrow_and_a_wide_range(baseline, batch, holds):
    assert experiment.claim(made_up(baseline, batch)).holds == holds


def test_every_network_is_drawn():
    axes = experiment.draw(made_up((0.5, 0.5, 0.05, 0.98), (0.1, 0.1, 0.1, 0.1))).axes[0]
    lines = [np.asarray(line.get_ydata()) for line in axes.lines]
    np.testing.assert_allclose(lines[0], [51, 51, 6, 99])
    assert len(lines) == 2 * (1 + 2)
