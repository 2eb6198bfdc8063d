"""Batch norm and the scale of weights: epsilon's effect against NumPy, descent against Pythagoras, and the claim."""

import jax
import numpy as np
import pytest

from deepjax import functional
from deepjax.figures import Settings
from deepjax.figures import bn_scale_invariance as experiment


@pytest.mark.parametrize("seed", range(3))
def test_the_claim_holds(seed):
    assert experiment.claim(experiment.numbers(Settings(seed))).holds


def test_differences_with_epsilon_are_those_of_a_larger_epsilon():
    """BN of a z with epsilon is BN of z with epsilon / a^2."""
    rng = np.random.default_rng(3)
    u, w, dy = rng.normal(size=(20, 4)), rng.normal(size=(4, 3)), rng.normal(size=(20, 3))
    z = u @ w

    def normalized(epsilon):
        return (z - z.mean(0)) / np.sqrt(z.var(0) + epsilon)

    y = normalized(1e-5)
    wanted = [abs(normalized(1e-5 / a**2) - y).max() / abs(y).max() for a in experiment.SCALES]
    with jax.enable_x64(True):
        found = experiment._by_scale(u, w, dy, 1e-5)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-15)


def test_gradient_descent_adds_the_squares_of_steps_to_the_square_of_the_norm():
    rng = np.random.default_rng(4)
    u, w, targets = rng.normal(size=(20, 4)), rng.normal(size=(4, 3)), rng.normal(size=(20, 3))

    def loss(w):
        z = u @ w
        return (((z - z.mean(0)) / z.std(0) - targets) ** 2).sum(1).mean() / 2

    gradient = np.empty_like(w)  # central differences
    for entry in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[entry] = 1e-5
        gradient[entry] = (loss(w + step) - loss(w - step)) / 2e-5
    with jax.enable_x64(True):
        norms = experiment._descent(u, w[None], targets)[0]
    square = np.sum(w**2) + experiment.RATE**2 * np.sum(gradient**2)
    np.testing.assert_allclose(norms[:2], np.sqrt([np.sum(w**2), square]), rtol=1e-8)


def test_a_normalization_that_keeps_some_scale_fails(monkeypatch):
    right = functional.batch_norm
    monkeypatch.setattr(functional, "batch_norm", lambda x, *rest, **named: (right(x, *rest, **named)[0] + 1e-9 * x,))
    for program in (experiment._by_scale, experiment._descent):
        program.clear_cache()
    assert not experiment.claim(experiment.numbers(Settings())).holds
    for program in (experiment._by_scale, experiment._descent):
        program.clear_cache()
