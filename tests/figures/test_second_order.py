"""Newton goes to the saddle, its relatives do not."""

import dataclasses

import pytest

from deepjax.figures import Settings
from deepjax.figures import second_order as experiment


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_claim_holds_for_other_seeds(seed):
    numbers = experiment.numbers(Settings(seed))
    assert experiment.claim(numbers).holds
    assert numbers.paths["saddle"]["Newton"][-1] == pytest.approx((0, 0), abs=1e-3)
    assert numbers.paths["Rosenbrock"]["BFGS"][-1] == pytest.approx((1, 1), abs=1e-3)
    worse = dataclasses.replace(numbers, at_minimum=numbers.at_minimum | {"BFGS": 0.5})
    assert not experiment.claim(worse).holds
