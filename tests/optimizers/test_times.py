"""Epochs, batches and updates: nothing is lost at an epoch's end, and no time is rounded to nothing."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import config
from deepjax.errors import InputError
from deepjax.optimizers import Times, make_optimizer


@pytest.mark.parametrize(("steps", "accumulate"), [(1, 1), (5, 1), (5, 2), (5, 4), (5, 5), (6, 3)])
def test_updates_and_batches_are_counted_as_by_hand(steps, accumulate):
    times, update, before, sizes = Times(3, steps, accumulate), 0, [], []
    for _ in range(3):
        waiting = 0
        for batch in range(steps):
            before.append(update)
            waiting += 1
            if waiting == accumulate or batch == steps - 1:
                assert times.first_batch(update) == len(before) - waiting
                sizes.append(waiting)
                update, waiting = update + 1, 0
    assert [times.updates_before(step) for step in range(3 * steps)] == before
    assert [times.batches(number) for number in range(update)] == sizes
    assert (times.total, times.updates_per_epoch) == (update, update // 3)


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "updates"), [(0, 7, 0), (1e-3, 7, 1), (0.4, 1, 1), (0.7, 10, 7), (2.01, 10, 21), (3, 1, 3)]
)
def test_times_are_rounded_up(epochs, per_epoch, updates):
    assert Times(10, per_epoch).updates(epochs) == updates


def test_the_last_update_of_an_epoch_is_the_mean_of_the_batches_left():
    gradients = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    transform = make_optimizer(config.Optimizer("sgd", accumulate=3), 1.0, epochs=2, steps_per_epoch=5)

    def step(carry, gradient):
        params, state = carry
        updates, state = transform.update({"kernel": gradient}, state, {"kernel": params})
        return (params + updates["kernel"], state), params + updates["kernel"]

    start = np.zeros(4, np.float32)
    run = jax.jit(lambda: jax.lax.scan(step, (start, transform.init({"kernel": start})), gradients)[1])
    sums = np.cumsum([gradients[a:b].mean(0) for a, b in ((0, 3), (3, 5), (5, 8), (8, 10))], axis=0)
    expected = np.concatenate([[0 * sums[0]] * 2, [sums[0]] * 2, [sums[1]] * 3, [sums[2]] * 2, [sums[3]]])
    assert_allclose(run(), -expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accumulate": 4}, "optimizer.accumulate 4 is more than the 3 batches of an epoch; set .* 3 or less"),
        ({"lookahead": 7}, "optimizer.lookahead 7 is more than the 6 updates of the run"),
        ({"groups": {"head/*": {"frozen_until": 1.9}}}, "frozen_until 1.9 is within the last update of the run"),
    ],
)
def test_what_would_never_act_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(config.Optimizer(**fields), 0.1, epochs=2, steps_per_epoch=3)
