"""The range test: what it measures, what it suggests, and that it leaves a run as it was."""

import dataclasses
import hashlib
import json
import math
import shutil

import chex
import numpy as np
import pytest

import helpers
from deepjax import cli
from deepjax.config import Config, Devices, Optimizer, Schedule
from deepjax.errors import InputError, Stopped, TrainingFailed
from deepjax.optimizers import Times
from deepjax.training import find_lr, range_test
from deepjax.training.find_lr import Point, suggest

DIGITS = Config(
    model="mlp",
    model_options={"depth": 2, "width": 16, "dropout": 0.1},
    optimizer=Optimizer(name="adam", learning_rate=0.01),
    schedule=Schedule("cosine", warmup=1.0),
    devices=Devices(count=1),
    epochs=3,
    batch_size=100,
    log_every=1,
    ema=0.9,
)


def search(config, folder, **options):
    return range_test(dataclasses.replace(config, workdir=str(folder)), **options)


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped within its second epoch."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        helpers.stop_after(patch, 14)
        with pytest.raises(Stopped):
            helpers.train(DIGITS, folder)
    return folder


@pytest.fixture(scope="module")
def finished(stopped, tmp_path_factory):
    """The same run, gone on with."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    shutil.copytree(stopped, folder)
    helpers.train(DIGITS, folder)
    return folder


def test_a_run_is_left_as_it_was_and_goes_on_to_the_same_numbers(stopped, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    before = hashes(folder)
    result = search(DIGITS, folder, min_rate=1e-4, max_rate=1.0, steps=20)
    after = hashes(folder)
    new = {folder / "find_lr.json", folder / "find_lr.png"}
    assert {path: after[path] for path in after.keys() - new} == before
    assert new <= after.keys()
    helpers.train(DIGITS, folder)
    chex.assert_trees_all_equal(helpers.newest_state(folder), helpers.newest_state(finished))
    for kind in ("train", "train_epoch", "validation"):
        assert helpers.records(folder, kind) == helpers.records(finished, kind)
    assert hashes(folder)[folder / "find_lr.json"] == after[folder / "find_lr.json"]
    # It began where the run goes on: the same state, batch and keys, so the same loss.
    step = result["start_step"]
    assert step == int(helpers.newest_state(stopped)["step"]) > 10
    (going_on,) = (row for row in helpers.records(finished, "train") if row["step"] == step + 1)
    assert result["points"][0]["loss"] == going_on["loss"]


def test_of_a_finished_run_a_new_state_is_tested(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    of_finished, of_new = (search(DIGITS, place, min_rate=1e-3, steps=10) for place in (folder, tmp_path / "new"))
    assert of_finished == of_new
    assert of_finished["start_step"] == 0


def test_it_sweeps_rates_whatever_the_schedule_and_training_after_it_is_as_without(stopped, finished, tmp_path):
    result = search(DIGITS, tmp_path, min_rate=1e-5, max_rate=30.0, steps=40, smoothing=0.8)
    assert result == json.loads((tmp_path / "find_lr.json").read_text())
    points = [Point(**point) for point in result["points"]]
    rates = np.geomspace(1e-5, 30, 40)[: len(points)]
    np.testing.assert_allclose([point.rate for point in points], rates, rtol=1e-4)
    average, lowest = 0.0, math.inf
    for i, point in enumerate(points):
        average = 0.8 * average + 0.2 * point.loss
        np.testing.assert_allclose(point.smoothed, average / (1 - 0.8 ** (i + 1)))
        lowest = min(lowest, point.smoothed)
        assert point.smoothed <= 4 * lowest or i == len(points) - 1
    assert result["start_step"] == 0
    assert result["suggestion"] == result["tenth_of_minimum"] == min(points, key=lambda p: p.smoothed).rate / 10
    assert 1e-3 < result["suggestion"] < 1
    assert 1e-3 < result["steepest_descent"] < 10 * result["suggestion"]
    assert (tmp_path / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    helpers.train(DIGITS, tmp_path)
    chex.assert_trees_all_equal(helpers.newest_state(tmp_path), helpers.newest_state(finished))
    assert points[0].loss == helpers.records(finished, "train")[0]["loss"]


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_each_point_is_one_update_of_all_its_batches_on_all_devices(tmp_path, strategy):
    config = dataclasses.replace(
        DIGITS,
        optimizer=Optimizer("momentum", accumulate=3, groups={"head/*": {"learning_rate": 1e-9}}),
        model_options={"depth": 2, "width": 8},
        devices=Devices(strategy, count=2),
        batch_size=80,
        ema=0.0,
    )
    result = search(config, tmp_path / "search", min_rate=1e-3, max_rate=1e3, steps=10, smoothing=0.0)
    helpers.train(config, tmp_path / "run", epochs=1, schedule=Schedule())
    losses = [row["loss"] for row in helpers.records(tmp_path / "run", "train")]
    np.testing.assert_allclose(result["points"][0]["loss"], np.mean(losses[:3]), rtol=1e-6)
    rates = [point["rate"] for point in result["points"]]
    np.testing.assert_allclose(rates, np.geomspace(1e-3, 1e3, 10)[: len(rates)], rtol=1e-4)


def valley(noise=0.0, floor=1.0):
    """Loss over rates with its lowest place at 0.1 and its steepest at 10**(-1 - 0.5**0.5)."""
    rates = np.logspace(-6, 1, 141)
    losses = 2 - (2 - floor) * np.exp(-((np.log10(rates) + 1) ** 2))
    losses = losses + noise * np.random.default_rng(0).normal(size=141)
    return [Point(*each) for each in zip(rates.tolist(), losses, losses)]


def test_the_suggestions_are_a_tenth_of_the_minimum_and_the_steepest_descent():
    np.testing.assert_allclose(suggest(valley(), 0.0), (0.01, 10 ** (-1 - 0.5**0.5)), rtol=0.02)
    tenth, steepest = suggest(valley(noise=0.01), 0.0)
    assert 0.007 < tenth < 0.014
    assert 0.003 < steepest < 0.1


@pytest.mark.parametrize(
    "points",
    [valley(noise=0.1, floor=2.0), valley(noise=1e-6, floor=3.0), valley(noise=0.0, floor=2.0), valley()[100:]],
    ids=["noise", "rising", "flat", "past the valley"],
)
def test_where_the_loss_does_not_fall_nothing_is_suggested(points):
    assert suggest(points, 0.0) == (None, None)


def test_a_loss_that_does_not_fall_ends_with_1_after_its_curve_is_drawn(tmp_path, capsys):
    arguments = ["--workdir", str(tmp_path), "--min-rate", "1e-9", "--max-rate", "1e-8", "--devices.count", "1"]
    network = ["--model", "mlp", "--model-options", "depth=2", "width=16"]
    code = cli.main(["find-lr", "digits", *network, *arguments])
    said = capsys.readouterr()
    assert (code, said.err, said.out.count("\n")) == (1, "", 1)
    assert "no learning rate can be suggested" in said.out
    record = json.loads((tmp_path / "find_lr.json").read_text())
    assert record["suggestion"] is record["tenth_of_minimum"] is record["steepest_descent"] is None
    assert (record["stopped"], len(record["points"])) == ("all steps were done", 100)
    assert (tmp_path / "find_lr.png").exists()


def test_a_loss_that_is_not_finite_ends_the_sweep(tmp_path):
    config = dataclasses.replace(DIGITS, optimizer=Optimizer("sgd"), model_options={"depth": 2, "width": 16}, ema=0.0)
    result = search(config, tmp_path, min_rate=1e-3, max_rate=1e30, steps=10, smoothing=0.0)
    assert len(result["points"]) < 10
    assert all(math.isfinite(point["loss"]) for point in result["points"])
    assert result["stopped"] != "all steps were done"


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"min_rate": 1.0, "max_rate": 0.1}, {}, "min_rate 1.0 and max_rate 0.1"),
        ({"min_rate": 0.0}, {}, "min_rate 0.0"),
        ({"max_rate": math.inf}, {}, "max_rate inf"),
        ({"steps": 5}, {}, "steps 5 must be at least 10"),
        ({"smoothing": 1.0}, {}, r"smoothing 1.0 must be in \[0, 1\)"),
        ({}, {"optimizer": Optimizer("rprop"), "schedule": Schedule()}, "rprop determines its step sizes itself"),
        ({}, {"optimizer": Optimizer("lbfgs", line_search=True)}, "line_search determines its step sizes"),
        ({}, {"epochs": 0}, "epochs 0"),
        ({}, {"model": "mpl"}, "did you mean 'mlp'"),
    ],
)
def test_bad_input_names_itself_and_leaves_nothing(tmp_path, options, changes, message):
    with pytest.raises(InputError, match=message):
        search(dataclasses.replace(DIGITS, **changes), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_another_configs_workdir_is_refused(stopped):
    before = hashes(stopped)
    with pytest.raises(InputError, match=r"epochs 3 there, 4 here.*--workdir"):
        search(dataclasses.replace(DIGITS, epochs=4), stopped)
    assert hashes(stopped) == before


def test_the_command_prints_one_line(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Mine."""\nfrom deepjax.config import *\n'
        "config = Config(model='mlp', model_options={'depth': 2, 'width': 16}, devices=Devices(count=1))\n"
    )
    workdir = tmp_path / "run"
    code = cli.main(["find-lr", str(path), "--workdir", str(workdir), "--steps", "40", "--min-rate", "1e-4"])
    said = capsys.readouterr()
    assert (code, said.err, said.out.count("\n")) == (0, "", 1)
    record = json.loads((workdir / "find_lr.json").read_text())
    assert f"suggested learning rate {record['suggestion']:.2g}" in said.out
    assert str(workdir / "find_lr.png") in said.out
    assert (record["steps"], record["min_rate"]) == (40, 1e-4)
    assert cli.main(["find-lr"]) == 2
    assert "digits" in capsys.readouterr().out
    assert cli.main(["find-lr", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err


def test_a_run_that_starts_with_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(find_lr.math, "isfinite", lambda _: False)
    with pytest.raises(TrainingFailed, match="before the first update"):
        find_lr._sweep(*fake_sweep())


def fake_sweep():
    class Exp:
        config, times, data = DIGITS, Times(2, 1), ()

        class loader:  # noqa: N801
            steps = 1
            epoch = staticmethod(lambda *_: iter([0]))

        class mesh:  # noqa: N801
            to_devices = staticmethod(lambda rows: rows)

        step = staticmethod(lambda state, *_: (state, {"loss": np.float32("nan"), "learning_rate": 0.1}))

    return Exp, None, 0, 10, 0.9
