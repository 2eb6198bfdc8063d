"""Several steps in one call of the program: the same bits and records as one by one."""

import dataclasses
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

import helpers
from deepjax import data, optimizers
from deepjax.config import Augment, Config, Data, Devices, Optimizer, Schedule
from deepjax.errors import Stopped, TrainingFailed
from deepjax.training import calls, setup

TINY = Config(  # 14 steps: 2 epochs of 7 batches, of which the last has 4 examples
    data=Data(validation=0.2),
    model="mlp",
    model_options={"depth": 2, "width": 6, "norm": "batch"},
    optimizer=Optimizer("adam", learning_rate=0.02),
    devices=Devices(count=1),
    epochs=2,
    batch_size=12,
    log_every=1,
    keep=9,
)
CASES = {
    "usual": {},
    "two devices, plateau, patience, checkpoints within epochs": {
        "devices": Devices(count=2),
        "schedule": Schedule("plateau", patience=0),
        "patience": 1,
        "checkpoint_every": 2,
    },
    "pmap, ema, accumulation, dropout": {
        "devices": Devices("pmap", count=2),
        "optimizer": Optimizer("adamw", learning_rate=0.02, weight_decay=0.1, accumulate=2, clip_norm=1.0),
        "model_options": TINY.model_options | {"dropout": 0.2},
        "ema": 0.9,
    },
    "batches from the host, Mixup, half precision, averaged weights": {
        "data": Data(validation=0.2, placement="host", augment=Augment(mixup=0.4)),
        "dtype": "bfloat16",
        "swa_start": 1,
    },
    "line search": {"optimizer": Optimizer("lbfgs", learning_rate=1.0, line_search=True)},
}


def arrays():
    """Features of three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(95) % 3
    x = rng.normal(size=(95, 4)).astype(np.float32) + np.eye(3, 4, dtype=np.float32)[y]
    return {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]}


def check_same(folder, expected):
    chex.assert_trees_all_equal(helpers.stored(folder), helpers.stored(expected))
    assert helpers.records(folder) == helpers.records(expected)


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_any_number_of_steps_in_a_call_gives_the_same_bits(tmp_path, monkeypatch, changes):
    whole, three, resumed = tmp_path / "whole", tmp_path / "three", tmp_path / "resumed"
    expected = helpers.train(TINY, whole, arrays=arrays(), **changes)
    summary = helpers.train(TINY, three, arrays=arrays(), **changes, steps_per_call=3)
    check_same(three, whole)
    assert summary["steps"] == expected["steps"] == 14
    assert summary["test_loss"] == expected["test_loss"]
    changes = {"checkpoint_every": 2} | changes
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 4)
        with pytest.raises(Stopped):
            helpers.train(TINY, resumed, arrays=arrays(), **changes, steps_per_call=2)
    helpers.train(TINY, resumed, arrays=arrays(), **changes, steps_per_call=50)
    chex.assert_trees_all_equal(helpers.newest_state(resumed), helpers.newest_state(whole))
    assert helpers.records(resumed) == helpers.records(whole)


def test_a_loss_that_is_not_finite_names_its_step_within_a_call(tmp_path):
    config, texts = dataclasses.replace(TINY, optimizer=Optimizer("sgd", learning_rate=1e25)), []
    for size in (1, 5):
        with pytest.raises(TrainingFailed, match=r"at step [2-4] the loss") as error:
            helpers.train(config, tmp_path / f"run{size}", arrays=arrays(), steps_per_call=size)
        texts.append(str(error.value))
    assert texts[0] == texts[1]
    assert helpers.records(tmp_path / "run5") == helpers.records(tmp_path / "run1")


def plan_calls(**fields):
    """The numbers of steps in the calls of the second of two epochs of 10 steps, from its step 1 on."""
    loader = SimpleNamespace(steps=10, epoch=lambda epoch, first: ({"index": np.array([i])} for i in range(first, 10)))
    mesh = SimpleNamespace(step=lambda *_, **__: None, to_devices=lambda rows, **_: rows)
    config = dataclasses.replace(TINY, **fields)
    experiment = SimpleNamespace(config=config, loader=loader, mesh=mesh, step=None, pure_step=None, data="data")
    found = list(calls.Calls(experiment, 0, "", None).epoch(1, 1))
    if config.steps_per_call > 1:
        assert all(whole == ("data", count) for whole, _, count in found)
        indices = [rows["index"][:count, 0].tolist() for _, rows, count in found]
        assert np.concatenate(indices).tolist() == list(range(1, 10))
        assert len({len(rows["index"]) for _, rows, _ in found}) == 1  # so that one program does all
    return [count for *_, count in found]


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, [1] * 9),
        ({"steps_per_call": 4}, [4, 4, 1]),
        ({"steps_per_call": 99}, [9]),
        ({"steps_per_call": 4, "checkpoint_every": 5}, [4, 4, 1]),  # after steps 15 and 20 of the run
        ({"steps_per_call": 4, "checkpoint_every": 3}, [1, 3, 3, 2]),  # after 12, 15, 18
        ({"steps_per_call": 4, "watch": 7}, [3, 4, 2]),  # after step 14
        ({"steps_per_call": 4, "profile": "13:14"}, [1, 2, 4, 2]),  # begins after step 12, ends after 14
    ],
)
def test_a_call_ends_where_the_host_has_something_to_do(fields, counts):
    assert plan_calls(**fields) == counts


def test_the_steps_of_a_profile_are_counted_in_calls(tmp_path):
    lines = []
    helpers.train(TINY, tmp_path / "run", arrays=arrays(), log=lines.append, steps_per_call=4, profile="2:4")
    (start,) = [i for i, line in enumerate(lines) if line.startswith("ms a step")]
    assert any("head" in line for line in lines[start + 1 :])
    assert list((tmp_path / "run").rglob("perfetto_trace.json.gz"))


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_the_state_of_every_optimizer_keeps_its_types_in_the_loop(name):
    config = dataclasses.replace(TINY, optimizer=Optimizer(name, learning_rate=0.02))
    exp = setup.setup(config, setup.check(config), None, dataset=data.as_dataset(arrays()))
    rows = jax.tree.map(lambda x: np.stack([x, x]), next(exp.loader.epoch(0)))
    arguments = exp.abstract_state, (exp.data, np.int32(2)), rows, jax.random.key(0)
    state, metrics = jax.eval_shape(calls.several(exp.pure_step, 2), *arguments)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, exp.abstract_state)
    assert {metric.shape for metric in metrics.values()} == {(2,)}
