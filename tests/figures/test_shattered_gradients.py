"""Slopes against finite differences, autocorrelations against known series."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import shattered_gradients as experiment


def test_autocorrelations_of_known_series():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(50, 4000))
    smooth = (noise[:, 1:] + noise[:, :-1]) / 2  # 1, 1/2, 0, ...
    found = experiment.autocorrelation(smooth, 4)
    np.testing.assert_allclose(found, [1, 0.5, 0, 0], atol=4 / np.sqrt(noise.size) * 2)


def test_slopes_are_derivatives_of_each_output_in_its_own_input():
    def plain(kernel, x):  # two layers by hand, with the moments of the grid
        h = jax.nn.relu(experiment.normalize(x[:, None] @ kernel))
        return (h**2).sum(1)

    kernel = np.random.default_rng(0).normal(size=(1, 5)).astype(np.float32)
    x = np.linspace(-2, 2, 64, dtype=np.float32)
    scale = kernel[0] / np.sqrt(np.var(x[:, None] * kernel, axis=0) + 1e-5)
    expected = 2 * np.maximum((x - x.mean())[:, None] * scale, 0) @ scale
    found = experiment.slopes(lambda x: plain(kernel, x), jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_claim_holds_and_fails_when_residual_networks_shatter_too():
    numbers = experiment.numbers(Settings(1))
    assert experiment.claim(numbers).holds
    white = numbers.autocorrelations["white noise"]
    for kind in experiment.KINDS[2:4]:
        changed = numbers.autocorrelations | {kind: white}
        assert not experiment.claim(dataclasses.replace(numbers, autocorrelations=changed)).holds
