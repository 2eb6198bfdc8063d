"""Error, loss and predictions of a model on a set."""

from typing import NamedTuple

import jax
import numpy as np

from deepjax.errors import InputError


class Evaluation(NamedTuple):
    """What a model says of a whole set, row for row."""

    labels: np.ndarray  # i64[examples]
    losses: np.ndarray  # f32[examples], nats
    classes: np.ndarray  # i32[examples, k]: the k = min(5, classes) likeliest, best first

    @property
    def error(self):
        """Fraction of examples whose likeliest class is wrong."""
        return float(np.mean(self.classes[:, 0] != self.labels))

    @property
    def loss(self):
        """Mean cross entropy in nats."""
        return float(np.mean(self.losses, dtype=np.float64))

    @property
    def top5_error(self):
        """Fraction of examples whose class is not among the five likeliest."""
        return float(np.mean(~(self.classes == self.labels[:, None]).any(-1)))

    def confusion(self, num_classes):
        """Counts [true class, predicted class]."""
        counts = np.zeros((num_classes, num_classes), int)
        np.add.at(counts, (self.labels, self.classes[:, 0]), 1)
        return counts

    def class_errors(self, num_classes):
        """Error of each class; NaN for a class without examples."""
        counts = self.confusion(num_classes)
        totals = counts.sum(1)
        return np.where(totals > 0, 1 - np.diag(counts) / np.maximum(totals, 1), np.nan)


def evaluate(step, variables, loader, place):
    """Run an evaluation step over a loader.

    Args:
      step: (variables, data, rows) -> {"loss", "classes", ...} per row, from `sharding.parallel_eval`.
      variables: of the model.
      loader: in order, from `deepjax.data.make_loader`.
      place: puts rows where the step wants them.

    Raises InputError for a set without examples.
    """
    pending, done = None, []
    for rows in loader.epoch(0):
        values = step(variables, loader.data, place(rows))
        if pending is not None:  # fetched a step late, so that the device never waits for the host
            done.append(jax.device_get(pending))
        pending = values
    if pending is None:
        raise InputError("the set to evaluate has no examples")
    done.append(jax.device_get(pending))
    keep = np.concatenate([value["mask"] for value in done])
    label, loss, classes = (
        np.concatenate([value[name] for value in done])[keep] for name in ("label", "loss", "classes")
    )
    return Evaluation(label, loss, classes)
