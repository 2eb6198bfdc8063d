"""Batch sizes: steps and rates against gradient descent in NumPy, and the claim."""

import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.figures import Settings
from deepjax.figures import minibatch_size as experiment
from deepjax.figures.small_runs import Examples
from helpers import random_arrays


def numbers(**changes):
    """Losses that depend on the rate per image only, but for a divergence of the largest batch's."""
    losses = {
        str(batch): tuple((2.5, 0.1 * batch / rate / 128) for rate in experiment.RATES) for batch in experiment.BATCHES
    }
    losses["256"] = (*losses["256"][:-1], (2.5, np.nan))
    return experiment.Numbers(1024, losses | changes, {batch: (0.1,) * len(experiment.RATES) for batch in losses})


def test_images_are_equal_whatever_the_batch(monkeypatch):
    """With a tiny rate, the loss falls by the rate per image times the images times the square of the gradient."""
    monkeypatch.setattr(experiment, "RATES", (1e-3,))
    monkeypatch.setattr(experiment, "NETS", 1)
    x, classes = random_arrays(0, (64, 5), (64,))
    examples = Examples(jnp.asarray(x), jnp.asarray(classes > 0, jnp.int32))
    falls = {}
    for batch in (4, 16):
        losses, errors = experiment._train(batch, examples, examples, 0)
        assert losses.shape == (1, 1, experiment.EPOCHS + 1)
        assert errors.shape == (1, 1)
        falls[batch] = -np.diff(np.asarray(losses, float)[0, 0])
    assert (falls[4] > 0).all()
    np.testing.assert_allclose(falls[4] / falls[16], 4, rtol=0.1)


def test_rates_of_equal_steps_per_image_are_tried_at_all_batch_sizes():
    assert {experiment.per_image(batch) for batch in experiment.BATCHES} <= set(experiment.RATES)
    assert experiment.ONE_RATE in experiment.RATES


def test_a_loss_that_is_not_finite_is_never_the_best():
    found = numbers()
    assert [experiment.best_rate(found, batch) for batch in (64, 256)] == [2, 1]
    assert experiment.last(found, 256, 2) == np.inf
    assert experiment.claim(found).holds


@pytest.mark.parametrize("batch", ["16", "256"])
def test_the_claim_needs_losses_that_grow_and_equal_ones_at_small_batches(batch):
    assert not experiment.claim(numbers(**{batch: tuple((2.5, 0.03) for _ in experiment.RATES)})).holds


def test_a_folder_is_read_only_in_full():
    with pytest.raises(InputError, match="data_dir folder is read with full only"):
        experiment.numbers(Settings(data_dir="folder"))


@pytest.mark.slow
def test_the_claim_holds_for_another_seed_and_three_batch_sizes(monkeypatch):
    monkeypatch.setattr(experiment, "BATCHES", (4, 64, 256))
    assert experiment.claim(experiment.numbers(Settings(1))).holds
