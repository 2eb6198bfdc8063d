"""More epochs for a finished run: the same numbers as of a run that had them from the start."""

import chex
import pytest

import helpers
from deepjax.config import Config, Data, Devices, Optimizer, Schedule
from deepjax.errors import InputError

CONFIG = Config(
    data=Data(name="xor"),
    model="mlp",
    model_options={"depth": 2, "width": 8},
    optimizer=Optimizer("adam", learning_rate=0.01),
    schedule=Schedule("exponential", factor=0.7),
    devices=Devices(count=1),
    epochs=2,
    batch_size=100,
    log_every=1,
)


def test_a_finished_run_goes_on_when_more_epochs_are_asked_of_it(tmp_path):
    run, at_once = tmp_path / "run", tmp_path / "at_once"
    first = helpers.train(CONFIG, run)
    assert helpers.train(CONFIG, run) == first
    longer, expected = (helpers.train(CONFIG, folder, epochs=4) for folder in (run, at_once))
    assert helpers.records(run) == helpers.records(at_once)
    assert (longer["epochs"], longer["test_loss"]) == (4, expected["test_loss"])
    chex.assert_trees_all_equal(helpers.newest_state(run), helpers.newest_state(at_once))
    with pytest.raises(InputError, match="epochs 4 there, 2 here"):
        helpers.train(CONFIG, run)
