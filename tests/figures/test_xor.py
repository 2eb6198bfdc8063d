"""XOR: the training against NumPy, and the claim."""

import dataclasses

import jax
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import xor as experiment


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_training_is_momentum_on_the_binary_cross_entropy(monkeypatch):
    monkeypatch.setattr(experiment, "STEPS", 5)
    net, key = experiment.network(experiment.INITS["U(-10, 10)"]), jax.random.key(3)
    losses, wrong = jax.jit(experiment._train(net))(key)
    params = net.init(key, experiment.INPUTS)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 17
    w = [np.asarray(params[layer][name], float) for layer in ("layers_0", "layers_2") for name in ("kernel", "bias")]
    v, x, t = [0.0] * 4, experiment.INPUTS.astype(float), experiment.TARGETS[:, None].astype(float)
    for loss, count in zip(losses, wrong):
        h = sigmoid(x @ w[0] + w[1])
        z = h @ w[2] + w[3]
        np.testing.assert_allclose(loss, -np.mean(t * np.log(sigmoid(z)) + (1 - t) * np.log(sigmoid(-z))), rtol=1e-4)
        assert count == ((z > 0) != t).sum()
        dz = (sigmoid(z) - t) / 4
        da = dz @ w[2].T * h * (1 - h)
        v = [0.99 * old + g for old, g in zip(v, (x.T @ da, da.sum(0), h.T @ dz, dz.sum(0)))]
        w = [each - 0.1 * step for each, step in zip(w, v)]


def test_the_claim_is_of_shares():
    numbers = experiment.Numbers(2000, {}, {"U(-10, 10)": 1000, "N(0, 1/sqrt(fan_in))": 50, "constant 1": 2000}, {}, {})
    assert experiment.claim(numbers).holds
    for failures in ({"U(-10, 10)": 400}, {"N(0, 1/sqrt(fan_in))": 200}, {"constant 1": 1999}):
        assert not experiment.claim(dataclasses.replace(numbers, many=numbers.many | failures)).holds


@pytest.mark.slow
def test_the_claim_holds_for_another_seed():
    assert experiment.claim(experiment.numbers(Settings(1))).holds
