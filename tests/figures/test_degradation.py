"""Degradation: the claim on given errors, the depths, and the claim of another seed."""

import dataclasses

import pytest

from deepjax.figures import Settings
from deepjax.figures import degradation as experiment


def test_the_claim_needs_both_sets_and_both_kinds():
    plain, residual = (0.0, 0.6), (0.0, 0.01)
    errors = {"plain": plain, "residual": residual}
    numbers = experiment.Numbers((8, 38), errors, errors)
    assert experiment.claim(numbers).holds
    for part in ("training", "test"):  # degradation of the test error alone would be overfitting
        for change in ({"plain": residual}, {"residual": plain}):
            assert not experiment.claim(dataclasses.replace(numbers, **{part: errors | change})).holds


def test_depths_are_layers_with_weights():
    networks, depths = experiment._networks(False)
    assert depths == (8, 20, 38)
    assert [2 * network.units + 2 for network in networks["plain"]] == list(depths)
    full, depths = experiment._networks(True)
    assert depths == (20, 32, 44, 56)
    assert list(full) == list(experiment.NAMES)


@pytest.mark.slow
def test_the_claim_holds_for_another_seed():
    assert experiment.claim(experiment.numbers(Settings(1))).holds
