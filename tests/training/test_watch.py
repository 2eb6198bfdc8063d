"""Watching a run: its result stays the same, what is wrong is shown once, and what cannot learn is stopped."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax import data
from deepjax.config import Augment, Config, Data, Devices, Optimizer
from deepjax.doctor import watching
from deepjax.doctor.rows import Row
from deepjax.errors import Stopped, TrainingFailed
from deepjax.training import setup
from deepjax.training.progress import Display
from deepjax.training.watch import Watch

CONFIG = Config(  # 14 steps: 2 epochs of 7 batches, of which the last has 4 examples
    model="mlp",
    model_options={"depth": 3, "width": 6, "dropout": 0.2},
    data=Data(validation=0.2),
    optimizer=Optimizer("adam", learning_rate=0.02),
    devices=Devices(count=1),
    epochs=2,
    batch_size=12,
    log_every=1,
    keep=9,
)


def arrays():
    """Features of three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(95) % 3
    x = rng.normal(size=(95, 4)).astype(np.float32) + np.eye(3, 4, dtype=np.float32)[y]
    return {"x_train": x, "y_train": y, "x_test": x[:20], "y_test": y[:20]}


def watched(folder):
    return [json.loads(line) for line in (folder / "watch.jsonl").read_text(encoding="utf-8").splitlines()]


class Biased(nn.Module):
    """ReLUs with this bias at the start."""

    bias: float

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = nn.relu(nn.Dense(8, name=f"hidden{i}", bias_init=nn.initializers.constant(self.bias))(x))
        return nn.Dense(3, name="head", kernel_init=nn.initializers.he_normal())(x)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch") / "run"
    helpers.train(CONFIG, folder, arrays=arrays(), watch=3)
    return folder


def check_same(folder, expected):
    chex.assert_trees_all_equal(helpers.newest_state(folder), helpers.newest_state(expected))
    assert helpers.records(folder) == helpers.records(expected)


def test_a_healthy_run_has_no_finding_and_the_same_bits(tmp_path, whole):
    helpers.train(CONFIG, tmp_path, arrays=arrays())
    check_same(tmp_path, whole)
    assert not (tmp_path / "watch.jsonl").exists()
    lines = watched(whole)
    assert [line["step"] for line in lines] == [0, 3, 6, 9, 12]
    assert all(line["findings"] == [] and line["stuck"] == "" for line in lines)
    assert not (whole / "doctor.html").exists()


@pytest.mark.slow
def test_any_number_of_steps_in_a_call_gives_the_same_bits_and_lines(tmp_path, whole):
    helpers.train(CONFIG, tmp_path, arrays=arrays(), watch=3, steps_per_call=5)
    check_same(tmp_path, whole)
    assert watched(tmp_path) == watched(whole)


def test_a_resumed_run_has_the_lines_of_one_that_was_not_stopped(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 3)
        with pytest.raises(Stopped):
            helpers.train(CONFIG, tmp_path, arrays=arrays(), watch=3)
    lines = watched(tmp_path)
    assert [line["step"] for line in lines] == [0]
    with (tmp_path / "watch.jsonl").open("a", encoding="utf-8") as file:  # as a process that was killed leaves them
        file.write("".join(json.dumps(lines[0] | {"step": step}) + "\n" for step in (3, 6)) + '{"kind": "wat')
    helpers.train(CONFIG, tmp_path, arrays=arrays(), watch=3)
    assert watched(tmp_path) == watched(whole)
    check_same(tmp_path, whole)


def test_a_run_that_is_dead_is_stopped_with_its_report(tmp_path):
    lines, folder = [], tmp_path / "run"
    config = dataclasses.replace(CONFIG, model="", model_options={}, watch=1)
    with pytest.raises(TrainingFailed) as error:
        helpers.train(config, folder, module=Biased(-20.0), arrays=arrays(), log=lines.append, epochs=20)
    text = str(error.value)
    assert "\n" not in text
    assert "dead_relus" in text
    assert "all units of hidden0 are dead" in text
    assert str(folder / "doctor.html") in text
    page = (folder / "doctor.html").read_text(encoding="utf-8")
    assert "The run cannot learn: all units of hidden0 are dead" in page
    assert "<svg" in page
    dead = [line for line in lines if "dead_relus in hidden0" in line]
    assert len(dead) == 1  # shown once
    assert dead[0].startswith("warning: step 0: ")
    assert len(watched(folder)) > watching.WATCHES
    assert watched(folder)[0]["dead"][:2] == [1.0, 1.0]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_has_a_report_too(tmp_path):
    lines, optimizer = [], Optimizer("sgd", learning_rate=1e25)
    with pytest.raises(TrainingFailed, match=r"the loss is .*doctor.html") as error:
        helpers.train(CONFIG, tmp_path, arrays=arrays(), log=lines.append, optimizer=optimizer, watch=1)
    assert "\n" not in str(error.value)
    assert (tmp_path / "doctor.html").exists()
    assert any("non_finite" in line or "exploding" in line for line in lines)


CASES = {
    "two devices": {"devices": Devices(count=2)},
    "pmap, several steps in a call": {"devices": Devices("pmap", count=2), "steps_per_call": 3},
    "batches from the host, Mixup, smoothing": {
        "data": Data(validation=0.2, placement="host", augment=Augment(mixup=0.4)),
        "label_smoothing": 0.1,
    },
    "sam": {"optimizer": Optimizer("sgd", learning_rate=0.02, sam=0.05)},
    "half precision, ema": {"dtype": "bfloat16", "ema": 0.9},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_what_is_measured_is_the_coming_batch_without_padding(tmp_path, changes):
    """The loss is that of the model by hand, on the first batch and on the last one of an epoch."""
    config = dataclasses.replace(CONFIG, model_options=CONFIG.model_options | {"dropout": 0.0}, **changes, watch=6)
    exp = setup.setup(config, setup.check(config), None, dataset=data.as_dataset(arrays()))
    state = exp.initial_state(print)
    watch = Watch(exp, 0, tmp_path, Display(print))
    batches = list(exp.loader.epoch(0))
    for step in (0, 6):
        rows = batches[step]
        placed = rows
        if config.steps_per_call > 1:
            placed = jax.tree.map(lambda x: np.stack([x] * 3), rows)
        axis = int(config.steps_per_call > 1)
        watch(state, exp.mesh.to_devices(placed, axis=axis), step)
        batch = exp.loader.fetch(exp.loader.data, rows)
        inputs, labels = exp.task.prepare({name: np.asarray(x)[rows["mask"]] for name, x in batch.items()})
        logits = exp.model.apply({"params": state.params}, inputs, train=True, mutable=["batch_stats"])[0]
        logits = np.asarray(logits, np.float64)
        share = np.eye(3)[np.asarray(labels)] * (1 - config.label_smoothing) + config.label_smoothing / 3
        losses = np.log(np.exp(logits).sum(1)) - (share * logits).sum(1)
        places = np.resize(np.arange(len(losses)), config.batch_size)
        tolerance = 2e-2 if config.dtype == "bfloat16" else 1e-5
        assert watched(tmp_path)[-1]["loss"] == pytest.approx(losses[places].mean(), rel=tolerance)
    watch.close()


def row(**changes):
    fields: dict[str, Any] = {field.name: 0.0 for field in dataclasses.fields(Row)}
    fields |= {
        "layer": "l",
        "kind": "Dense",
        "activation": "relu",
        "std": 1.0,
        "gradient_rms": 1.0,
        "parameters": ("l",),
    }
    return Row(**fields | changes)


def codes(*rows):
    measured: Any = SimpleNamespace(rows=(*rows, row()))
    return [each.code for each in watching.findings(measured)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row()] * 8, []),
        ([row(dead=0.95), row(dead=0.5)], ["dead_relus"]),
        ([row(dead=0.95, activation="none")], []),
        ([row(saturated=0.6, activation="tanh")], ["saturated_activations"]),
        ([row(std=5.0**i) for i in range(8)], ["exploding_activations"]),
        ([row(std=0.2**i) for i in range(8)], ["vanishing_activations"]),
        ([row()] * 7 + [row(std=1e-5)], []),  # the last layer of a residual branch that began with zeros
        ([row(gradient_rms=0.1**i) for i in range(8)], ["exploding_gradients"]),
        ([row(gradient_rms=10.0**i) for i in range(8)], ["vanishing_gradients"]),
        ([row(gradient_rms=0.0)] * 7 + [row()], ["vanishing_gradients"]),
        ([row(non_finite=jnp.nan, gradient_non_finite=jnp.nan)], []),  # numbers that do not exist
        ([row(), row(non_finite=0.5, std=jnp.nan)], ["non_finite"]),
    ],
)
def test_findings(rows, expected):
    assert codes(*rows) == expected


def test_a_run_is_hopeless_only_if_it_was_stuck_for_long_and_never_better():
    def records(losses, stuck="dead"):
        return [{"loss": loss, "stuck": stuck} for loss in losses]

    flat = records([1.0] * (watching.WATCHES + 1))
    assert "1 at first, 1 on average now" in watching.hopeless(flat)
    assert not watching.hopeless(flat[1:])  # not long enough
    assert not watching.hopeless(records([1.0] + [0.99] * watching.WATCHES))  # it has fallen
    assert not watching.hopeless([*flat[:-1], flat[-1] | {"stuck": ""}])
    assert not watching.hopeless([*flat[:-1], flat[-1] | {"loss": None}])
