"""Error, loss and predictions of a model, or of several together, on a set."""

from collections.abc import Iterable, Iterator
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
        return Evaluation(*self._rows(variables, ("label", "loss", "classes")))

    def log_probabilities(self, variables):
        """(labels, f32[examples, classes]): the logarithms of all classes' probabilities."""
        return self._rows(variables, ("label", "log_probabilities"))

    def _rows(self, variables, names):
        """What the step gives by these names, for all examples."""
        pending, done = None, []
        for rows in map(self.place, self.loader.epoch(0)):
            values = self.step(variables, self.loader.data, rows)
            if pending is not None:  # fetched a step late, so that the device never waits for the host
                done.append(jax.device_get(pending))
            pending = {name: values[name] for name in ("mask", *names)}
        done.append(jax.device_get(pending))
        keep = np.concatenate([value["mask"] for value in done])
        return tuple(np.concatenate([value[name] for value in done])[keep] for name in names)


def of_probabilities(labels, log_probabilities) -> Evaluation:
    """The Evaluation of log probabilities [examples, classes]. Of equally likely classes the first is taken.

    >>> of_probabilities(np.array([1, 0]), np.log([[0.25, 0.75], [0.4, 0.6]])).error
    0.5
    """
    count = min(5, log_probabilities.shape[-1])
    likeliest = np.argsort(-log_probabilities, axis=-1, kind="stable")[:, :count]
    return Evaluation(labels, -log_probabilities[np.arange(len(labels)), labels], likeliest.astype(np.int32))


def together(log_probabilities: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Log of the mean of the first, the first two, ... of several models' probabilities. Does not underflow.

    >>> [np.exp(mean).round(3).tolist() for mean in together([np.log([0.5, 0.5]), np.log([0.25, 0.75])])]
    [[0.5, 0.5], [0.375, 0.625]]
    """
    total = None
    for count, one in enumerate(log_probabilities, 1):
        total = one if total is None else np.logaddexp(total, one)
        yield total - np.log(count).astype(total.dtype)


def ensemble(evaluator: Evaluator, members) -> tuple[list[Evaluation], list[Evaluation]]:
    """Evaluations of several variables: each alone, and the means of the first, the first two, ... probabilities."""
    answers = [evaluator.log_probabilities(variables) for variables in members]
    labels = answers[0][0]
    alone = [of_probabilities(labels, one) for _, one in answers]
    return alone, [of_probabilities(labels, mean) for mean in together(one for _, one in answers)]
