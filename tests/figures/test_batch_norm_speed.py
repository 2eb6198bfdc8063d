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
    monkeypatch.setattr(experiment, "load", lambda *_: (None, np.zeros(3)))
    monkeypatch.setattr(experiment, "_network", lambda norm, activation, widths: (norm, activation))
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


@pytest.mark.parametrize(
    ("settings", "data", "plan", "tested"),
    [
        (Settings(), ("digits", ""), experiment.DIGITS, 3000),
        (Settings(data_dir="folder"), ("cifar10", "folder"), experiment.CIFAR, 2000),
        (Settings(data_dir="folder", full=True), ("cifar10", "folder"), experiment.FULL, 3000),
    ],
)
def test_the_data_set_and_its_plan(settings, data, plan, tested, monkeypatch):
    loaded, plans = [], []
    monkeypatch.setattr(experiment, "load", lambda *words: loaded.append(words) or (None, np.zeros(3000)))

    def train(network, examples, test, plan, rates, seed):
        plans.append((plan, len(test), isinstance(network, experiment.SmallCNN)))
        return np.zeros((len(rates), 2))

    monkeypatch.setattr(experiment, "_train", train)
    experiment.numbers(settings)
    assert loaded == [data]
    assert set(plans) == {(plan, tested, bool(plan.widths))}
