"""`deepjax bench loop`: its programs train alike, and what it refuses."""

import contextlib
import json

import chex
import jax
import numpy as np
import pytest

from deepjax import cli
from deepjax.benchmarks import input_programs, loop, loop_programs, worker
from deepjax.errors import InputError


@pytest.fixture
def program(tmp_path):
    """A function of the program's kind and the steps in a call; what it opens is closed at the end."""
    with contextlib.ExitStack() as opened:

        def load(kind, size=1):
            loaded = worker.load(loop_programs.job("small", tmp_path, kind, size, 0))
            opened.enter_context(loaded.trainer)
            return loaded

        yield load


def test_the_loop_and_the_bare_step_train_alike_epoch_by_epoch(program):
    compared = [program("input"), program("train"), program("train", size=50)]
    for each in compared:
        (facts,) = each.prepare()
        assert (facts["steps"], facts["batch"], facts["model"]) == (82, 16, "mlp")
        assert each.step() == 1.0
    assert int(compared[0].state.step) == 2 * 82
    states = [jax.device_get(compared[0].state), *(jax.device_get(each.trainer.state) for each in compared[1:])]
    chex.assert_trees_all_equal(*states)
    assert compared[1].trainer.progress.examples == 2 * 1297


def test_the_bare_step_repeats_one_batch(program):
    bare = program("step")
    list(bare.prepare())
    assert int(bare.state.step) == 82
    before = np.asarray(bare.rows["index"])
    bare.step()
    assert int(bare.state.step) == 2 * 82
    np.testing.assert_array_equal(bare.rows["index"], before)


@pytest.mark.parametrize(("source", "shape"), [("memory", (32, 32, 3)), ("jpeg", (224, 224, 3))])
def test_the_sources_of_images(tmp_path, source, shape):
    input_programs.write_images(tmp_path / "images", 32, (30, 40))
    exp = loop_programs.experiment(loop_programs.job(source, tmp_path, "train", 1, 0))
    rows = next(exp.loader.epoch(0))
    batch = exp.loader.fetch(exp.loader.data, rows)
    assert batch["image"].shape == (exp.config.batch_size, *shape)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sources": ["digit"]}, "source 'digit' is unknown; did you mean 'digits'"),
        ({"steps_per_call": [0]}, "from 1"),
        ({"workers": -1}, "workers -1"),
        ({"count": 0}, "rounds 0"),
        ({"images": 31}, "images 31 at least 32"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, named):
    with pytest.raises(InputError, match=named):
        loop.run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_share_of_input_and_the_ratio_of_the_loop(monkeypatch):
    """From seconds of an epoch of 10 steps, in two rounds: the quotients are taken within each."""
    turns = {"step": (2.0, 3.0), "input": (2.5, 4.0), "train 1": (3.0, 4.5), "train 5": (1.0, 1.2)}
    taken = [{name: {"seconds": each[k], "steps": 1, "foreign": 0.0} for name, each in turns.items()} for k in (0, 1)]
    facts = {name: {"stopped": None, "steps": 10, "model": "mlp", "batch": 16, "platform": "cpu"} for name in turns}
    monkeypatch.setattr(loop.rounds, "take", lambda jobs, *_, **__: (facts, taken) if set(jobs) == set(turns) else None)
    one, five = loop._measure("small", "", [1, 5], 0, 2, False, lambda text: None)
    assert one["step"]["median"] == pytest.approx(0.25)
    assert one["input"]["median"] == pytest.approx((0.2 + 0.25) / 2)
    assert one["train"]["median"] == pytest.approx(0.375)
    assert one["ratio"]["median"] == pytest.approx(1.5)
    assert five["ratio"]["median"] == pytest.approx((0.5 + 0.4) / 2)
    (_, header, rows), = loop.tables({"cells": [one, five]})  # fmt: skip
    assert dict(zip(header, rows[1], strict=True)) | {"": ""} == {
        "source": "small", "network": "mlp", "batch": "16", "the step, ms": "250.00", "input": "22.5%",
        "steps per call": "5", "train, ms a step": "110.00", "train / step": "0.450 (0.425 to 0.475)", "": "",
    }  # fmt: skip


@pytest.mark.slow
def test_the_whole_benchmark_runs_at_a_small_size(tmp_path, capsys):
    arguments = ["--sources", "small", "--steps-per-call", "1,20", "--rounds", "1"]
    assert cli.main(["bench", "loop", *arguments, "--out", str(tmp_path / "out")]) == 0
    cells = json.loads((tmp_path / "out" / "loop.json").read_text())["cells"]
    assert [cell["steps_per_call"] for cell in cells] == [1, 20]
    assert all(cell["stopped"] is None and cell["ratio"]["median"] > 0 for cell in cells)
    assert "train / step" in capsys.readouterr().out
