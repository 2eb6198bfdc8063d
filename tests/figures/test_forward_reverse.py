"""Operations of Jacobians: counts against those by hand, and the claim."""

import jax
import jax.numpy as jnp
import pytest

from deepjax.figures import Settings
from deepjax.figures import forward_reverse as experiment


@pytest.mark.slow
def test_the_claim_holds():
    assert experiment.claim(experiment.numbers(Settings())).holds


def test_operations_of_a_product_are_two_for_each_weight():
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((30,), (30, 50)))
    assert experiment.operations(jnp.matmul, x, kernel) == pytest.approx(2 * 30 * 50, rel=0.05)


def test_forward_mode_pushes_a_tangent_per_input_and_reverse_mode_pulls_one_per_output():
    function, forward, reverse = experiment.costs_of(8, 2)
    weights = 8 * 64 + 2 * 64 * 64 + 64 * 2
    assert function == pytest.approx(2 * weights, rel=0.05)
    assert forward / function == pytest.approx(1 + 8, rel=0.2)
    assert reverse / function == pytest.approx(1 + 2, rel=0.2)
