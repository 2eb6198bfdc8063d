"""LSUV's figure: variances against NumPy, one start for each initialization, and the claim."""

import dataclasses
from operator import itemgetter

import jax
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import lsuv as experiment
from helpers import random_arrays


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def test_variances_are_those_of_each_layer_before_the_activation(monkeypatch):
    monkeypatch.setattr(experiment, "DEPTH", 4)
    network = experiment._network("elu", "xavier", 6)
    (x,) = random_arrays(0, (40, 5))
    variables = jax.tree.map(
        lambda leaf: leaf[0], experiment._starts(network, "xavier", jax.random.split(jax.random.key(0), 2), x)
    )
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), variables["params"])
    kernels = [params["first"]["kernel"], *params["hidden"]["unit"]["dense"]["kernel"], params["head"]["kernel"]]
    outputs = [x @ kernels[0]]
    for kernel in kernels[1:]:
        outputs.append(elu(outputs[-1]) @ kernel)
    found = experiment._variances(network, variables, x)
    np.testing.assert_allclose(found, [each.var() for each in outputs], rtol=1e-5)


def test_lsuv_replaces_the_weights_by_ones_of_variance_1(monkeypatch):
    monkeypatch.setattr(experiment, "DEPTH", 4)
    network = experiment._network("relu", "lsuv", 6)
    (x,) = random_arrays(0, (40, 5))
    starts = experiment._starts(network, "lsuv", jax.random.split(jax.random.key(0), 2), x)
    for i in range(2):
        found = experiment._variances(network, jax.tree.map(itemgetter(i), starts), x)
        np.testing.assert_allclose(found, np.ones(4), rtol=1e-5)
    kernels = starts["params"]["first"]["kernel"]
    assert abs(kernels[0] - kernels[1]).max() > 0.1


def test_the_claim_needs_each_of_its_parts():
    variances = {"relu": {"xavier": (1.0, 1e-8), "he": (1.0, 0.5)}, "elu": {"xavier": (1.0, 0.1), "he": (1.0, 9.0)}}
    losses = {
        "relu": {"xavier": (2.3,), "he": (1.2,), "lsuv": (0.9,)},
        "elu": {"xavier": (0.5,), "he": (0.4,), "lsuv": (0.1,)},
    }
    numbers = experiment.Numbers({name: each | {"lsuv": (1.0, 1.0)} for name, each in variances.items()}, {}, losses)
    assert experiment.claim(numbers).holds
    for field, name, init, value in (
        ("variances", "elu", "lsuv", (1.0, 1.1)),
        ("variances", "relu", "xavier", (1.0, 1e-3)),
        ("variances", "elu", "he", (1.0, 2.0)),
        ("losses", "relu", "xavier", (1.0,)),
        ("losses", "relu", "lsuv", (1.3,)),
        ("losses", "elu", "lsuv", (0.3,)),
        ("losses", "elu", "lsuv", (np.nan,)),
    ):
        old = getattr(numbers, field)
        changed = old | {name: old[name] | {init: value}}
        assert not experiment.claim(dataclasses.replace(numbers, **{field: changed})).holds


@pytest.mark.slow
def test_the_claim_holds_for_another_seed_and_two_networks_at_one_rate(monkeypatch):
    monkeypatch.setattr(experiment, "NETS", 2)
    monkeypatch.setattr(experiment, "RATES", (0.001,))
    assert experiment.claim(experiment.numbers(Settings(1))).holds
