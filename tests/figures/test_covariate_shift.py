"""Covariate shift: percentiles against NumPy, and the claim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import zoo
from deepjax.figures import Settings
from deepjax.figures import covariate_shift as experiment
from deepjax.figures.small_runs import Examples


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_percentiles_are_those_of_the_last_hidden_units(monkeypatch):
    monkeypatch.setattr(experiment, "RATE", 0.0)  # training changes nothing
    network = zoo.create("mlp", depth=3, width=7, activation="sigmoid", num_classes=3)
    x = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
    examples, key = Examples(jnp.asarray(x), jnp.zeros(120, jnp.int32)), jax.random.key(0)
    errors, found = experiment._training(network, key, jax.random.split(key, 2), examples, examples, 2)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), network.init(key, x[:1], train=False)["params"])
    dense = params["hidden"]["unit"]["dense"]
    h = sigmoid(x @ params["first"]["kernel"] + params["first"]["bias"])
    h = sigmoid(h @ dense["kernel"][0] + dense["bias"][0])
    np.testing.assert_allclose(found, [np.percentile(h, (15, 50, 85), axis=0)] * 2, rtol=1e-5)
    logits = h @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(errors, [(logits.argmax(1) != 0).mean()] * 2, atol=1e-6)


def test_the_claim_is_of_half_the_movement():
    numbers = experiment.Numbers(
        "digits", 1, {}, {}, {"without batch normalization": 0.3, "with batch normalization": 0.1}
    )
    assert experiment.claim(numbers).holds
    worse = numbers.ranges | {"with batch normalization": 0.16}
    assert not experiment.claim(dataclasses.replace(numbers, ranges=worse)).holds


@pytest.mark.slow
def test_the_claim_holds_for_another_seed():
    assert experiment.claim(experiment.numbers(Settings(1))).holds
