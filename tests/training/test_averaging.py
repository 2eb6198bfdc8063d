"""Averaged weights and predictions: SWA, snapshots, `deepjax eval` of several workdirs."""

import dataclasses
import json
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import helpers
from deepjax import cli, data, inference
from deepjax.config import Augment, Config, Data, Devices, Optimizer, Schedule
from deepjax.data.loaders import epoch_order
from deepjax.errors import InputError, Stopped
from deepjax.training import averaging, mean_parameters, setup

pytestmark = pytest.mark.slow  # trains many runs

KEY = jax.random.key(0)
SWA = Config(  # with batch norms, one of them in a scan; the last batch of an epoch has 17 examples of 160
    data=Data(augment=Augment(translate=1.0)),
    model="mlp",
    model_options={"depth": 4, "width": 16, "norm": "batch"},
    optimizer=Optimizer(name="momentum", learning_rate=0.05),
    devices=Devices(count=1),
    epochs=3,
    batch_size=160,
    swa_start=2,
    keep=10,
)
SPIRALS = Config(
    data=Data(name="spirals"),
    model="mlp",
    model_options={"width": 16},
    optimizer=Optimizer(name="adam", learning_rate=0.03),
    devices=Devices(count=1),
    epochs=6,
    batch_size=100,
)
SNAPSHOTS = dataclasses.replace(SPIRALS, schedule=Schedule("warm_restarts", period=2.0), snapshots=3, keep=1)


# Means


def test_the_running_average_is_the_mean_and_keeps_what_does_not_change():
    trees = [{"a": np.random.default_rng(i).normal(size=5).astype(np.float32), "b": np.float32(0.1)} for i in range(7)]
    average = jax.tree.map(lambda leaf: leaf + np.nan, trees[0])
    for count, tree in enumerate(trees):
        average = averaging.include(average, tree, count)
    np.testing.assert_allclose(average["a"], np.mean([tree["a"] for tree in trees], 0), rtol=1e-5, atol=1e-6)
    assert average["b"] == np.float32(0.1)
    chex.assert_trees_all_close(mean_parameters(trees, list("abcdefg")), average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": {"kernel": jnp.ones((2, 3))}}, r"x/bias is \(3,\) in here, missing in there"),
        ({"x": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(3)}}, r"x/kernel is \(2, 3\) in here, \(2, 4\) in there"),
        ({"y": {}}, "x/bias is .* missing in there"),
    ],
)
def test_weights_of_different_networks_name_the_first_difference(other, message):
    one = {"x": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    with pytest.raises(InputError, match=message):
        mean_parameters([one, one, other], ["here", "here too", "there"])


# Stochastic weight averaging


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged") / "whole"
    helpers.train(SWA, folder)
    return folder


def test_swa_tests_the_mean_of_epochs_ends_with_moments_of_the_training_set(averaged):
    states, (final,) = helpers.stored(averaged, "checkpoints"), helpers.stored(averaged, "averaged").values()
    ends = [states[step]["params"] for step in (18, 27)]  # 9 steps an epoch; the first epoch is left out
    chex.assert_trees_all_close(final["params"], jax.tree.map(lambda *p: np.mean(p, 0), *ends), rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_equal(final["params"], states[27]["swa"])
    # Moments, from another end: a step from zero moments leaves a tenth of the batch's.
    run = inference.load_run(averaged)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, run.variables["params"]), final["params"])
    dataset = data.load(SWA.data, "", 0)
    order = epoch_order(0, 0, 1297, 160, shuffle=True)
    zero = run.variables | {"batch_stats": jax.tree.map(jnp.zeros_like, run.variables["batch_stats"])}

    @jax.jit
    def moments(x, mask):
        x = run.standardizer.apply(x)
        return run.model.apply(zero, x, train=True, mask=mask, mutable=["batch_stats"])[1]["batch_stats"]

    found = [moments(dataset.train.images[rows], mask) for rows, mask in zip(*order)]
    expected = jax.tree.map(lambda *leaves: 10 * np.mean(leaves, 0, np.float64), *found)
    chex.assert_trees_all_close(final["batch_stats"], expected, rtol=1e-4, atol=1e-5)


def test_the_summary_and_eval_of_swa_are_of_the_averaged_weights(averaged):
    summary = json.loads((averaged / "summary.json").read_text())
    run = inference.load_run(averaged)
    for split, name in (("test", "test"), ("validation", "validation")):
        result = inference.evaluate_run(run, split=split)
        assert result.error == summary[f"{name}_error"]
        np.testing.assert_allclose(result.loss, summary[f"{name}_loss"], rtol=1e-6)
    # Not the last weights, nor the average with the moments that training left.
    last = helpers.stored(averaged, "checkpoints")[27]
    for members in (
        {"params": last["params"], "batch_stats": last["batch_stats"]},
        {"params": last["swa"], "batch_stats": last["batch_stats"]},
    ):
        other = inference.evaluate_run(run._replace(members=(members,)))
        assert abs(other.loss - summary["test_loss"]) > 1e-3


def test_weights_of_a_run_with_itself_are_its_own_and_moments_come_from_the_training_set(averaged):
    run = inference.load_run(averaged)
    spoiled = run.variables | {"batch_stats": jax.tree.map(jnp.ones_like, run.variables["batch_stats"])}
    spoiled = run._replace(members=(spoiled,))
    found = inference.evaluate_runs([spoiled, spoiled], average="weights")
    own = inference.evaluate_run(run)
    np.testing.assert_allclose(found.together.loss, own.loss, rtol=1e-5)
    assert abs(found.alone[0].loss - own.loss) > 1e-3
    assert inference.average_weights([run], None) is run  # nothing to average: its moments stay


def test_an_unfinished_swa_run_can_be_used(tmp_path, monkeypatch):
    helpers.stop_after(monkeypatch, 21)  # within the epoch after the first average
    with pytest.raises(Stopped):
        helpers.train(SWA, tmp_path / "run")
    assert inference.load_run(tmp_path / "run").step in (9, 18)


def test_while_a_run_does_more_epochs_its_average_so_far_is_not_used(averaged, tmp_path):
    """`train` removes the summary when more epochs begin."""
    folder = shutil.copytree(averaged, tmp_path / "run")
    assert inference.load_run(folder).step == 27
    (folder / "summary.json").unlink()
    run = inference.load_run(folder)
    chex.assert_trees_all_equal(run.variables["params"], helpers.stored(folder)[run.step]["params"])


def test_swa_on_eight_devices_by_pmap_without_batch_norm(tmp_path):
    summary = helpers.train(SPIRALS, tmp_path, devices=Devices("pmap"), batch_size=80, epochs=4, swa_start=2, keep=10)
    states = helpers.stored(tmp_path, "checkpoints")
    ends = [states[step]["params"] for step in sorted(states)[1:]]
    (final,) = helpers.stored(tmp_path, "averaged").values()
    chex.assert_trees_all_close(final["params"], jax.tree.map(lambda *p: np.mean(p, 0), *ends), rtol=1e-5, atol=1e-6)
    assert len(ends) == 3
    assert summary["test_error"] == inference.evaluate_run(inference.load_run(tmp_path)).error


# Snapshots


@pytest.fixture(scope="module")
def snapped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapped") / "whole"
    helpers.train(SNAPSHOTS, folder)
    return folder


def test_snapshots_are_kept_at_each_cycles_end_and_tested_together(snapped):
    summary = json.loads((snapped / "summary.json").read_text())
    steps = [shot["step"] for shot in summary["snapshots"]]
    ends = [summary["steps"] * cycle // 3 for cycle in (1, 2, 3)]
    assert steps == ends == sorted(helpers.stored(snapped, "snapshots"))
    rates = {row["step"]: row["learning_rate"] for row in helpers.records(snapped) if row["kind"] == "train"}
    assert (
        max(rates[step] for step in rates if step in ends) < 0.003 < 0.03 * 0.5 < rates[steps[0] + 10 - steps[0] % 10]
    )
    run = inference.load_run(snapped)
    assert run.steps == tuple(steps)
    dataset = data.load(SPIRALS.data, "", 0)
    logits = [
        np.asarray(run.model.apply(member, run.standardizer.apply(dataset.test.images), train=False), np.float64)
        for member in run.members
    ]
    labels = dataset.test.labels
    for shot, own in zip(summary["snapshots"], logits):
        assert shot["test_error"] == np.mean(own.argmax(-1) != labels)
        np.testing.assert_allclose(
            shot["test_loss"], np.mean(-np.log(softmax(own, -1)[range(len(labels)), labels])), rtol=1e-4
        )
    errors = [last["error"] for last in summary["last_snapshots"]]
    for count, error in enumerate(errors, 1):
        assert error == np.mean(softmax(logits[-count:], -1).mean(0).argmax(-1) != labels)
    mean = softmax(logits, -1).mean(0)
    assert summary["test_error"] == errors[-1]
    np.testing.assert_allclose(summary["test_loss"], np.mean(-np.log(mean[range(len(labels)), labels])), rtol=1e-4)
    found = inference.evaluate_runs([run])
    assert found.together.error == summary["test_error"]
    assert [one.error for one in found.alone] == [shot["test_error"] for shot in summary["snapshots"]]


def test_an_unfinished_run_of_snapshots_can_be_used(tmp_path, snapped, monkeypatch):
    third = json.loads((snapped / "summary.json").read_text())["steps"] // 3
    helpers.stop_after(monkeypatch, third)  # at a cycle's end
    with pytest.raises(Stopped):
        helpers.train(SNAPSHOTS, tmp_path / "run")
    assert inference.load_run(tmp_path / "run").steps == (third,)


def test_a_damaged_snapshot_is_named_and_left_out(tmp_path, snapped):
    folder = tmp_path / "run"
    shutil.copytree(snapped, folder)
    step = sorted(helpers.stored(folder, "snapshots"))[1]
    largest = max(
        (folder / "snapshots" / str(step)).rglob("*"), key=lambda path: path.is_file() and path.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:10])
    said = []
    assert len(inference.load_run(folder, warn=said.append).members) == 2
    assert len(said) == 1
    assert f"snapshots/{step} is damaged" in said[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swa_start": 7}, "swa_start 7 must be an epoch, 1 to epochs 6"),
        ({"swa_start": -1}, "swa_start -1"),
        ({"snapshots": -1}, "snapshots -1"),
        ({"swa_start": 2, "ema": 0.9}, r"swa_start 2 and ema 0.9 .* set one of them to 0"),
        ({"swa_start": 2, "patience": 3}, "swa_start 2 needs all epochs, patience 3"),
        ({"snapshots": 4}, "snapshots 4 must divide epochs 6 into equal cycles; set, say, epochs 8"),
        (
            {"snapshots": 3},
            "schedule.name constant does not go .* set schedule.name warm_restarts and schedule.period 2",
        ),
        ({"snapshots": 3, "swa_start": 2}, "swa_start 2 and snapshots 3 both"),
        (
            {"snapshots": 3, "schedule": Schedule("warm_restarts", period=3.0)},
            "schedule.period 3.0 .* cycles have 2 epochs",
        ),
        (
            {"snapshots": 3, "schedule": Schedule("warm_restarts", period=2.0, multiplier=2.0)},
            "schedule.multiplier 2.0",
        ),
        ({"snapshots": 3, "schedule": Schedule("warm_restarts", period=2.0, warmup=1.0)}, "schedule.warmup 1.0"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        helpers.train(SPIRALS, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_swa_does_not_go_with_moments_that_are_frozen_to_the_end():
    config = dataclasses.replace(
        SWA, pretrained="x", model="cifar_resnet", model_options={}, freeze=("stem*", "stage1*"), thaw=(1.0, 2.5)
    )
    for thaw in ((), (3.0,), (1.0, 3.0)):
        frozen = dataclasses.replace(config, thaw=thaw)
        averaging.check(frozen)  # their moments are not frozen
        with pytest.raises(
            InputError, match=r"swa_start 2 .* freeze_moments True keeps those of '(stem|stage1)\*'; set"
        ):
            setup.check(dataclasses.replace(frozen, freeze_moments=True))
    setup.check(dataclasses.replace(config, freeze_moments=True))
    with pytest.raises(InputError, match="3 epochs for the 2 patterns"):
        setup.check(dataclasses.replace(config, thaw=(1.0, 2.0, 3.0), freeze_moments=True))
    groups = Optimizer(name="momentum", groups={"stem*": {"frozen": True}})
    with pytest.raises(InputError, match=r"swa_start 2 .* keeps those of 'stem\*'"):
        setup.check(
            dataclasses.replace(config, pretrained="", freeze=(), thaw=(), optimizer=groups, freeze_moments=True)
        )


# Several workdirs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on one set, whose validation split the seed draws."""
    folder = tmp_path_factory.mktemp("several")
    spirals = data.load(SPIRALS.data, "", 0)
    arrays = {"x": spirals.train.images, "y": spirals.train.labels}
    arrays = {f"{name}_{split}": array for name, array in arrays.items() for split in ("train", "test")}
    np.savez(folder / "set.npz", **arrays)
    drawn = Data(name=str(folder / "set.npz"))
    for name, changes in (
        ("a", {}),
        ("b", {"seed": 1}),
        ("wide", {"model_options": {"width": 24}}),
    ):
        helpers.train(SPIRALS, folder / name, **{"data": drawn, "epochs": 3} | changes)
    return folder


def said(capsys, *arguments):
    code = cli.main(["eval", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def logits_of(run, x):
    return np.asarray(run.model.apply(run.variables, run.standardizer.apply(x), train=False), np.float64)


def test_eval_averages_predictions_of_workdirs_each_standardizing_its_own_way(runs, capsys):
    folders = [runs / name for name in ("a", "b", "wide")]
    code, out, _ = said(capsys, *folders, "--json")
    assert code == 0
    record = json.loads(out)
    assert record["average"] == "predictions"
    loaded = [inference.load_run(folder) for folder in folders]
    assert not np.array_equal(loaded[0].standardizer.shift, loaded[1].standardizer.shift)  # of another training set
    test = data.load(loaded[0].config.data, "", 0).test
    logits = [logits_of(run, test.images) for run in loaded]
    mean = softmax(logits, -1).mean(0)
    assert record["error"] == np.mean(mean.argmax(-1) != test.labels)
    np.testing.assert_allclose(record["loss"], -np.mean(np.log(mean[range(len(mean)), test.labels])), rtol=1e-4)
    for row, folder, run, own in zip(record["runs"], folders, loaded, logits):
        assert (row["workdir"], row["step"]) == (str(folder), run.step)
        assert row["error"] == np.mean(own.argmax(-1) != test.labels)
        assert row["error"] == json.loads((folder / "summary.json").read_text())["test_error"]


def test_eval_shows_each_snapshots_error_and_that_of_all(snapped, capsys):
    summary = json.loads((snapped / "summary.json").read_text())
    code, out, _ = said(capsys, snapped)
    assert code == 0
    shown = re.findall(r"(\S+) +(\d+) +(\d+\.\d\d) +\d+\.\d{4}", out)
    expected = [(str(snapped), str(shot["step"]), f"{100 * shot['test_error']:.2f}") for shot in summary["snapshots"]]
    assert shown == expected
    assert re.search(rf"predictions averaged +{100 * summary['test_error']:.2f} ", out)
    assert f"test error {100 * summary['test_error']:.2f} %" in out
    assert "predictions of 3 averaged" in out


def test_eval_averages_weights_of_workdirs(runs, capsys):
    code, out, _ = said(capsys, runs / "a", runs / "b", "--average", "weights", "--json")
    assert code == 0
    record = json.loads(out)
    one, two = loaded = [inference.load_run(runs / name) for name in ("a", "b")]
    params = jax.tree.map(lambda a, b: (a + b) / 2, one.variables["params"], two.variables["params"])
    test = data.load(loaded[0].config.data, "", 0).test
    logits = logits_of(one._replace(members=({"params": params},)), test.images)
    assert record["error"] == np.mean(logits.argmax(-1) != test.labels)
    assert len(record["runs"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "wide", "--average", "weights"], "cannot be averaged: parameter first/bias is (16,) in"),
        (["a", "SNAPPED"], "in one, spirals in the other; average runs of one data set"),
        (
            ["a", "b", "--split", "validation"],
            "of b: their seed, data.validation or data.test differs; evaluate a split that both share",
        ),
        (["a", "nowhere"], "nowhere holds no run"),
        ([], "eval needs a run"),
    ],
)
def test_runs_that_cannot_be_averaged_are_one_line(runs, snapped, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(runs)
    code, _, err = said(capsys, *(snapped if word == "SNAPPED" else word for word in arguments))
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_weights_need_one_standardization(runs):
    one, two = (inference.load_run(runs / name) for name in ("a", "b"))
    other = two.standardizer._replace(shift=two.standardizer.shift + two.standardizer.scale)
    with pytest.raises(InputError, match="their standardization of examples or targets differs"):
        inference.evaluate_runs([one, two._replace(standardizer=other)], average="weights")


def test_a_single_run_is_shown_as_before(runs, capsys):
    code, out, _ = said(capsys, runs / "a", "--json")
    assert set(json.loads(out)) == {
        "split",
        "step",
        "examples",
        "error",
        "loss",
        "views",
        "mean_f1",
        "calibration_error",
        "classes",
    }


def test_a_validation_split_of_the_sets_own_is_one_whatever_the_seed(snapped):
    run = inference.load_run(snapped)
    run = run._replace(members=run.members[-1:], steps=run.steps[-1:])
    other = run._replace(config=dataclasses.replace(run.config, seed=1))
    found = inference.evaluate_runs([run, other], split="validation")
    assert found.together.error == found.alone[0].error == found.alone[1].error
