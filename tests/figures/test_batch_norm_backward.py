"""Gradients of batch normalization: finite differences of a known function, and the claim for several seeds."""

import numpy as np
import pytest

from deepjax import functional
from deepjax.figures import Settings
from deepjax.figures import batch_norm_backward as experiment


@pytest.mark.parametrize("seed", range(3))
def test_the_claim_holds(seed):
    assert experiment.claim(experiment.numbers(Settings(seed))).holds


def test_a_wrong_gradient_is_seen(monkeypatch):
    right = functional.batch_norm_backward

    def wrong(*arguments):
        dx, dscale, dbias = right(*arguments)
        return 1.001 * dx, dscale, dbias

    monkeypatch.setattr(functional, "batch_norm_backward", wrong)
    experiment._gradients.clear_cache()
    numbers = experiment.numbers(Settings())
    experiment._gradients.clear_cache()
    assert numbers.autodiff["x"] == pytest.approx(1e-3, rel=0.01)
    assert min(numbers.finite["x"]) == pytest.approx(1e-3, rel=0.01)
    assert not experiment.claim(numbers).holds


def test_finite_differences_in_scale_and_bias_are_exact():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 6, 3))
    arguments = x, np.ones(3), np.zeros(3)
    z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(experiment.finite_difference(dy, arguments, 1, 0.1), (dy * z).sum(0), rtol=1e-9)
    np.testing.assert_allclose(experiment.finite_difference(dy, arguments, 2, 0.1), dy.sum(0), rtol=1e-9)
