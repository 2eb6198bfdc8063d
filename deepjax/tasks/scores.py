"""How good predictions are: scores of each class, calibration, R2 of numbers. Pure functions of NumPy arrays."""

from typing import NamedTuple

import numpy as np

BINS = 15  # of the calibration error, as in Guo et al. 2017


class ClassScores(NamedTuple):
    """Scores of each class, f64[classes] in [0, 1]; NaN where a score is 0 / 0."""

    examples: np.ndarray
    """i64[classes]: number of examples of the class."""
    precision: np.ndarray
    """Of the examples that were assigned to the class, the fraction that belongs to it."""
    recall: np.ndarray
    """Of the examples of the class, the fraction that was assigned to it; 1 - recall is the error of the class."""
    f1: np.ndarray
    """Harmonic mean of precision and recall: 2 hits / (examples + assigned)."""


def class_scores(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> ClassScores:
    """Return the scores of each class. Time and memory are linear in the number of classes.

    Args:
      labels: int [N].
      predicted: int [N].
      num_classes: number of classes.

    >>> scores = class_scores(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 3)
    >>> scores.precision.tolist(), scores.recall.round(2).tolist(), scores.f1.tolist()
    ([1.0, 0.5, nan], [0.67, 1.0, nan], [0.8, 0.6666666666666666, nan])
    """
    examples, assigned = (np.bincount(rows, minlength=num_classes) for rows in (labels, predicted))
    hits = np.bincount(labels[labels == predicted], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return ClassScores(examples, hits / assigned, hits / examples, 2 * hits / (examples + assigned))


def calibration_error(confidences: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: Guo et al. 2017, equation 3.

    Predictions are sorted into bins of equal width by their confidence. The error is the mean over all predictions of
    the difference between the accuracy and the mean confidence of their bin.

    Args:
      confidences: float [N] in [0, 1], the probability of the predicted class.
      correct: bool [N].
      bins: number of bins.

    >>> round(calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False])), 3)
    0.15
    """
    confidences = np.asarray(confidences, np.float64)
    which = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)  # bin m is ((m - 1) / bins, m / bins]
    gaps = np.bincount(which, weights=correct - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


def r2_score(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Return R2, the coefficient of determination: 1 - sum (target - prediction)^2 / sum (target - mean target)^2.

    1 is a perfect prediction, 0 that of the mean of these targets. If all targets are equal, R2 is 1 for perfect
    predictions and 0 for others, as in scikit-learn.

    Args:
      targets: float [N].
      predictions: float [N].

    >>> r2_score(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))
    0.5
    """
    targets, predictions = (np.asarray(each, np.float64) for each in (targets, predictions))
    errors, total = np.square(targets - predictions).sum(), np.square(targets - targets.mean()).sum()
    return float(1 - errors / total) if total else float(errors == 0)
