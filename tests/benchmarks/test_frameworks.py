"""`deepjax bench frameworks`: one network in every system, fair rounds, disturbed rounds dropped, quotients."""

import importlib.util
import json
import os

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import cli, zoo
from deepjax.benchmarks import (
    cells,
    frameworks,
    frameworks_report,
    matmul,
    process,
    rounds,
    systems,
    worker,
    workloads,
)
from deepjax.errors import InputError
from deepjax.summary import summarize

HAS_TORCH = importlib.util.find_spec("torch") is not None
SMALL = {  # the same networks, on few or small examples, without dropout
    "fcn_r": workloads.WORKLOADS["fcn_r"]._replace(batch=4),
    "alexnet_r": workloads.WORKLOADS["alexnet_r"]._replace(batch=4),
    "resnet56": workloads.WORKLOADS["resnet56"]._replace(batch=4, options={"depth": 8}),
    "lstm": workloads.WORKLOADS["lstm"]._replace(
        batch=4, shape=(5,), classes=50, options={"vocabulary": 50, "width": 8, "layers": 2}
    ),
}


def job(work, system="deepjax", kind="train", dtype="float32"):
    return frameworks.job(kind, system, work, dtype, 1)


def here(work):
    """The installed systems that have a workload."""
    return [name for name in systems.choose([]) if not systems.lacks(name, work)]


def flax_parameters(module, work):
    x = workloads.data(work._replace(batch=2))[0]
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    output = jax.eval_shape(lambda variables: module.apply(variables, x, train=False), shapes)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])), output.shape


# The same network in every system


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_networks_have_equal_parameters_and_outputs_in_all_systems(name):
    from deepjax.benchmarks.systems import deepjax_system as ours
    from deepjax.benchmarks.systems import flax_system as plain

    work = workloads.WORKLOADS[name]
    found = {name: flax_parameters(system.network(work), work) for name, system in (("flax", plain), ("deepjax", ours))}
    if HAS_TORCH:
        import torch

        from deepjax.benchmarks.systems import torch_nets

        with torch.device("meta"):
            net = torch_nets.network(work)
        count = sum(leaf.numel() for leaf in net.parameters() if leaf.requires_grad)
        found["torch"] = count, torch_nets.shape_of(work._replace(batch=2), net)
    outputs = (2, *work.shape, work.classes) if len(work.shape) == 1 else (2, work.classes)
    assert all(shape == outputs for _, shape in found.values()), found
    assert len({count for count, _ in found.values()}) == 1, found


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_all_systems_train_the_same_network(name):
    losses = {}
    for system in here(SMALL[name]):
        if system == "torch-compile":
            continue  # the same network as torch's, which takes long to compile
        with jax.numpy_rank_promotion("raise" if system == "deepjax" else "allow"):  # Keras promotes ranks
            program = worker.load(job(SMALL[name], system))
            list(program.prepare())
            losses[system] = [program.step() for _ in range(3)]  # of the third, gradients and momentum have a part
    assert len(losses) > 1
    (expected, *others) = losses.values()
    assert abs(expected[2] - expected[0]) > 1e-4
    for other in others:
        assert_allclose(other, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize(
    ("name", "systems_of"), [("mobilenet_v2", ("deepjax", "torch")), ("resnet50", ("flax", "torch"))]
)
def test_inference_computes_the_same_logits(name, systems_of):
    (work,) = workloads.choose([name], 2, inference=True)
    means = []
    for system in systems_of:
        program = worker.load(job(work._replace(shape=(64, 64, 3)), system, "infer"))
        list(program.prepare())
        means.append(program.step())
    assert_allclose(means[0], means[1], rtol=1e-4)


def test_multiply_adds_of_a_training_step_are_about_three_forward_passes():
    work = SMALL["fcn_r"]
    phases = list(worker.load(job(work)).prepare())
    forward = sum(row.macs for row in summarize(zoo.create("fcn_r"), work.shape))
    inputs = 784 * 2048  # the first layer has no gradient in its input
    assert phases[0]["macs"] == work.batch * (3 * forward - inputs)
    assert phases[0]["parameters"] == zoo.parameter_count("fcn_r")


def test_a_matrix_product_is_what_it_says():
    program = matmul.Product(8, "bfloat16")
    phases = list(program.prepare())
    assert phases[0]["macs"] == 8**3
    assert program.step() == 8.0


def test_words_are_followed_by_their_next():
    inputs, labels = workloads.data(SMALL["lstm"])
    assert inputs.shape == labels.shape == (4, 5)
    assert (inputs[:, 1:] == labels[:, :-1]).all()
    assert inputs.max() < 50


def test_gates_of_an_lstm_start_alike_in_one_kernel_and_in_four():
    assert (cells.start("gates", (3, 8)) == np.tile(cells.start("kernel", (3, 2)), (1, 4))).all()


# Rounds


def turns(foreign=0.0, **seconds):
    return {name: {"seconds": value, "steps": 1, "foreign": foreign} for name, value in seconds.items()}


def test_disturbed_rounds_are_dropped():
    quiet, disturbed = turns(0.05, a=1.0, b=2.0), turns(a=1.0) | turns(0.3, b=5.0)
    assert rounds.keep([quiet, disturbed, quiet]) == ([quiet, quiet], 1, False)
    assert rounds.keep([quiet, disturbed, disturbed]) == ([quiet], 2, False)


def test_disturbed_rounds_are_used_if_less_than_a_third_would_be_left():
    quiet, disturbed = turns(a=1.0), turns(0.3, a=5.0)
    many = [quiet, disturbed, disturbed, disturbed]
    assert rounds.keep(many) == (many, 3, True)


def test_where_the_system_does_not_report_other_processes_nothing_is_dropped():
    assert rounds.keep([turns(None, a=1.0)] * 2) == ([turns(None, a=1.0)] * 2, 0, False)


def test_quotients_are_taken_within_rounds():
    drifting = [turns(a=1.0 * slow, b=3.0 * slow) for slow in (1, 2, 10)] + [turns(a=7.0)]
    assert rounds.quotients(drifting, "b", "a") == [3.0, 3.0, 3.0]
    assert rounds.seconds_of(drifting, "b") == [3.0, 6.0, 30.0]


def test_spread_is_the_median_and_the_quartiles():
    values = [5.0, 1.0, 2.0, 4.0, 3.0]
    assert rounds.spread(values) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert rounds.spread([]) is None


def made_up(name, **seconds):
    """The record of a workload whose systems took these seconds in three rounds, of which one was twice as slow."""
    taken = [turns(**{system: slow * value for system, value in seconds.items()}) for slow in (1.0, 2.0, 1.0)]
    facts = {system: {"stopped": None, "loss": 2.0} for system in seconds}
    numbers = {system: frameworks._numbers(system, facts[system], taken, 2 * 2048**3) for system in seconds}
    numbers.pop("matmul", None)
    cell = {"workload": name, "batch": 8, "dtype": "float32", "threads": 2, "dropped": 0, "busy": False}
    peak = rounds.spread([2 * 2048**3 / value for value in rounds.seconds_of(taken, "matmul")])
    return {**cell, "peak": peak, "systems": numbers, "against": frameworks._against(taken, numbers)}


def test_ratios_speeds_and_shares_follow_from_the_seconds():
    cell = made_up("fcn_r", deepjax=2.0, torch=3.0, flax=8.0, matmul=0.5, **{"torch-compile": 1.0})
    found = cell["systems"]
    assert found["deepjax"]["ratio"] is None
    assert found["torch"]["ratio"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert found["deepjax"]["speed"] == 2 * 2 * 2048**3 / 2.0
    assert found["deepjax"]["share"]["median"] == 0.5  # twice the operations in four times the time
    assert cell["against"] == {"torch": 2.0, "flax": 0.25}


def test_means_over_workloads_are_geometric():
    measured = [made_up("a", deepjax=1.0, torch=4.0), made_up("b", deepjax=1.0, torch=1.0), made_up("c", flax=1.0)]
    (mean,) = frameworks.means(measured)
    assert_allclose(mean.pop("mean"), 0.5)
    assert mean == {"dtype": "float32", "threads": 2, "against": "torch", "workloads": 2}


def test_the_report_shows_every_system():
    measured = [made_up("fcn_r", deepjax=0.002, torch=0.003, matmul=0.0005)]
    measured[0]["systems"]["flax"] = frameworks._numbers("flax", {"stopped": "cap of 9 s reached"}, [], 1)
    record = {"command": "deepjax bench frameworks", "machine": frameworks.machine(), "cells": measured}
    record["options"] = {"inference": False, "systems": ["deepjax", "torch", "flax"]}
    record |= {"left_out": ["lstm of x: none"], "means": frameworks.means(measured)}
    text = frameworks_report.markdown(record)
    assert "| fcn_r | 8 | float32 | 2 | torch | 3 | 3 to 4.5 | 1.50 | 1.50 to 1.50 |" in text
    assert "cap of 9 s reached |" in text
    assert "- lstm of x: none" in text
    assert "| float32 | 2 | better of torch and torch-compile | 0.67 | 1 |" in text
    (axes,) = frameworks_report.plot(record).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["fcn_r\n8"]


# Processes


def test_a_job_is_restricted_to_its_threads_before_anything_is_imported(monkeypatch):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system has no affinity")
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5, 3, 4})
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: asked.append(cores))
    worker.restrict(2)
    assert asked == [[3, 4]]


def test_other_processes_work_is_that_of_the_watched_cores_without_our_own(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text("cpu 9 9 9 9 9 9 9 9 0 0\ncpu0 100 10 20 999 999 1 2 4 50 50\ncpu1 900 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(os, "times", lambda: os.times_result((0.25, 0.5, 0, 0, 0)))
    ticks = os.sysconf("SC_CLK_TCK")
    assert_allclose(worker.other_work([0], stat), 137 / ticks - 0.75)
    assert worker.other_work([], stat) is None
    assert worker.other_work([0], tmp_path / "none") is None


PRETENDER = """
import json, sys
job, log = json.loads(sys.argv[-1]), sys.argv[1]
name = job.get("system", "matmul")
for phase in job["phases"]:
    if name == "flax":
        sys.exit("no room")
    print(json.dumps({"phase": phase, "seconds": 1.0, "macs": 7}), flush=True)
for line in sys.stdin:
    with open(log, "a") as file:
        file.write(name + "\\n")
    print(json.dumps({"seconds": [1.0, 3.0], "loss": float("nan"), "peak": 7, "foreign": 0.0}), flush=True)
"""


def test_systems_take_turns_in_another_order_each_round(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(PRETENDER)
    command = [process.WORKER[0], str(tmp_path / "worker.py"), str(tmp_path / "turns")]
    monkeypatch.setattr(process, "WORKER", command)
    options = {"names": ["fcn_r"], "compared": ["deepjax", "flax"], "dtypes": ["float32"], "threads": [1], "count": 2}
    record = frameworks.run(tmp_path / "out", **options)
    order = (tmp_path / "turns").read_text().split()
    assert order == ["deepjax", "matmul", "matmul", "deepjax", "deepjax", "matmul"]
    (cell,) = record["cells"]
    assert len(cell["rounds"]) == 2
    assert cell["systems"]["deepjax"]["seconds"]["median"] == 2.0
    assert cell["systems"]["deepjax"]["loss"] is None
    assert cell["systems"]["flax"]["stopped"] == "failed: no room"
    assert json.loads((tmp_path / "out" / "frameworks.json").read_text()) == record
    assert (tmp_path / "out" / "frameworks.png").stat().st_size > 10_000


# What is refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"names": ["fcn"]}, "workload 'fcn' is unknown; did you mean 'fcn_[rs]'"),
        ({"compared": ["touch"]}, "system 'touch' is unknown; did you mean 'torch'"),
        ({"dtypes": ["float16"]}, "dtype 'float16' is unknown"),
        ({"dtypes": []}, "name at least one"),
        ({"threads": [0]}, "threads 0 must be from 1 to"),
        ({"batch": 1}, "batch 1 must be at least 2"),
        ({"count": 0}, "rounds 0"),
        ({"names": ["lstm"], "inference": True}, "lstm is for training"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, named):
    with pytest.raises(InputError, match=named):
        frameworks.run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_system_that_is_not_installed_is_left_out_or_refused(monkeypatch):
    monkeypatch.setattr(systems, "is_installed", lambda name: name in ("deepjax", "flax"))
    assert systems.choose([]) == ["deepjax", "flax"]
    with pytest.raises(InputError, match="system keras: keras is not installed"):
        systems.choose(["keras"])


def test_other_networks_of_the_zoo_are_workloads_of_deepjax_alone():
    (work,) = workloads.choose(["mobilenet_v2"], 4)
    assert (work.shape, work.classes, work.batch) == ((224, 224, 3), 1000, 4)
    assert systems.lacks("deepjax", work) is None
    assert "no mobilenet_v2 in flax" in systems.lacks("flax", work)


def test_inference_is_measured_with_one_and_with_many_images():
    found = workloads.choose([], inference=True)
    assert [(work.name, work.batch) for work in found] == [
        ("resnet50", 1),
        ("resnet50", 32),
        ("mobilenet_v2", 1),
        ("mobilenet_v2", 32),
    ]


def test_threads_are_powers_of_two(monkeypatch):
    monkeypatch.setattr(cells, "cores", lambda: 6)
    assert frameworks.check_threads([]) == [1, 2, 4]
    assert frameworks.check_threads([6, 3, 3]) == [3, 6]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workloads", "fcn"], "workload 'fcn' is unknown"),
        (["--threads", "one"], "--threads 'one' must be numbers"),
        (["--systems", "jax"], "system 'jax' is unknown"),
    ],
)
def test_the_command_line_complains_in_one_line(capsys, arguments, complaint):
    assert cli.main(["bench", "frameworks", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_whole_benchmark_runs_at_a_small_size(tmp_path, capsys):
    compared = "deepjax,flax" + (",torch" if HAS_TORCH else "")
    arguments = ["--workloads", "alexnet_r", "--systems", compared, "--dtypes", "float32", "--threads", "1"]
    arguments += ["--batch", "2", "--rounds", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["bench", "frameworks", *arguments]) == 0
    said = capsys.readouterr().out
    (cell,) = json.loads((tmp_path / "out" / "frameworks.json").read_text())["cells"]
    assert list(cell["systems"]) == compared.split(",")
    assert all(numbers["stopped"] is None for numbers in cell["systems"].values())
    assert len({numbers["parameters"] for numbers in cell["systems"].values()}) == 1
    losses = [numbers["loss"] for numbers in cell["systems"].values()]
    assert_allclose(losses, losses[0], rtol=1e-4)
    assert "Geometric means" in said
