"""The relation between inputs and targets."""

import numpy as np
import pytest

from deepjax.doctor import relations
from deepjax.doctor.facts import describe_targets

RNG = np.random.default_rng(0)


def test_agreement_is_counted_in_the_standard_deviations_of_random_pairs():
    p, y = RNG.normal(size=(2, 40, 6))
    y += 0.2 * p
    drawn = np.array([(p * y[RNG.permutation(40)]).sum() for _ in range(20000)])
    expected = ((p * y).sum() - drawn.mean()) / drawn.std()
    # The mean of the draws has an error of drawn.std() / sqrt(20000), their deviation one of a part in sqrt(40000).
    tolerance = 4 * (20000**-0.5 + 40000**-0.5 * abs(expected))
    assert relations.agreement(p, y) == pytest.approx(expected, abs=tolerance)


def test_agreement_of_what_is_constant_is_zero():
    assert relations.agreement(np.ones((9, 2)), RNG.normal(size=(9, 2))) == 0


@pytest.mark.parametrize("predictor", [relations.neighbors, relations.ridge])
@pytest.mark.parametrize("width", [1, 5])
def test_agreement_of_predictors_is_counted_in_the_standard_deviations_of_random_orders(predictor, width):
    x, y = RNG.normal(size=(120, 6)), RNG.normal(size=(120, width))
    weights = predictor(x)
    drawn = np.array([relations.agreement_of_smoother(weights, RNG.permutation(y)) for _ in range(2000)])
    assert abs(drawn.mean()) < 4 * drawn.std() / 2000**0.5
    # The kurtosis of the statistic is at most about 5 here, so the error of its deviation is drawn.std() / sqrt(2000).
    assert drawn.std() == pytest.approx(1, abs=4 * 2000**-0.5 + 0.05)


def _masks(x):
    return (x[..., 0] > 0).astype(np.int32)


IMAGES = RNG.normal(size=(200, 8, 8, 2)).astype(np.float32)
TOKENS = RNG.integers(0, 5, (200, 6))
TARGETS = {
    "classes": (IMAGES, _masks(IMAGES)[:, 0, 0] + 2 * _masks(IMAGES)[:, 0, 1]),
    "binary": (IMAGES, _masks(IMAGES)[:, 0, 0]),
    "number": (IMAGES, IMAGES[:, 0, 0].sum(-1)),
    "image": (IMAGES, IMAGES),
    "mask": (IMAGES, _masks(IMAGES)),
    "classes of pixels": (IMAGES, _masks(IMAGES) + (IMAGES[..., 1] > 0)),
    "words": (TOKENS, (TOKENS == 3).sum(1)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_linear_relation_is_seen_until_the_targets_are_shuffled(name):
    inputs, targets = TARGETS[name]
    for shuffled in (False, True):
        t = RNG.permutation(targets) if shuffled else targets
        y, _ = relations.columns(t, describe_targets(t))
        weights = [relations.ridge(x) for x in relations.features(inputs)]
        score = max(relations.agreement_of_smoother(each, y) for each in weights)
        assert (abs(score) < 4) if shuffled else (score > 4)


def test_neighbors_see_groups():
    group = RNG.integers(0, 4, 200)
    x, y = np.eye(4)[group] + 0.1 * RNG.normal(size=(200, 4)), np.eye(4)[[2, 0, 3, 1]][group]
    assert relations.agreement_of_smoother(relations.neighbors(x), y) > 4
    assert abs(relations.agreement_of_smoother(relations.neighbors(x), RNG.permutation(y))) < 4


def test_numbers_that_are_integers_keep_their_places():
    x = RNG.integers(0, 5, (300, 6))
    y, _ = relations.columns(x[:, 0] > x[:, 1], describe_targets((x[:, 0] > x[:, 1]).astype(int)))
    flat, counted = relations.features({"x": x})
    assert relations.agreement_of_smoother(relations.ridge(flat), y) > 4
    assert counted.shape == (300, 5)


def test_inputs_that_are_not_finite_show_no_relation():
    x = np.full((100, 3), np.nan)
    y = RNG.normal(size=(100, 1))
    for predictor in (relations.neighbors, relations.ridge):
        assert abs(relations.agreement_of_smoother(predictor(relations.features(x)[0]), y)) < 4


def test_many_pixels_are_a_sample():
    t = RNG.integers(0, 2, (70, 64, 64))
    y, places = relations.columns(t, describe_targets(t))
    assert y.shape == (70, relations.PLACES, 1)
    assert (places[0], places[-1]) == (0, 64 * 64 - 1)


@pytest.mark.parametrize(
    ("targets", "outputs", "shape"),
    [
        (RNG.integers(0, 3, 20), (20, 3), (20, 1, 3)),
        (RNG.integers(0, 3, 20), (20, 5), (20, 1, 3)),  # classes that no target has
        (RNG.integers(0, 2, 20), (20,), (20, 1, 1)),
        (RNG.integers(0, 2, 20), (20, 2), (20, 1, 2)),
        (RNG.normal(size=20), (20, 1), (20, 1, 1)),
        (RNG.integers(0, 3, (20, 32, 32)), (20, 32, 32, 3), (20, relations.PLACES, 3)),
        (RNG.integers(0, 2, (20, 8, 8)), (20, 8, 8, 1), (20, 64, 1)),
        (RNG.integers(0, 2, (20, 4)), (20, 4), (20, 1, 4)),
        (RNG.integers(0, 3, (20, 7)), (20, 7, 3), (20, 7, 3)),
        (np.eye(3)[RNG.integers(0, 3, 20)], (20, 3), (20, 1, 3)),
        (RNG.normal(size=(20, 1000)), (20, 1000), (20, relations.PLACES, 1)),
        (RNG.normal(size=(20, 1)), (20, 2), None),  # mean and variance
        (RNG.normal(size=(20, 3)), (20, 2), None),
        (RNG.integers(0, 3, (20, 7)), (20, 3), None),
    ],
)
def test_predictions_meet_their_targets(targets, outputs, shape):
    facts = describe_targets(targets)
    y, places = relations.columns(targets, facts)
    pair = relations.paired(RNG.normal(size=outputs), y, places, facts)
    assert (pair and tuple(each.shape for each in pair)) == (shape and (shape, shape))


def test_logarithms_of_zero_are_predictions_of_classes():
    targets = RNG.integers(0, 3, 60)
    facts = describe_targets(targets)
    y, places = relations.columns(targets, facts)
    with np.errstate(divide="ignore"):
        pair = relations.paired(np.log(np.eye(3)[targets]), y, places, facts)
    assert pair is not None
    assert relations.agreement(*pair) > 4
