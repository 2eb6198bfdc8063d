"""More epochs for a finished run: the same numbers as of a run that had them from the start."""

import json
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from deepjax import training
from deepjax.config import Config, Data, Devices, Optimizer, Schedule
from deepjax.errors import InputError
from deepjax.runs.checkpoint import Checkpoints

CONFIG = Config(
    data=Data(name="xor"),
    model="mlp",
    model_options={"width": 8},
    optimizer=Optimizer("adam", learning_rate=0.01),
    schedule=Schedule("exponential", factor=0.7),
    devices=Devices(count=1),
    epochs=2,
    batch_size=100,
    log_every=1,
)


def lines(folder):
    """metrics.jsonl without times."""
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def newest(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.manager.restore(checkpoints.steps[-1])["state"]
    checkpoints.close()
    return jax.tree.map(np.asarray, state)


def test_a_finished_run_goes_on_when_more_epochs_are_asked_of_it(tmp_path):
    first = training.train(replace(CONFIG, workdir=str(tmp_path / "run")))
    again = training.train(replace(CONFIG, workdir=str(tmp_path / "run")))
    assert first == again
    longer = training.train(replace(CONFIG, workdir=str(tmp_path / "run"), epochs=4))
    at_once = training.train(replace(CONFIG, workdir=str(tmp_path / "at_once"), epochs=4))
    assert lines(tmp_path / "run") == lines(tmp_path / "at_once")
    assert (longer["epochs"], longer["test_loss"]) == (4, at_once["test_loss"])
    chex.assert_trees_all_equal(newest(tmp_path / "run"), newest(tmp_path / "at_once"))
    with pytest.raises(InputError, match="epochs 4 there, 2 here"):
        training.train(replace(CONFIG, workdir=str(tmp_path / "run")))
