"""Features with and without dropout: localization and activations against NumPy, what dropout does, and the claim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax.figures import Settings
from deepjax.figures import dropout_features as experiment


def test_the_best_window_is_the_largest_of_all_places():
    weights = np.random.default_rng(0).normal(size=(5, 6, 6))
    expected = [
        max((unit[i : i + 3, j : j + 3] ** 2).sum() for i in range(4) for j in range(4)) / (unit**2).sum()
        for unit in weights
    ]
    np.testing.assert_allclose(experiment.best_window(weights, 3), expected, rtol=1e-12)
    spot = np.zeros((1, 8, 8))
    spot[0, 5:, 5:] = -2.0
    assert experiment.best_window(spot, 3) == 1.0
    assert experiment.best_window(np.ones((1, 8, 8)), 3) == pytest.approx(9 / 64)


def drawn(pixels, seed=0):
    """Return variables of an auto-encoder, of which every fourth unit is never active."""
    rng = np.random.default_rng(seed)
    shapes = {"encoder": (pixels, experiment.UNITS), "decoder": (experiment.UNITS, pixels)}
    params = {
        name: {"kernel": rng.normal(size=shape) * 0.1, "bias": rng.normal(size=shape[1]) * 0.1}
        for name, shape in shapes.items()
    }
    params["encoder"]["bias"][::4] = -100.0
    return {"params": jax.tree.map(lambda leaf: np.float32(leaf), params)}


def test_numbers_are_those_of_numpy():
    x = np.random.default_rng(1).uniform(size=(30, 16)).astype(np.float32)
    variables = drawn(16)
    numbers = experiment.measured("some", 2, jnp.asarray(x), dict.fromkeys(experiment.RATES, variables))
    encoder, decoder = (variables["params"][name] for name in ("encoder", "decoder"))
    hidden = np.maximum(np.float64(x) @ encoder["kernel"] + encoder["bias"], 0)
    alive = hidden.max(0) > 0
    assert alive.sum() <= experiment.UNITS * 3 / 4
    output = 1 / (1 + np.exp(-(hidden @ decoder["kernel"] + decoder["bias"])))
    kind = "with dropout"
    np.testing.assert_allclose(numbers.activations[kind], hidden.mean(0)[alive], rtol=1e-4, atol=1e-6)
    assert numbers.active[kind] == pytest.approx((hidden > 0).mean() / alive.mean(), abs=1e-3)
    variance = ((x - x.mean(0)) ** 2).mean()
    assert numbers.errors[kind] == pytest.approx(((output - x) ** 2).mean() / variance, rel=1e-4)
    kernels = encoder["kernel"].T[alive].reshape(-1, 4, 4)
    np.testing.assert_allclose(numbers.shares[kind], experiment.best_window(kernels, 2), rtol=1e-5)
    shown = np.asarray(numbers.features[kind])
    assert shown.shape == (experiment.SHOWN, 4, 4)
    np.testing.assert_allclose(shown[3], kernels[3] / abs(kernels[3]).max(), atol=1e-3)


def test_dropout_is_between_the_hidden_layer_and_the_decoder():
    x = np.random.default_rng(1).uniform(size=(400, 16)).astype(np.float32)
    variables = drawn(16)

    @jax.jit
    def call(rate, key):
        network = experiment.AutoEncoder(rate)
        return network.apply(variables, x, train=True, rngs={"dropout": key}), network.apply(variables, x, train=False)

    (hidden, logits), (same, expected) = call(0.5, jax.random.key(0))
    np.testing.assert_array_equal(hidden, same)
    # Each unit is kept or not: the logit's variance is the sum of (unit times weight)^2, its mean that without dropout.
    kernel = variables["params"]["decoder"]["kernel"]
    deviation = np.sqrt(np.asarray(hidden, float) ** 2 @ np.asarray(kernel, float) ** 2)
    scores = (np.asarray(logits, float) - expected) / deviation
    assert abs(scores.mean()) < 4 / np.sqrt(scores.size / 16)
    assert np.mean(scores**2) == pytest.approx(1, abs=4 * np.sqrt(2 / 400))
    (_, logits), (_, expected) = call(0.0, jax.random.key(0))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_training_lowers_the_error(monkeypatch):
    monkeypatch.setattr(experiment, "DIGITS", experiment.DIGITS._replace(images=200, steps=100))
    numbers = experiment.numbers(Settings())
    assert numbers.data == "200 images of digits"
    assert max(numbers.errors.values()) < 0.7  # the mean image leaves 1
    assert len(experiment.draw(numbers).axes) == 3


@pytest.mark.parametrize(
    ("local", "sparse", "few", "holds"),
    [(0.5, 0.2, 0.4, True), (0.35, 0.2, 0.4, False), (0.5, 0.4, 0.4, False), (0.5, 0.2, 0.7, False)],
)
def test_the_claim_is_of_local_features_and_sparse_activations(local, sparse, few, holds):
    kinds = list(experiment.RATES)
    numbers = experiment.Numbers(
        "some", 3, {}, dict(zip(kinds, [(0.3,), (local,)])), dict(zip(kinds, [(0.6,), (sparse,)])),
        dict(zip(kinds, (0.8, few))), dict.fromkeys(kinds, 0.1),
    )  # fmt: skip
    assert experiment.claim(numbers).holds == holds
    assert experiment.claim(dataclasses.replace(numbers, shares=dict.fromkeys(kinds, (0.3,)))).holds is False


@pytest.mark.slow
def test_the_claim_holds_for_another_seed(tmp_path):
    assert helpers.claim_holds("dropout-features", tmp_path)
