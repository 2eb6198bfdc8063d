"""From epochs to updates: the only conversion. A config has epochs, schedules and Optax count updates."""

import math
from typing import NamedTuple

from deepjax.errors import InputError


class Times(NamedTuple):
    """The batches and the updates of a run.

    An update takes `accumulate` batches. The last one of an epoch takes those that are left, so that each epoch ends
    with an update, and no batch is lost.

    >>> times = Times(epochs=2, steps_per_epoch=5, accumulate=2)
    >>> [times.updates_before(step) for step in range(11)]
    [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6]
    >>> [times.batches(update) for update in range(6)]
    [2, 2, 1, 2, 2, 1]
    """

    epochs: float
    steps_per_epoch: int
    accumulate: int = 1

    @property
    def updates_per_epoch(self):
        """Updates in an epoch, at least 1."""
        return -(-self.steps_per_epoch // self.accumulate)

    @property
    def total(self):
        """Updates in the run."""
        return self.updates(self.epochs)

    def updates(self, epochs):
        """Convert a time in epochs to updates, rounded up: no time above 0 is none.

        >>> Times(10, 4).updates(0.1), Times(10, 10).updates(0.7)
        (1, 7)
        """
        return math.ceil(round(epochs * self.updates_per_epoch, 6))  # 0.7 * 10 is above 7 in floating point

    def updates_before(self, step):
        """Return how many updates the first `step` batches make; `step` may be traced."""
        epoch, batch = step // self.steps_per_epoch, step % self.steps_per_epoch
        return epoch * self.updates_per_epoch + batch // self.accumulate

    def first_batch(self, update):
        """Return the number of batches before this update's first; `update` may be traced."""
        epoch, number = update // self.updates_per_epoch, update % self.updates_per_epoch
        return epoch * self.steps_per_epoch + number * self.accumulate

    def batches(self, update):
        """Return how many batches an update takes; `update` may be traced."""
        return self.first_batch(update + 1) - self.first_batch(update)


def make_times(optimizer, epochs, steps_per_epoch):
    """Return the Times of a run with `config.Optimizer`.

    Raise InputError if an update would take more batches than an epoch has.
    """
    if optimizer.accumulate > steps_per_epoch:
        raise InputError(
            f"optimizer.accumulate {optimizer.accumulate} is more than the {steps_per_epoch} batches of an epoch; set "
            f"optimizer.accumulate {steps_per_epoch} or less, or a smaller batch_size"
        )
    return Times(epochs, steps_per_epoch, optimizer.accumulate)
