"""Batch sizes and norms: the learning rate and the updates of each batch size, and what the claim needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import group_norm_batch_size as experiment
from deepjax.figures.small_runs import Curves, Examples


@pytest.mark.slow
def test_the_claim_holds_for_another_seed():
    assert experiment.claim(experiment.numbers(Settings(1))).holds


@pytest.mark.parametrize(
    ("batch", "group", "holds"),
    [((0.03, 0.07), (0.04, 0.05), True), ((0.03, 0.05), (0.04, 0.04), False), ((0.03, 0.07), (0.04, 0.06), False)],
)
def test_the_claim_compares_the_ends(batch, group, holds):
    errors = [[(first,) * 2, *[(0.0, 1.0)] * 3, (last,) * 2] for first, last in (batch, group)]
    numbers = experiment.Numbers(dict(zip(experiment.NORMS, errors)))
    assert experiment.claim(numbers).holds == holds
    assert [row[0] for row in experiment.table(numbers)[1]] == ["32", "16", "8", "4", "2"]


def test_epochs_are_equal_and_the_rate_is_proportional_to_the_batch_size(monkeypatch):
    plans = {}

    def train(network, variables, examples, test, key, *, optimizer, steps, batch_size, every):
        update, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init({"w": jnp.ones(1)}))
        plans[batch_size] = steps, -float(update["w"][0])
        return Curves(jnp.zeros(0), jnp.zeros(1), {})

    monkeypatch.setattr(experiment, "train", train)
    examples = Examples(jnp.zeros((64, 4)), jnp.zeros(64, int))
    with jax.disable_jit():
        for size in experiment.BATCH_SIZES:
            experiment._errors(None, jnp.zeros(1), size, examples, examples, jax.random.split(jax.random.key(0), 1))
    assert {size: steps * size for size, (steps, _) in plans.items()} == dict.fromkeys(experiment.BATCH_SIZES, 640)
    rates = [rate / size for size, (_, rate) in plans.items()]
    np.testing.assert_allclose(rates, 0.1 / 32, rtol=1e-6)
