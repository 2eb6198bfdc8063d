"""The coordinate check of a config."""

import dataclasses

import pytest

from deepjax.config import Config, Data, Devices, Optimizer, Schedule
from deepjax.errors import InputError
from deepjax.training import coordinate_check

SPIRALS = Config(
    data=Data(name="spirals"),
    model="mlp",
    model_options={"depth": 3, "width": 8},
    optimizer=Optimizer(name="adam", learning_rate=1e-3),
    schedule=Schedule("cosine", warmup=2.0),
    devices=Devices(count=2),
    batch_size=100,
    epochs=3,
)


def test_the_standard_parametrization_is_not_stable_in_width():
    lines = []
    found = coordinate_check(SPIRALS, "width", (16, 64, 256), steps=2, seeds=2, log=lines.append)
    assert [row.layer for row in found.rows] == ["first", "hidden/unit/dense", "hidden/unit", "output"]
    assert found.rows[-1].change_slope.word == "grows"
    assert (found.sizes, found.steps, found.seeds, found.stable) == ((16, 64, 256), 2, 2, False)
    assert lines[0] == "mlp, width 16: 2 steps for each of 2 seeds"


def test_depths_of_scanned_units_on_devices_by_pmap():
    config = dataclasses.replace(SPIRALS, devices=Devices(count=2, strategy="pmap"))
    found = coordinate_check(config, "depth", (3, 6), steps=2, seeds=1)
    assert [row.layer for row in found.rows] == ["first", "hidden/unit/dense", "hidden/unit", "output"]
    assert found.rows[0].activation[0] == pytest.approx(
        found.rows[0].activation[1]
    )  # which does not depend on the depth
    assert all(change > 0 for row in found.rows for change in row.change)


def test_options_that_cannot_work():
    with pytest.raises(InputError, match="model lenet5 has no option width"):
        coordinate_check(dataclasses.replace(SPIRALS, model="lenet5", model_options={}), "width", (1, 2))
    with pytest.raises(InputError, match="depth"):
        coordinate_check(dataclasses.replace(SPIRALS, model="cifar_resnet", model_options={}), "depth", (20, 21))
