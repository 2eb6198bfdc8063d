"""A module and arrays of a user's own, in training, resuming, evaluation and prediction."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable

import chex
import flax.linen as nn
import numpy as np
import pytest

import helpers
from deepjax import data, inference
from deepjax.config import Config, Data, Devices, Optimizer
from deepjax.errors import InputError, Stopped

CONFIG = Config(
    optimizer=Optimizer("adam", learning_rate=0.03), devices=Devices(count=1), epochs=4, batch_size=40, log_every=1
)


class Mine(nn.Module):
    """Takes neither `train` nor `mask`."""

    classes: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))


class Other(nn.Module):
    """Called Mine too, with other layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(16, name="first")(x)))


Other.__name__ = "Mine"


def arrays(count=150):
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    x = rng.normal(size=(count, 4)) + 2 * np.eye(3, 4)[y]
    return {"x_train": x[:-30], "y_train": y[:-30], "x_test": x[-30:], "y_test": y[-30:]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    helpers.train(CONFIG, folder, module=Mine(), arrays=arrays())
    return folder


def test_it_learns_and_is_evaluated_by_hand(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["test_error"] < 0.3
    run = inference.load_run(whole, model=Mine())
    assert inference.evaluate_run(run, data=arrays()).metrics == pytest.approx(
        {"error": summary["test_error"], "loss": summary["test_loss"]}
    )
    given = arrays()
    logits = Mine().apply(
        {"params": run.variables["params"]}, run.standardizer.apply(given["x_test"].astype("float32"))
    )
    assert summary["test_error"] == np.mean(np.asarray(logits).argmax(-1) != given["y_test"])


def test_a_dataset_object_and_a_stop_give_the_same_bits(whole, tmp_path, monkeypatch):
    dataset = data.from_arrays(**arrays())
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 5)
        with pytest.raises(Stopped):
            helpers.train(CONFIG, tmp_path, module=Mine(), arrays=dataset)
    helpers.train(CONFIG, tmp_path, module=Mine(), arrays=dataset)
    chex.assert_trees_all_equal(helpers.newest_state(tmp_path), helpers.newest_state(whole))
    assert helpers.records(tmp_path) == helpers.records(whole)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"model_options": {"depth": 3}}, {}, "model_options .* has no effect on model=Mine"),
        ({"dtype": "bfloat16"}, {}, "dtype bfloat16 has no effect"),
        ({"pretrained": "resnet18"}, {}, "pretrained resnet18 has no effect"),
        ({}, {"module": Mine(5)}, r"outputs of shape \(1, 5\) for one example, but the data has 3 classes"),
        ({"batch_size": 500}, {}, "larger than the training set of 108"),
        ({"data": Data(augment=dataclasses.replace(Data().augment, flip=True))}, {}, "needs images"),
        ({}, {"arrays": arrays() | {"y_train": np.zeros(7, int)}}, "y_train"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changes, given, message):
    with pytest.raises(InputError, match=message):
        helpers.train(CONFIG, tmp_path / "run", **{"module": Mine(), "arrays": arrays()} | given, **changes)
    assert not (tmp_path / "run").exists()


class Called(nn.Module):
    """Its call is the function `body`."""

    body: Callable
    auxiliary_weight: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        return self.body(nn.Dense(3)(x), train)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"module": Mine}, r"model=Mine is a class; give a module, such as model=Mine\(\)"),
        ({"module": len}, "is no flax.linen.Module"),
        ({"module": nn.Conv(3, (3, 3))}, r"does not take an input of shape \(1, 4\)"),
        ({"module": nn.BatchNorm()}, "use_running_average"),
        ({"module": nn.Sequential([nn.relu])}, "has no parameters"),
        ({"module": Called(lambda y, train: (y, y) if train else y)}, "1 auxiliary outputs in training"),
        ({"module": Called(lambda y, train: y @ np.ones((7, 3)) if train else y)}, r"an input of shape \(40, 4\)"),
        ({"arrays": {"x_trian": 1}}, "data has the key 'x_trian', which is unknown; did you mean 'x_train'"),
        ({"arrays": {"x_train": np.ones((9, 4))}}, "data has no key 'y_train'"),
        ({"arrays": (np.ones(3), np.ones(3))}, "data is of the type tuple"),
        ({"arrays": arrays() | {"x_train": None}}, "x_train is object"),
        ({"arrays": arrays() | {"x_train": [[1.0], [1.0, 2.0]]}}, "x_train is no array .*; make all rows equally long"),
        ({"arrays": arrays() | {"y_test": [[1], [1, 2]]}}, "y_test is no array"),
    ],
)
def test_a_model_or_data_of_a_wrong_kind_is_one_line_and_writes_nothing(tmp_path, given, message):
    with pytest.raises(InputError, match=message) as caught:
        helpers.train(CONFIG, tmp_path / "run", **{"module": Mine(), "arrays": arrays()} | given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "foo", "data": arrays()}, "split 'foo' is unknown; choose from test, train, validation"),
        ({"average": "weight", "data": arrays()}, "average 'weight' is unknown; did you mean 'weights'"),
        ({"data": arrays()["x_test"]}, "data is of the type ndarray"),
        ({}, r"for a run of train\(..., data=...\), pass evaluate_run\(..., data=...\)"),
    ],
)
def test_evaluation_names_what_is_wrong(whole, options, message):
    with pytest.raises(InputError, match=message):
        inference.evaluate_runs([inference.load_run(whole, model=Mine())], **options)
    with pytest.raises(InputError, match="model=Mine is a class"):
        inference.load_run(whole, model=Mine)


def test_a_run_of_an_own_model_is_no_source_of_pretrained_weights(whole, tmp_path):
    with pytest.raises(InputError, match=r"pretrained .*: the zoo has no model Mine; weights of a module of your own"):
        helpers.train(CONFIG, tmp_path / "run", arrays=arrays(), model="mlp", pretrained=str(whole))
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_own_model_and_own_arrays_needs_them_again(whole, tmp_path):
    with pytest.raises(InputError, match=r"the zoo has no model Mine; pass load_run\(..., model=Mine\(\)\)"):
        inference.load_run(whole)
    run = inference.load_run(whole, model=Mine())
    with pytest.raises(InputError, match="arrays"):
        inference.evaluate_run(run)
    (whole / "summary.json").rename(tmp_path / "summary.json")
    with pytest.raises(InputError, match="has changed since"):
        helpers.train(CONFIG, whole, module=Mine(), arrays=arrays(120))


def test_a_finished_run_that_cannot_go_on_keeps_its_record(tmp_path):
    """The checkpoint cannot be restored into another module; the labels of the data have changed."""
    helpers.train(CONFIG, tmp_path, module=Mine(), arrays=arrays(), epochs=1)
    before = {name: (tmp_path / name).read_bytes() for name in ("config.json", "summary.json", "metrics.jsonl")}
    for module, given, message in (
        (Other(), arrays(), "cannot be read"),
        (Mine(), arrays() | {"y_test": np.zeros(30, int)}, "has changed since"),
    ):
        with pytest.raises(InputError, match=message):
            helpers.train(CONFIG, tmp_path, module=module, arrays=given, epochs=2)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_importing_the_training_package_loads_no_drawing_and_no_checkpoint_library():
    script = "import sys, deepjax.training; sys.exit(str({'matplotlib', 'orbax', 'tensorboard'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "set()\n"
