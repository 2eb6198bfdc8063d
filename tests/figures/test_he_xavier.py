"""He against Xavier: the weights that are compared, the choice of the rate, and what the claim needs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax import zoo
from deepjax.figures import he_xavier as experiment


@pytest.mark.slow
def test_the_claim_holds_for_another_seed(tmp_path):
    assert helpers.claim_holds("he-xavier", tmp_path)


def test_hes_weights_are_root_2_times_xaviers():
    def draw(init):
        network = zoo.create("mlp", depth=3, width=8, init=init, num_classes=10)
        variables = jax.jit(partial(network.init, train=False))(jax.random.key(0), jnp.ones((1, 8)))
        return variables["params"]["first"]["kernel"]

    np.testing.assert_allclose(np.divide(*map(draw, experiment.INITS)), np.sqrt(2), rtol=1e-5)


def test_the_rate_is_that_of_the_lowest_last_error():
    errors = np.array([[[0.4, 0.3], [0.4, 0.5]], [[0.9, 0.2], [0.9, 0.4]]])
    run = experiment._best(errors)
    assert (run.rate, run.steps) == (experiment.RATES[1], 2 * experiment.EVERY)
    assert run.errors == ((0.9, 0.2), (0.9, 0.4))
    assert experiment._best(errors[:1] + 0.5).steps is None


def made_up(he_22, xavier_22, he_30, xavier_30, steps):
    def run(error, steps=None):
        return experiment.Run(0.002, ((0.9, error), (0.9, error)), steps)

    runs = {"22": (run(he_22, 100), run(xavier_22, steps)), "30": (run(he_30), run(xavier_30))}
    return experiment.Numbers({depth: dict(zip(experiment.INITS, each)) for depth, each in runs.items()})


@pytest.mark.parametrize(
    ("case", "holds"),
    [
        ((0.1, 0.3, 0.2, 0.9, 300), True),
        ((0.1, 0.3, 0.2, 0.9, 150), False),  # not much later
        ((0.1, 0.3, 0.2, 0.6, 300), False),  # Xavier's learns at 30 layers
        ((0.1, 0.3, 0.6, 0.9, 300), False),  # He's does not
        ((0.1, 0.6, 0.2, 0.9, None), True),  # slowly, but it learns
        ((0.1, 0.8, 0.2, 0.9, None), False),  # Xavier's does not learn at 22 layers
    ],
)
def test_the_claim_needs_all_four(case, holds):
    assert experiment.claim(made_up(*case)).holds == holds
    assert len(experiment.draw(made_up(*case)).axes) == 2
