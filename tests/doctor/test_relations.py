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
        score = relations.agreement(relations.by_ridge(relations.features(inputs), y), y)
        assert (abs(score) < 4) if shuffled else (score > 4)


def test_neighbors_see_groups():
    group = RNG.integers(0, 4, 200)
    x, y = np.eye(4)[group] + 0.1 * RNG.normal(size=(200, 4)), np.eye(4)[[2, 0, 3, 1]][group]
    assert relations.agreement(relations.by_neighbors(x, y), y) > 4
    assert abs(relations.agreement(relations.by_neighbors(x, RNG.permutation(y)), y)) < 4


@pytest.mark.parametrize(
    ("targets", "outputs", "shape"),
    [
        (RNG.integers(0, 3, 20), (20, 3), (20, 1, 3)),
        (RNG.integers(0, 3, 20), (20, 5), (20, 1, 3)),  # classes that no target has
        (RNG.integers(0, 2, 20), (20,), (20, 1, 1)),
        (RNG.integers(0, 2, 20), (20, 2), (20, 1, 2)),
        (RNG.normal(size=20), (20, 1), (20, 1, 1)),
        (RNG.integers(0, 3, (20, 32, 32)), (20, 32, 32, 3), (20, relations.PLACES, 3)),
        (RNG.integers(0, 2, (20, 8, 8)), (20, 8, 8, 1), (20, 8, 8)),
        (RNG.normal(size=(20, 3)), (20, 2), None),
        (RNG.integers(0, 3, (20, 7)), (20, 3), None),
    ],
)
def test_predictions_meet_their_targets(targets, outputs, shape):
    y, places = relations.columns(targets, describe_targets(targets))
    pair = relations.paired(RNG.normal(size=outputs), y, places)
    assert (pair and tuple(each.shape for each in pair)) == (shape and (shape, shape))
