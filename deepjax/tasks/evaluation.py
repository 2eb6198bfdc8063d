"""What is known of a classifier's answers: to a data set, and to one image file."""

import math
from typing import NamedTuple

import numpy as np

from deepjax.tasks.scores import calibration_error, class_scores


class Evaluation(NamedTuple):
    """Predictions for a data set, one row per example."""

    labels: np.ndarray  # i64[examples]
    losses: np.ndarray  # f32[examples]: cross entropy in nats, or that of config.loss
    classes: np.ndarray  # i32[examples, k]: the k = min(5, classes) most probable, best first
    confidences: np.ndarray | None = None  # f32[examples]: probability of the best class; None: of scores

    @property
    def error(self):
        """Fraction of examples whose most probable class is wrong."""
        return float(np.mean(self.classes[:, 0] != self.labels))

    @property
    def loss(self):
        """Mean cross entropy in nats, or mean of the loss that config.loss names."""
        return float(np.mean(self.losses, dtype=np.float64))

    @property
    def metrics(self):
        """The numbers that a run records."""
        return {"error": self.error, "loss": self.loss}

    @property
    def above_chance(self):
        """Whether the answers are better than the label frequencies alone, by four standard deviations.

        Either fewer are wrong than if the most frequent class were the answer to all, or, of probabilities, the losses
        are lower than those of the frequencies as probabilities, example by example.
        """
        counts, examples = np.bincount(self.labels), len(self.labels)
        chance = 1 - counts.max() / examples
        fewer_errors = self.error < chance - 4 * math.sqrt(chance * (1 - chance) / examples)
        if self.confidences is None:
            return bool(fewer_errors)
        gains = -np.log(counts[self.labels] / examples) - self.losses
        return bool(fewer_errors or gains.mean() > 4 * gains.std() / math.sqrt(examples))

    @property
    def calibration_error(self):
        """Expected calibration error (`scores.calibration_error`); NaN if the confidences are not known."""
        if self.confidences is None:
            return math.nan
        return calibration_error(self.confidences, self.classes[:, 0] == self.labels)

    def scores(self, num_classes):
        """`scores.ClassScores` of the predictions."""
        return class_scores(self.labels, self.classes[:, 0], num_classes)

    @property
    def top5_error(self):
        """Fraction of examples whose class is not among the five most probable."""
        return float(np.mean(~(self.classes == self.labels[:, None]).any(-1)))

    def class_counts(self, num_classes):
        """Return (examples, wrong predictions) of each class, two arrays i64[classes]."""
        wrong = self.labels[self.classes[:, 0] != self.labels]
        return tuple(np.bincount(labels, minlength=num_classes) for labels in (self.labels, wrong))

    def class_errors(self, num_classes):
        """Return the error of each class, f64[classes]; NaN for a class without examples."""
        examples, wrong = self.class_counts(num_classes)
        return np.where(examples > 0, wrong / np.maximum(examples, 1), np.nan)

    def confusion(self, num_classes, shown=None):
        """Return counts i64[true class, predicted class], of all classes or of the classes `shown`, in that order.

        An example whose class or prediction is not in `shown` is not counted.
        """
        shown = np.arange(num_classes) if shown is None else np.asarray(shown)
        place = np.full(num_classes, -1)
        place[shown] = np.arange(len(shown))
        pairs = place[[self.labels, self.classes[:, 0]]]
        counts = np.zeros((len(shown), len(shown)), int)
        np.add.at(counts, tuple(pairs[:, (pairs >= 0).all(0)]), 1)
        return counts


class Prediction(NamedTuple):
    """The most probable classes of one image file, or why the file could not be read."""

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()  # of these classes, or scores of a `ScoredPrediction`
    problem: str = ""

    word = "probability"  # for such a number

    @property
    def texts(self):
        """The classes with their probabilities in words, for a table."""
        return [f"{name} {100 * p:.1f} %" for name, p in zip(self.classes, self.probabilities, strict=True)]

    @property
    def record(self):
        """What JSON holds of it."""
        if self.problem:
            return {"image": self.path, "error": self.problem}
        likely = zip(self.classes, self.probabilities, strict=True)
        return {"image": self.path, "classes": [{"class": name, self.word: p} for name, p in likely]}

    @property
    def row(self):
        """One row of a table, as {column: value}."""
        row: dict = {"image": self.path}
        for i, (name, p) in enumerate(zip(self.classes, self.probabilities, strict=True), 1):
            row |= {f"class_{i}": name, f"{self.word}_{i}": p}
        return row | {"error": self.problem}


class ScoredPrediction(Prediction):
    """The classes of one example with the highest scores."""

    word = "score"

    @property
    def texts(self):
        """The classes with their scores in words, for a table."""
        return [f"{name} {score:.4g}" for name, score in zip(self.classes, self.probabilities, strict=True)]
