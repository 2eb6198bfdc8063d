"""Stop and resume gives the same bits, for everything that a config can ask of a run."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax import data, init_from_data
from deepjax.config import Augment, Config, Data, Devices, Optimizer, Schedule
from deepjax.errors import Stopped
from deepjax.training import setup

TINY = Config(  # 9 steps: 3 epochs of 3 batches, of which the last has 16 examples
    data=Data(validation=0.2),
    model="mlp",
    model_options={"depth": 2, "width": 6, "norm": "batch"},
    optimizer=Optimizer("adam", learning_rate=0.02),
    devices=Devices(count=1),
    epochs=3,
    batch_size=32,
    log_every=1,
    keep=9,
)
CASES = {
    "pmap, ema, accumulation, dropout, label smoothing, checkpoints within epochs": {
        "devices": Devices("pmap", count=2),
        "optimizer": Optimizer("adamw", learning_rate=0.02, weight_decay=0.1, accumulate=2, clip_norm=1.0),
        "schedule": Schedule("cosine", warmup=0.5),
        "model_options": TINY.model_options | {"dropout": 0.2},
        "label_smoothing": 0.1,
        "ema": 0.9,
        "checkpoint_every": 2,
    },
    "stochastic weight averaging, lookahead, one-cycle, Mixup, batches from the host": {
        "optimizer": Optimizer("momentum", lookahead=2),
        "schedule": Schedule("one_cycle"),
        "data": Data(validation=0.2, placement="host", augment=Augment(mixup=0.4)),
        "swa_start": 1,
    },
    "snapshots, half precision, no validation, SAM of prodigy": {
        "optimizer": Optimizer("prodigy", learning_rate=1.0, sam=0.05),
        "schedule": Schedule("warm_restarts", period=1.0),
        "snapshots": 3,
        "data": Data(validation=0.0),
        "dtype": "bfloat16",
    },
    "plateau, thawing, moments kept until the thaw, patience": {
        "optimizer": Optimizer("sgd", learning_rate=0.2, groups={"first*": {"frozen_until": 2.0}}),
        "schedule": Schedule("plateau", patience=0, factor=0.5),
        "freeze_moments": True,
        "patience": 5,
        "best": "error",
    },
}


def arrays(count=100, seed=0):
    """Features of three classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = rng.normal(size=(count, 4)).astype(np.float32) + np.eye(3, 4, dtype=np.float32)[y]
    return {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]}


def without_times(summary):
    return {name: value for name, value in summary.items() if "second" not in name}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_stop_and_resume_gives_the_same_bits(tmp_path, monkeypatch, changes):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    expected = helpers.train(TINY, whole, arrays=arrays(), **changes)
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 4)  # within the second epoch
        with pytest.raises(Stopped, match=r"stopped by SIGTERM at step \d+ of \d+, saved in"):
            helpers.train(TINY, resumed, arrays=arrays(), **changes)
    summary = helpers.train(TINY, resumed, arrays=arrays(), **changes)
    chex.assert_trees_all_equal(helpers.newest_state(resumed), helpers.newest_state(whole))
    assert helpers.records(resumed) == helpers.records(whole)
    assert without_times(summary) == without_times(expected)
    for part in ("averaged", "snapshots"):
        if (whole / part).exists():
            chex.assert_trees_all_equal(helpers.stored(resumed, part), helpers.stored(whole, part))


class Mine(nn.Module):
    """A model of a user's own: no `mask`; its initialization counts how often it is executed."""

    executed = []  # noqa: RUF012

    @nn.compact
    def __call__(self, x, *, train):
        def draw(key, shape, dtype=jnp.float32):
            jax.debug.callback(lambda: self.executed.append(shape))
            return nn.initializers.lecun_normal()(key, shape, dtype)

        x = nn.Dense(6, kernel_init=draw, name="hidden")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(3, name="head")(x)


def test_a_resumed_run_initializes_nothing(tmp_path, monkeypatch):
    """Stopped at an epoch's end, then within the next one; its own module; initialized from data."""
    own = {"module": Mine(), "model_options": {}, "init": "within_layer"}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    Mine.executed.clear()
    helpers.train(TINY, whole, arrays=arrays(), **own)
    jax.effects_barrier()
    assert Mine.executed
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 3)
        with pytest.raises(Stopped):
            helpers.train(TINY, resumed, arrays=arrays(), **own)
    jax.effects_barrier()
    Mine.executed.clear()

    def forbidden(*args, **kwargs):
        raise AssertionError("a resumed run initializes")

    monkeypatch.setattr(setup, "init_state", forbidden)
    monkeypatch.setattr(init_from_data, "within_layer", forbidden)
    monkeypatch.setattr(data.Standardizer, "fit", forbidden)
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 1)
        with pytest.raises(Stopped):
            helpers.train(TINY, resumed, arrays=arrays(), **own)
    helpers.train(TINY, resumed, arrays=arrays(), **own)
    jax.effects_barrier()
    assert not Mine.executed
    chex.assert_trees_all_equal(helpers.newest_state(resumed), helpers.newest_state(whole))
    assert helpers.records(resumed) == helpers.records(whole)


def test_records_after_the_last_checkpoint_of_a_killed_run_are_written_again(tmp_path):
    """As if the process was killed between step 8's checkpoint and the end, while it wrote a record."""
    from deepjax.runs.checkpoint import Checkpoints

    folder = tmp_path / "run"
    helpers.train(TINY, folder, arrays=arrays(), checkpoint_every=4)
    expected, state = helpers.records(folder), helpers.newest_state(folder)
    (folder / "summary.json").unlink()
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.manager.delete(9)
    assert checkpoints.steps[-1] == 8
    checkpoints.close()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 9, "lo')
    helpers.train(TINY, folder, arrays=arrays(), checkpoint_every=4)
    assert helpers.records(folder) == expected
    chex.assert_trees_all_equal(helpers.newest_state(folder), state)
