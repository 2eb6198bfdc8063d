"""The table of DropConnect: its statistics against SciPy's, its networks at a very small size."""

from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from deepjax import zoo
from deepjax.figures import dropconnect as experiment
from deepjax.figures.small_runs import Examples

ERRORS: Any = {block: dict.fromkeys(experiment.DROPS, (0.04, 0.05, 0.06, 0.05, 0.05)) for block in experiment.BLOCKS}


def made(vote):
    votes: Any = {block: dict.fromkeys(experiment.DROPS, vote) for block in experiment.BLOCKS}
    return experiment.Numbers("600 images", ERRORS, votes)


def test_the_claim_needs_better_votes():
    assert experiment.claim(made(0.03)).holds
    assert not experiment.claim(made(0.05)).holds
    assert "no difference from none" in experiment.claim(made(0.03)).text
    worse: Any = ERRORS | {
        experiment.BLOCKS[1]: ERRORS[experiment.BLOCKS[1]] | {"dropout": (0.08, 0.09, 0.1, 0.09, 0.09)}
    }
    numbers = experiment.Numbers("600 images", worse, made(0.03).votes)
    assert experiment.claim(numbers).text.endswith("dropout is worse than none with crop")


def test_intervals_are_students():
    errors = ERRORS["crop"]["none"]
    low, high = stats.t.interval(0.95, 4, np.mean(errors), stats.sem(errors))
    mean, half = experiment.interval(errors)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert len(experiment.table(made(0.03))[1]) == 9


@pytest.mark.slow
def test_networks_of_a_row_differ_and_give_probabilities():
    rng = np.random.default_rng(0)
    few = Examples(*map(jax.numpy.asarray, (np.float32(rng.normal(size=(32, 16, 16, 1))), np.arange(32) % 10)))
    augment = experiment.augmentations(28)[experiment.BLOCKS[2]]
    assert (augment.crop, augment.rotate, augment.scale) == (2, 15.0, 0.15)
    network = experiment.Augmented(zoo.create("mnist_cnn", width=1, drop="dropconnect"), augment)
    found = np.asarray(experiment._probabilities(network, few, few, jax.random.split(jax.random.key(0), 2), 1))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert found.shape == (2, 32, 10)
    assert abs(found[0] - found[1]).max() > 1e-3
