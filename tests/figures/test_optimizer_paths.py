"""Optimizer paths: the batch paths against the lecture's formulas in float64, and the claim."""

import dataclasses

import numpy as np
import pytest

from deepjax import cli
from deepjax.figures import Settings
from deepjax.figures import optimizer_paths as experiment


@pytest.fixture(scope="module")
def numbers():
    return experiment.numbers(Settings(1))


def gradient(point):
    x, y = point
    return np.array([-x * (1 - x**2) / 2, 13 * y])


def by_hand(name, steps):
    """Return the path of the lecture's formulas; of Adam with bias correction."""
    point, a, b = np.array(experiment.START), np.zeros(2), np.zeros(2)
    path = [point]
    for t in range(1, steps + 1):
        g = gradient(point)
        if name in ("gradient descent", "momentum"):
            a = (0.9 if name == "momentum" else 0) * a - 0.14 * g
            point = point + a
        elif name == "RMSprop":
            b = 0.9 * b + 0.1 * g**2
            point = point - 0.14 * g / (1e-8 + np.sqrt(b))
        else:
            a, b = 0.9 * a + 0.1 * g, 0.999 * b + 0.001 * g**2
            point = point - 0.14 * (a / (1 - 0.9**t)) / (1e-8 + np.sqrt(b / (1 - 0.999**t)))
        path.append(point)
    return path


@pytest.mark.parametrize("name", experiment.METHODS)
def test_paths_are_the_lectures_formulas(name, numbers):
    np.testing.assert_allclose(numbers.batch[name], by_hand(name, experiment.SHOWN), rtol=1e-3, atol=2e-4)


def test_the_claim_holds_for_another_seed_and_can_fail(numbers):
    assert experiment.claim(numbers).holds
    assert not experiment.claim(dataclasses.replace(numbers, left=numbers.left | {"Adam": 30})).holds
    assert not experiment.claim(dataclasses.replace(numbers, cosines=numbers.cosines | {"RMSprop": 0.6})).holds


def test_cosines_of_a_square_and_of_a_line():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    assert experiment._cosine(square) == pytest.approx(0)
    assert experiment._cosine(np.array([[0, 0], [1, 1], [3, 3]])) == pytest.approx(1)


def test_the_animation_is_written_as_gif(numbers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment, "numbers", lambda settings: numbers)
    monkeypatch.setattr(experiment, "SHOWN", 2)
    assert cli.main(["figure", "optimizer-paths", "--out", str(tmp_path)]) == 0
    assert ".png, .svg and .gif" in capsys.readouterr().out
    assert (tmp_path / "optimizer-paths.gif").read_bytes()[:4] == b"GIF8"
