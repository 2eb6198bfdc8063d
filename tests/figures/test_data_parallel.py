"""Data parallel: the lecture's shapes on two devices, and the claim."""

import dataclasses

from deepjax.figures import Settings
from deepjax.figures import data_parallel as experiment


def test_shapes_are_the_lectures_and_the_claim_can_fail(monkeypatch):
    monkeypatch.setattr(experiment, "COUNTS", (1, 2))
    numbers = experiment.numbers(Settings(1))
    assert numbers.shapes[1] == ((50, 10),)
    assert numbers.shapes[2] == ((25, 10), (25, 10))
    assert experiment.claim(numbers).holds
    assert not experiment.claim(dataclasses.replace(numbers, difference=numbers.difference | {2: 1e-3})).holds
    unequal = numbers.shapes | {2: ((24, 10), (26, 10))}
    assert not experiment.claim(dataclasses.replace(numbers, shapes=unequal)).holds
