"""Lesions: swaps are permutations, whole networks give the usual error, and the claim."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import lesions as experiment
from deepjax.figures.dense_units import DenseUnits
from deepjax.figures.small_runs import Examples


def test_swaps_are_permutations_and_one_moves_two():
    for swaps in (1, 5):
        order = np.asarray(experiment.swapped(jax.random.key(swaps), 6, swaps))
        assert sorted(order) == list(range(6))
        assert swaps > 1 or (order != np.arange(6)).sum() == 2


def test_lesions_of_a_network_against_its_units_by_hand():
    network, x = DenseUnits(2, width=5), jax.random.normal(jax.random.key(1), (40, 6))
    variables = jax.jit(lambda: network.init(jax.random.key(0), x, train=False))()

    @jax.jit
    def labels(gates):
        logits: Any = network.apply(variables, x, train=False, gates=gates)
        return logits.argmax(-1)

    whole = labels(np.ones(2))
    measure = jax.jit(
        lambda: experiment.lesions(network, variables, Examples(x, whole), jax.random.key(2), jax.random.key(3))
    )
    one, many, shuffled = measure()
    expected = [(labels(np.array(gates)) != whole).mean() for gates in ([0.0, 1], [1.0, 0])]
    np.testing.assert_allclose(one, expected, atol=1e-6)
    assert many[0] == 0
    np.testing.assert_allclose(many[2], (labels(np.zeros(2)) != whole).mean(), atol=1e-6)
    assert shuffled[1] == 0  # of two units, two swaps restore the order


def test_the_claim_compares_both_networks():
    numbers = experiment.Numbers({"residual": 0.03, "plain": 0.06}, {"residual": (0.06,), "plain": (0.9,)}, {}, {})
    assert experiment.claim(numbers).holds
    assert not experiment.claim(dataclasses.replace(numbers, one={"residual": (0.3,), "plain": (0.9,)})).holds
    assert not experiment.claim(dataclasses.replace(numbers, one={"residual": (0.06,), "plain": (0.3,)})).holds


@pytest.mark.slow
def test_the_claim_holds_for_another_seed():
    assert experiment.claim(experiment.numbers(Settings(1))).holds
