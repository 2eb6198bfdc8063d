"""The batch-norm speed experiment: steps to the baseline's best, and the claim."""

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import batch_norm_speed as experiment


@pytest.mark.slow
def test_the_claim_holds_for_another_seed():
    assert experiment.claim(experiment.numbers(Settings(1))).holds


def test_steps_are_those_to_the_best_accuracy_of_the_baseline(monkeypatch):
    errors = {
        ("none", "relu"): [[0.5, 0.1, 0.2]],
        ("batch", "relu"): [[0.2, 0.1, 0.1], [0.0, 0.1, 0.1], [0.9, 0.9, 0.0]],
        ("batch", "sigmoid"): [[0.9, 0.5, 0.4]],
        ("none", "sigmoid"): [[0.9, 0.9, 0.9]],
    }
    monkeypatch.setattr(experiment, "load", lambda *_: (None, None))
    monkeypatch.setattr(experiment, "_network", lambda norm, activation, full: (norm, activation))
    rates = {}

    def train(network, examples, test, plan, at, seed):
        rates[network] = at
        return np.array(errors[network])

    monkeypatch.setattr(experiment, "_train", train)
    numbers = experiment.numbers(Settings())
    wanted = {"baseline": 40, "BN": 40, "BN x5": 20, "BN x30": 60, "BN x5 sigmoid": None, "sigmoid": None}
    assert numbers.steps == wanted
    assert numbers.best["BN x5 sigmoid"] == pytest.approx(0.6)
    np.testing.assert_allclose(rates["batch", "relu"], [0.03, 0.15, 0.9])
    np.testing.assert_allclose(rates["batch", "sigmoid"], [0.15])
    assert experiment.table(numbers)[1][4][1] == ""
