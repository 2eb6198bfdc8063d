"""Path lengths: exact shares of paths, the sum of all paths' gradients, deleted units, and the claim."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import path_lengths as experiment
from deepjax.figures.dense_units import DenseUnits

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 6))


def test_the_share_of_short_paths_is_the_binomials():
    exact = sum(math.comb(54, k) for k in range(5, 18)) / 2**54
    assert experiment.share_of_paths(54, 5, 17) == pytest.approx(exact, rel=1e-10)
    assert f"{exact:.4%}" == "0.4537%"


def test_the_gradients_of_all_paths_add_up_to_the_gradient():
    network = DenseUnits(3, width=5)
    variables = jax.jit(lambda: network.init(KEY, X, train=False))()

    def gradient(on_path):
        def total(x):
            y: Any = network.apply(variables, x, train=False, on_path=on_path)
            return (y**2).sum()

        return jax.grad(total)(X)

    paths = jnp.array(list(itertools.product([False, True], repeat=3)))
    summed, whole = jax.jit(lambda: (jax.vmap(gradient)(paths).sum(0), gradient(None)))()
    np.testing.assert_allclose(summed, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("residual", [True, False])
def test_a_unit_whose_gate_is_0_is_deleted(residual):
    network = DenseUnits(3, width=5, residual=residual)
    variables = jax.jit(lambda: network.init(KEY, X, train=False))()
    rest = jax.tree.map(lambda leaf: leaf[np.array([0, 2])], {name: each["stack"] for name, each in variables.items()})
    fewer = {name: each | {"stack": rest[name]} for name, each in variables.items()}
    expected = DenseUnits(2, width=5, residual=residual).apply(fewer, X, train=False)
    found = network.apply(variables, X, train=False, gates=jnp.array([1.0, 0, 1]))
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_claim_holds_for_another_seed_and_can_fail():
    numbers = experiment.numbers(Settings(1))
    assert experiment.claim(numbers).holds
    assert not experiment.claim(dataclasses.replace(numbers, gradient=numbers.paths)).holds
