"""Linear regions: lines in general position, quadrants told apart by folds, and the claim."""

import numpy as np

from deepjax.figures import Settings
from deepjax.figures import space_folding as experiment


def test_the_claim_holds():
    assert experiment.claim(experiment.numbers(Settings(1))).holds


def test_three_lines_in_general_position_have_the_seven_regions_of_the_bound():
    x, y = experiment.grid(64).T
    assert experiment.count(np.stack([x > 0.05, y > 0.05, x + y > 0.5], 1)) == experiment.bound(3) == 7


def test_one_fold_tells_the_quadrants_apart_and_two_their_quarters():
    points = np.array([[0.25, 0.25], [-0.25, 0.25], [0.75, 0.25], [0.3, 0.3]])
    first, second = (experiment.folds(depth, points) @ (1 << np.arange(4 * depth)) for depth in (1, 2))
    assert len(set(first)) == 2
    assert len(set(second)) == 3
    assert second[0] == second[3]
