"""Learning rates: the sharpness against NumPy, and the claim."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import learning_rate as experiment


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_the_claim_holds_for_other_seeds(seed):
    assert experiment.claim(experiment.numbers(Settings(seed))).holds


def test_the_sharpness_is_the_largest_eigenvalue():
    factor = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    matrix = factor @ factor.T

    def loss(params):
        x = jnp.concatenate([params["a"], params["b"]])
        return x @ matrix @ x / 2

    found = experiment.largest_eigenvalue(loss, {"a": jnp.ones(2), "b": jnp.zeros(3)})
    np.testing.assert_allclose(found, np.linalg.eigvalsh(matrix.astype(float))[-1], rtol=1e-3)


def test_descent_diverges_exactly_above_two_over_sharpness():
    def loss(x):
        return 4 * x[0] ** 2 / 2 + x[1] ** 2 / 2

    sweep = experiment._sweep(loss, jnp.ones(2), 4.0, 100)
    assert pytest.approx(sweep.largest) == 2 ** (-1 / 16)
    rates = 2 / 4 * experiment.RATES[: np.searchsorted(experiment.RATES, 1.2)]
    wanted = 2 * (1 - 4 * rates) ** 200 + (1 - rates) ** 200 / 2
    np.testing.assert_allclose(sweep.after[: len(rates)], wanted, rtol=1e-2, atol=1e-10)
    assert sweep.after[-1] is None
