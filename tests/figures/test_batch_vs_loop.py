"""One product against a loop: equal results, and the claim on given times."""

import dataclasses

import numpy as np

from deepjax.figures import Settings
from deepjax.figures import batch_vs_loop as experiment


def test_both_are_the_product(monkeypatch):
    x, w = np.random.default_rng(0).normal(size=(7, 3)), np.random.default_rng(1).normal(size=(5, 3))
    for function in (experiment.batch, experiment.loop):
        np.testing.assert_allclose(function(x, w), x @ w.T, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(experiment, "SHAPE", (7, 3, 5))
    numbers = experiment.numbers(Settings())
    assert len(numbers.batch) == len(numbers.loop) == 5
    assert numbers.difference < 1e-5


def test_the_claim_is_of_medians_and_of_equal_results():
    numbers = experiment.Numbers("cpu", (0.1, 0.1, 9.0), (0.2, 0.2, 0.2), 1e-6)
    assert experiment.ratio(numbers) == 2
    assert experiment.claim(numbers).holds
    assert not experiment.claim(dataclasses.replace(numbers, loop=(0.14, 0.14, 9.0))).holds
    assert not experiment.claim(dataclasses.replace(numbers, difference=1e-2)).holds
