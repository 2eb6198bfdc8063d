"""A config whose loss is not finite: the failed step, the operation, and what the numbers were before."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax.config import Config, Data, Devices, Optimizer
from deepjax.errors import InputError, TrainingFailed
from deepjax.training import first_non_finite

SPIRALS = Config(
    data=Data(name="spirals"),
    model="mlp",
    model_options={"depth": 2, "width": 8},
    optimizer=Optimizer(name="sgd", learning_rate=0.01),
    devices=Devices(count=1),
    batch_size=100,
    epochs=3,
)


def with_rate(rate, **changes):
    return dataclasses.replace(SPIRALS, optimizer=Optimizer(name="sgd", learning_rate=rate), **changes)


def test_finite_steps_give_nothing_and_write_nothing(tmp_path):
    assert first_non_finite(with_rate(0.01, workdir=str(tmp_path / "run")), steps=5) is None
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="steps 0 must be at least 1"):
        first_non_finite(SPIRALS, steps=0)


def test_a_rate_that_is_too_high_is_named_from_the_growth_before(tmp_path):
    """The failed run and the hunt, from its checkpoint or from the start, stop at the same step."""
    config = with_rate(1e25, workdir=str(tmp_path / "run"))
    found = first_non_finite(config)
    with pytest.raises(TrainingFailed, match="deepjax doctor --nan") as error:
        helpers.train(config, tmp_path / "run", checkpoint_every=1)
    assert f"at step {found.step.step} " in str(error.value)
    assert found.grew
    assert "learning rate 1e+25 is too high" in found.remedy
    assert found.finding.overflow
    assert [one.step for one in found.history] == list(range(1, found.step.step))
    assert all(map(math.isfinite, found.history[-1]))
    assert found.step.largest > 1e20 > found.history[0].largest
    assert "largest parameter" in str(found)
    lines = []
    again = first_non_finite(dataclasses.replace(config, checkpoint_every=1), log=lines.append)
    assert again.step.step == found.step.step
    assert str(again.finding) == str(found.finding)
    assert any("of the unfinished run in" in line for line in lines)


class Logarithms(nn.Module):
    """Logarithms of the outputs of ReLUs: not finite where one is 0."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="first")(x.reshape(len(x), -1)))
        return nn.Dense(2, name="head")(jnp.log(x))


def test_the_operation_in_a_model_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(64, 3)).astype(np.float32), "y": np.arange(64) % 2}
    arrays = {f"{name}_{split}": value for name, value in arrays.items() for split in ("train", "test")}
    config = dataclasses.replace(Config(devices=Devices(count=1), batch_size=16, epochs=2), workdir=str(tmp_path))
    found = first_non_finite(config, model=Logarithms(), data=arrays)
    assert (found.step.step, found.finding.primitive, found.finding.layer) == (1, "log", "")
    assert (found.finding.direction, found.finding.operands[0].value) == ("forward", 0)
    assert "test_non_finite.py" in found.finding.source
    assert not found.grew
    assert found.remedy == found.finding.remedy
