"""Looks linear by depth: the networks at initialization, the choice of rates, and the claim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import looks_linear as experiment
from deepjax.figures.small_runs import Examples
from helpers import random_arrays


def examples():
    x, _ = random_arrays(0, (60, 7), (1,))
    return Examples(jnp.asarray(x), jnp.arange(60) % 10)


def test_networks_have_their_depth_and_all_kinds_appear_once():
    networks = experiment._networks(6)
    assert sorted(kind for _, kinds in networks for kind in kinds) == sorted(experiment.KINDS)
    assert networks[0][0].units == 2
    for network, _ in networks[1:]:
        shapes = jax.eval_shape(lambda network=network: network.init(jax.random.key(0), np.ones((1, 7))))["params"]
        inputs = 2 * experiment.WIDTH if network.kind == "CReLU" else experiment.WIDTH
        assert shapes["layers"]["unit"]["dense"]["kernel"].shape == (4, inputs, experiment.WIDTH)


@pytest.mark.parametrize(("kind", "linear"), [("CReLU with LL", True), ("CReLU without LL", False)])
def test_only_ll_makes_a_deep_network_of_crelus_linear(kind, linear):
    network, data = experiment.Deep(30, "CReLU"), examples()
    variables = experiment._start(network, kind, jax.random.key(0), data)
    f, (a, b) = jax.jit(lambda x: network.apply(variables, x)), random_arrays(1, (5, 7), (5, 7))
    difference = abs(f(2 * a - 3 * b) - 2 * f(a) + 3 * f(b)).max()
    assert (difference < 1e-4 * abs(f(a)).max()) == linear


def test_without_ll_a_layer_of_crelus_keeps_the_size_of_the_signal():
    """He's rule counts the doubled features: the mean over kernels is 1, within four standard deviations."""
    network, keys = experiment.Deep(3, "CReLU"), jax.random.split(jax.random.key(0), 200)
    params = jax.vmap(lambda key: network.init(key, np.ones((1, 7)))["params"])(keys)
    kernels = np.asarray(params["layers"]["unit"]["dense"]["kernel"], float)[:, 0]
    (x,) = random_arrays(2, (32,))
    y = np.maximum(np.stack([x, -x], -1), 0).ravel() @ kernels
    ratio = (y**2).mean() / (x**2).mean()
    assert abs(ratio - 1) < 4 * np.sqrt(2 / y.size)


def test_the_best_rate_is_that_of_the_lowest_finite_loss(monkeypatch):
    monkeypatch.setattr(experiment, "_networks", lambda depth: [(None, experiment.KINDS)])
    monkeypatch.setattr(experiment, "_start", lambda *_: None)
    accuracies = np.tile(np.linspace(0.1, 0.5, len(experiment.RATES)), (5, 1))
    losses = np.array([np.roll([0.1, 1.0, 2.0, 3.0, np.inf], k) for k in range(5)])
    monkeypatch.setattr(experiment, "_train", lambda *_: (accuracies, losses))
    found = experiment._best(6, *[None] * 5)
    assert found == [(accuracies[0, k], 0.1, experiment.RATES[k]) for k in range(5)]


def test_the_claim_needs_its_parts():
    values = {"CReLU with LL": (0.96, 0.96), "residual": (0.96, 0.9), "CReLU without LL": (0.9, 0.1)}
    values |= {"ReLU": (0.9, 0.1), "linear": (0.95, 0.95)}
    numbers = experiment.Numbers((6, 198), values, {}, {})
    assert experiment.claim(numbers).holds
    for kind, wrong in (
        ("CReLU with LL", (0.96, 0.84)),
        ("residual", (0.96, 0.5)),
        ("CReLU without LL", (0.9, 0.5)),
        ("ReLU", (0.7, 0.1)),
        ("linear", (0.7, 0.95)),
    ):
        assert not experiment.claim(dataclasses.replace(numbers, accuracies=values | {kind: wrong})).holds


@pytest.mark.slow
def test_the_claim_holds_for_another_seed_and_fewer_depths_and_rates(monkeypatch):
    monkeypatch.setattr(experiment, "DEPTHS", (6, 198))
    monkeypatch.setattr(experiment, "RATES", (0.001, 0.03))
    assert experiment.claim(experiment.numbers(Settings(1))).holds
