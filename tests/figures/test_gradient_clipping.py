"""Gradient clipping at the cliff: the loss against NumPy, and the claim."""

import dataclasses

import jax
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import gradient_clipping as experiment


@pytest.fixture(scope="module")
def numbers():
    return experiment.numbers(Settings(1))


def test_the_loss_and_its_gradient_are_those_of_the_recurrence():
    def loss(w, b):
        x = 0.5
        for _ in range(50):
            x = w / (1 + np.exp(-x)) + b
        return (1 / (1 + np.exp(-x)) - 0.7) ** 2

    for point in ((4.5, -2.3), (6.0, -2.0), (2.0, 1.0)):
        value, gradient = jax.value_and_grad(experiment.loss)(np.array(point, np.float32))
        np.testing.assert_allclose(value, loss(*point), rtol=2e-3)
        finite = [(loss(*(np.array(point) + d)) - loss(*(np.array(point) - d))) / 2e-6 for d in 1e-6 * np.eye(2)]
        np.testing.assert_allclose(gradient, finite, rtol=2e-2, atol=1e-5)


def test_a_clipped_step_is_the_gradient_shortened(numbers):
    for kind, path in numbers.paths.items():
        path = np.asarray(path[:20], np.float32)
        gradients = np.asarray(jax.vmap(jax.grad(experiment.loss))(path))
        if kind == "clipped":
            gradients = gradients * np.minimum(1, experiment.NORM / np.linalg.norm(gradients, axis=1, keepdims=True))
        np.testing.assert_allclose(path[1:], (path - experiment.RATE * gradients)[:-1], rtol=1e-3, atol=1e-3)


def test_the_claim_holds_and_can_fail(numbers):
    assert experiment.claim(numbers).holds
    for changes in (
        {"longest": {"without clipping": 10.0, "clipped": 0.5}},
        {"longest": {"without clipping": 100.0, "clipped": 0.6}},
        {"solved": {"without clipping": 0.6, "clipped": 0.8}},
    ):
        assert not experiment.claim(dataclasses.replace(numbers, **changes)).holds
