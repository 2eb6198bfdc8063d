"""Dropout by depth and width: what is trained, and what the claim needs."""

import numpy as np
import pytest

import helpers
from deepjax.figures import Settings
from deepjax.figures import dropout_width as experiment


@pytest.mark.slow
def test_the_claim_holds_for_another_seed(tmp_path):
    assert helpers.claim_holds("dropout-width", tmp_path)


@pytest.mark.parametrize(
    ("settings", "data", "architectures"),
    [
        (Settings(), ("digits", "", 150), ["2 x 128", "3 x 128", "4 x 128"]),
        (Settings(data_dir="folder"), ("mnist", "folder", 1000), ["2 x 128", "3 x 128", "4 x 128"]),
        (
            Settings(data_dir="folder", full=True),
            ("mnist", "folder", None),
            [f"{hidden} x {width}" for hidden in (2, 3, 4) for width in (1024, 2048)],
        ),
    ],
)
def test_data_and_architectures(settings, data, architectures, monkeypatch):
    examples = experiment.load("digits", size=7)
    loaded = []
    monkeypatch.setattr(experiment, "load", lambda *arguments: loaded.append(arguments) or examples)
    monkeypatch.setattr(experiment, "_errors", lambda *_: np.array([[0.3], [0.2]]))
    numbers = experiment.numbers(settings)
    assert loaded == [data]
    assert list(numbers.errors) == architectures
    assert numbers.data == f"7 images of {data[0]}"


@pytest.mark.parametrize(("second", "holds"), [((0.10, 0.099), True), ((0.10, 0.112), False)])
def test_the_claim_is_on_the_mean_over_architectures(second, holds):
    kinds = [((0.10, 0.12), (0.09, 0.11)), ((second[0],) * 2, (second[1],) * 2)]
    numbers = experiment.Numbers("", {name: dict(zip(experiment.DROPOUTS, each)) for name, each in zip("ab", kinds)})
    assert experiment.claim(numbers).holds == holds
    assert len(experiment.draw(numbers).axes[0].patches) == 4
