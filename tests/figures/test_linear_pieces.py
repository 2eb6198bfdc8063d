"""The linear pieces of ReLU networks, against networks of known pieces and the slopes on a fine grid."""

import dataclasses

import numpy as np
import pytest

from deepjax.figures import Settings
from deepjax.figures import linear_pieces as experiment


def test_pieces_of_networks_that_are_known():
    bend = [(np.ones((1, 2)), np.array([-0.25, -0.5])), (np.array([[1.0], [1.0]]), np.zeros(1))]
    np.testing.assert_allclose(experiment.kinks(bend), [0, 0.25, 0.5, 1], rtol=1e-15)
    # Kinks that cancel, or that the next layer does not read, are none of the output's.
    cancel = [(np.ones((1, 2)), np.array([-0.25, -0.25])), (np.array([[1.0], [-1.0]]), np.zeros(1))]
    hidden = [bend[0], (np.zeros((2, 1)), np.ones(1)), (np.ones((1, 1)), np.zeros(1))]
    for layers in (cancel, hidden):
        np.testing.assert_array_equal(experiment.kinks(layers), [0, 1])
        assert experiment.bisected_pieces(layers) == 1


@pytest.mark.parametrize(("width", "depth"), [(3, 1), (8, 2), (12, 4)])
def test_kinks_are_where_the_slope_on_a_grid_changes(width, depth):
    rng = np.random.default_rng(width)
    x = np.linspace(0, 1, 100_001)
    for _ in range(3):
        layers = experiment.random_mlp(rng, width, depth)
        h = x[:, None]
        for kernel, bias in layers[:-1]:
            h = np.maximum(h @ kernel + bias, 0)
        y = (h @ layers[-1][0] + layers[-1][1])[:, 0]
        np.testing.assert_allclose(experiment.evaluate(layers, x)[0], y)
        ends = experiment.kinks(layers)
        assert np.diff(ends).min() > 1e-4  # so that the grid shows each piece
        bent = np.abs(np.diff(y, 2)) > 1e-9 * np.abs(np.diff(y)).max() + 1e-14
        cells = np.floor(ends[1:-1] * 100_000)  # a kink changes the second difference at one or both ends of its cell
        at = np.flatnonzero(bent) + 1
        assert set(at) <= {*cells, *(cells + 1)}
        assert len(np.flatnonzero(np.diff(at, prepend=-9) > 1)) == len(cells)
        assert experiment.bisected_pieces(layers) == len(ends) - 1


def test_the_claim_fails_when_a_bound_is_passed_or_counts_differ(monkeypatch):
    monkeypatch.setattr(experiment, "WIDTHS", (2, 4))
    monkeypatch.setattr(experiment, "DEPTHS", (1, 2))
    numbers = experiment.numbers(Settings(1))
    assert numbers.bounds == ((4, 16), (8, 64))
    assert experiment.claim(numbers).holds
    assert not experiment.claim(dataclasses.replace(numbers, bounds=((1, 1), (1, 1)))).holds
    other = np.asarray(numbers.bisected) + 1
    assert not experiment.claim(dataclasses.replace(numbers, bisected=other)).holds
