"""Error, loss and predictions of a model on a set."""

from typing import NamedTuple

import jax
import numpy as np

from deepjax.training.compiled import Compiled


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


class Evaluator:
    """A function variables -> Evaluation on one set; compiled at its first call, which takes `seconds`.

    Args:
      step: jitted (variables, data, rows) -> what `eval_step` gives, from `sharding.parallel_eval`.
      loader: in order, from `deepjax.data.make_loader`.
      place: puts rows where the step wants them.
    """

    def __init__(self, step, loader, place):
        self.step, self.loader, self.place = Compiled(step), loader, place

    @property
    def seconds(self):
        """What compiling took."""
        return self.step.seconds

    def __call__(self, variables):
        """Evaluate; the variables must lie where the step wants them."""
        pending, done = None, []
        for rows in map(self.place, self.loader.epoch(0)):
            values = self.step(variables, self.loader.data, rows)
            if pending is not None:  # fetched a step late, so that the device never waits for the host
                done.append(jax.device_get(pending))
            pending = values
        done.append(jax.device_get(pending))
        keep = np.concatenate([value["mask"] for value in done])
        label, loss, classes = (
            np.concatenate([value[name] for value in done])[keep] for name in ("label", "loss", "classes")
        )
        return Evaluation(label, loss, classes)
