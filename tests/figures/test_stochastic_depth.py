"""Stochastic depth: which units are computed, against given survivals, and the claim."""

import dataclasses

import jax
import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.figures import Settings
from deepjax.figures import stochastic_depth as experiment
from helpers import random_arrays


def test_the_expected_number_is_three_quarters():
    """Of 54 units, 40.25: "about 40" in the paper's section 3."""
    survivals = experiment.survivals_of(54, 0.5)
    assert sum(survivals) == pytest.approx(40.25)
    assert survivals[-1] == 0.5
    assert np.diff(survivals) == pytest.approx(np.full(53, -0.5 / 54))


def test_units_are_counted_if_they_are_computed(monkeypatch):
    monkeypatch.setattr(experiment, "UNITS", 3)
    monkeypatch.setattr(experiment, "WIDTH", 2)
    monkeypatch.setattr(experiment, "survivals_of", lambda units, last: [1.0, 0.0, last])
    (x,) = random_arrays(0, (2, 4, 4, 1))
    counts = experiment.computed_units(experiment._network(0.3, False), x, jax.random.key(0))
    assert set(counts.tolist()) == {1, 2}
    assert abs(counts.mean() - 1.3) < 4 * np.sqrt(0.3 * 0.7 / experiment.DRAWS)


def test_in_full_it_is_the_paper_s_network():
    network = experiment._network(0.5, True)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), np.ones((1, 32, 32, 3)), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 1_727_962  # 1.7 M in He et al. 2015
    assert experiment.FULL_STEPS == 500 * (45000 // 128)


def test_the_claim_needs_the_count_and_the_error():
    errors = {"full network": ((0.1, 0.02), (0.1, 0.04)), "stochastic depth": ((0.2, 0.05), (0.2, 0.03))}
    numbers = experiment.Numbers(15, 11.3, 11.0, 0.1, 20, dict.fromkeys(errors, 1.0), errors)
    assert experiment.claim(numbers).holds
    assert "+1.0 points" in experiment.claim(numbers).text
    worse = errors | {"stochastic depth": ((0.2, 0.07), (0.2, 0.06))}
    for change in ({"computed": 11.5}, {"computed": 10.5}, {"errors": worse}):
        assert not experiment.claim(dataclasses.replace(numbers, **change)).holds


def test_a_folder_is_read_only_in_full():
    with pytest.raises(InputError, match="data_dir folder is read with full only"):
        experiment.numbers(Settings(data_dir="folder"))


@pytest.mark.slow
def test_the_claim_holds_for_another_seed_and_fewer_units(monkeypatch):
    monkeypatch.setattr(experiment, "UNITS", 4)
    assert experiment.claim(experiment.numbers(Settings(1))).holds
