"""Scores of classes against scikit-learn, calibration against a loop in float64."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from deepjax.tasks.scores import calibration_error, class_scores


@pytest.mark.parametrize("num_classes", [2, 7, 50])
def test_scores_are_scikit_learns(num_classes):
    rng = np.random.default_rng(num_classes)
    labels, predicted = rng.integers(0, num_classes - 1, (2, 300))  # the last class has no examples
    predicted[:150] = labels[:150]
    found = class_scores(labels, predicted, num_classes)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(num_classes), zero_division=np.nan)
    for mine, theirs in zip((found.precision, found.recall, found.f1, found.examples), expected, strict=True):
        np.testing.assert_allclose(mine, theirs)
    assert np.isnan(found.recall[-1])


def test_memory_is_linear_in_the_classes():
    found = class_scores(np.array([0, 10**6 - 1]), np.array([0, 0]), 10**6)
    assert found.f1[0] == pytest.approx(2 / 3)
    assert found.recall[-1] == 0


def test_calibration_error_is_the_mean_gap_of_the_bins():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(size=1000).astype(np.float32)
    confidences[:3] = 0, 1, 1 / 3  # the ends, and a border, which belongs to the bin below
    correct = rng.uniform(size=1000) < confidences**2
    expected = 0.0
    for low, high in zip(np.arange(10) / 10, np.arange(1, 11) / 10):
        inside = (confidences > low) & (confidences <= high) | ((low == 0) & (confidences == 0))
        if inside.any():
            gap = correct[inside].mean() - confidences[inside].astype(np.float64).mean()
            expected += inside.mean() * abs(gap)
    np.testing.assert_allclose(calibration_error(confidences, correct, bins=10), expected)


def test_a_perfectly_calibrated_classifier_has_no_error_beyond_its_noise():
    rng = np.random.default_rng(1)
    confidences = rng.uniform(size=100_000)
    correct = rng.uniform(size=100_000) < confidences
    # Each of 15 bins has about 6,667 predictions, and its gap a standard deviation of at most 0.5 / sqrt(6,667).
    assert calibration_error(confidences, correct) < 0.5 / np.sqrt(6667) * (0.8 + 4 / np.sqrt(15))
    assert calibration_error(confidences**0.5, correct) > 0.1
