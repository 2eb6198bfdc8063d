"""`deepjax bench`: fits against exact laws, fair turns, caps that bite, one net in every system."""

import json
import math
import os
import signal
import sys
import time

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import cli
from deepjax.benchmarks import cells, depth, growth, process, programs, report, worker
from deepjax.benchmarks.cells import Cell
from deepjax.errors import InputError
from deepjax.units import Drop, Plain

RUN = {"steps": 2, "stage_units": (), "second_start": False, "log": lambda text: None}


def net(variant="scan", unit="basic", layers=14, kind="net"):
    return Cell(kind, unit, variant, layers, batch=4, width=4)


# Numbers


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.05, 2.0])
def test_a_fit_finds_the_power_law_that_the_numbers_follow(exponent):
    depths = np.array([20, 56, 110, 332, 1202])
    assert_allclose(growth.fit(depths, 0.3 * depths**exponent), (exponent, 0.3), rtol=1e-9, atol=1e-12)


def test_a_fit_of_noisy_numbers_is_the_regression_of_logarithms():
    depths, noise = np.array([20, 56, 110, 332]), np.array([0.1, -0.2, 0.05, 0.15])
    x, y = np.log(depths), np.log(2.0 * depths) + noise
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert_allclose(growth.fit(depths, np.exp(y))[0], slope, rtol=1e-9)


def test_one_depth_or_a_zero_has_no_exponent():
    assert growth.fit([20], [1.0]) is None
    assert growth.fit([20, 20], [1.0, 2.0]) is None
    assert growth.fit([20, 56], [0.0, 1.0]) is None


def measured(unit, variant, layers, **numbers):
    record = dict.fromkeys((*depth.MEASURED, "loss", "steps", "step", "step_min", "step_mean", "peak", "stopped"))
    return {**record, "unit": unit, "variant": variant, "depth": layers, **numbers}


def growing(variant, exponent, scale, unit="basic", **numbers):
    return [measured(unit, variant, n, step=scale * n**exponent, **numbers) for n in (20, 332, 1202)]


def a_run(nets, stages=(), starts=()):
    options = {"width": 16, "batch": 8}
    record = {"command": "deepjax bench depth", "machine": depth.machine(), "options": options}
    record |= {"nets": list(nets), "stages": list(stages), "starts": list(starts)}
    return record | {"fits": growth.fits(nets)}


def test_the_report_shows_every_cell_and_where_the_cap_hit():
    stopped = "cap of 600 s reached in compile"
    nets = [*growing("scan", 1.0, 0.001, temporaries=2 * 10**6), measured("preact", "unrolled", 1202, stopped=stopped)]
    record = a_run(nets, [measured("conv", "scan", 10, trace=0.5)])
    text = report.markdown(record)
    assert f"| preact | unrolled | 1202 |{' - |' * 7} {stopped} |" in text
    assert "| basic | scan | 332 | - | - | - | 2.0 | 332.0 | - | - |  |" in text
    assert "| conv | scan | 10 | 0.50 | - | - | - |  |" in text
    assert "| basic | scan | 1.00 | - | 0.00 |" in text
    assert all(text in report.markdown(record) for text in (f"{cells.cores()} cores", "16/32/64, batch 8"))
    axes = report.plot(record).axes
    assert len(axes) == 2 * 3
    assert axes[0].get_xscale() == axes[0].get_yscale() == "log"
    line, fitted = axes[0].get_lines()
    assert_allclose(line.get_ydata(), [0.02, 0.332, 1.202])
    assert_allclose(fitted.get_ydata(), [0.02, 1.202])
    assert "1.00" in line.get_label()


# What is refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"units": ["basik"]}, "'basik'.*did you mean 'basic'"),
        ({"units": []}, "at least one"),
        ({"variants": ["scam"]}, "'scam'.*'scan'"),
        ({"variants": ["reversible"], "units": ["basic"]}, "variant reversible is measured with unit reversible"),
        ({"variants": ["flax"], "units": ["plain", "preact"]}, "variant flax is measured with unit basic"),
        ({"depths": [21]}, "depth 21 is not 6n"),
        ({"depths": [2]}, "depth 2 is not 6n"),
        ({"depths": []}, "at least one"),
        ({"batch": 1}, "batch 1"),
        ({"width": 0}, "width 0"),
        ({"steps": 0}, "steps 0"),
        ({"compile_cap": 0}, "compile_cap 0"),
        ({"compile_cap": math.nan}, "compile_cap nan"),
        ({"stage_units": ["dens"]}, "'dens'.*'dense'"),
        ({"stage_units": ["dense"], "stage_depths": [0]}, "stage depths .0."),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, named):
    with pytest.raises(InputError, match=named):
        depth.run(tmp_path / "out", **RUN | {"depths": [8]} | options)
    assert not (tmp_path / "out").exists()


def test_torch_is_left_out_where_it_is_missing_and_refused_where_it_was_named(monkeypatch):
    monkeypatch.setattr(cells, "has_torch", lambda: False)
    (group,) = cells.nets(["basic"], None, [8], 2, 4)
    assert [cell.variant for cell in group] == ["unrolled", "scan", "unit", "sqrt", "stochastic", "flax"]
    with pytest.raises(InputError, match="torch-compile: PyTorch is not installed"):
        cells.nets(["basic"], ["scan", "torch-compile"], [8], 2, 4)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        depth.run(tmp_path / "file" / "out", depths=[8], **RUN)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["bench"],
            "its commands are `deepjax bench depth`, ",
        ),
        (["bench", "width"], "bench width"),
        (["bench", "depth", "--depths", "20;56"], "--depths '20;56' must be numbers separated by commas"),
        (["bench", "depth", "--units", "basic", "--variants", "scam"], "did you mean 'scan'"),
    ],
)
def test_the_command_line_complains_in_one_line(capsys, arguments, complaint):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_the_benchmark_says_how_it_was_called():
    options = {"units": ["basic"], "variants": None, "steps": 3, "compile_cap": 600.0, "stage_units": []}
    assert depth.command(options | {"second_start": True}) == (
        "deepjax bench depth --units basic --steps 3 --compile-cap 600 --stage-units '' --second-start"
    )


# Processes, by a worker that only pretends

PRETENDER = """
import json, os, subprocess, sys, time
cell, (log, slow, broken) = json.loads(sys.argv[-1]), sys.argv[1:4]
name = f"{cell['variant']} {cell['depth']}"
phases = ("build", "compile") if "torch" in name else ("build", "trace", "lower", "compile")
for phase in phases:
    if slow == name and phase == phases[len(phases) // 2]:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)
        open(log + ".child", "w").write(str(child.pid))
        time.sleep(60)
    print(json.dumps({"phase": phase, "seconds": 1.0, "temporaries": 5, "cache_hits": 1}), flush=True)
for line in sys.stdin:
    if broken == name:
        sys.exit("a traceback\\nMemoryError: no room")
    with open(log, "a") as file:
        file.write(name + "\\n")
    print(json.dumps({"seconds": [float(line)], "loss": 2.0, "peak": 7}), flush=True)
"""


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Sets which cell is slow to lower, and which breaks in its first step; returns the file that turns go to."""
    (tmp_path / "worker.py").write_text(PRETENDER)

    def choose(slow="", broken=""):
        log = tmp_path / "turns"
        command = [sys.executable, str(tmp_path / "worker.py"), str(log), slow, broken]
        monkeypatch.setattr(process, "WORKER", command)
        return log

    return choose


def test_cells_take_turns_and_the_first_turn_is_not_counted(tmp_path, pretend):
    turns = pretend()
    record = depth.run(tmp_path / "out", units=["basic"], variants=["scan", "flax"], depths=[14, 8], **RUN)
    assert turns.read_text().splitlines() == ["scan 8", "flax 8"] * 3 + ["scan 14", "flax 14"] * 3
    assert [(net["depth"], net["steps"], net["step"]) for net in record["nets"]] == [
        (layers, 2, depth.TURN) for layers in (8, 8, 14, 14)
    ]
    assert {(net["trace"], net["loss"], net["peak"], net["temporaries"]) for net in record["nets"]} == {
        (1.0, 2.0, 7, 5)
    }
    assert json.loads((tmp_path / "out" / "depth.json").read_text()) == record
    assert (tmp_path / "out" / "depth.md").read_text() == report.markdown(record)
    assert (tmp_path / "out" / "depth.png").stat().st_size > 10_000


def test_a_cap_ends_a_cell_with_its_children_and_spares_the_deeper_ones(tmp_path, pretend):
    turns = pretend(slow="flax 14")
    options = RUN | {"compile_cap": 2.0}
    record = depth.run(tmp_path / "out", units=["basic"], variants=["scan", "flax"], depths=[8, 14, 20], **options)
    stopped = {(net["variant"], net["depth"]): net["stopped"] for net in record["nets"] if net["stopped"]}
    assert stopped == {("flax", 14): "cap of 2 s reached in lower", ("flax", 20): "not tried: the cap hit at 14"}
    assert [net["trace"] for net in record["nets"] if net["variant"] == "flax"] == [1.0, 1.0, None]
    assert turns.read_text().splitlines()[6:] == ["scan 14"] * 3 + ["scan 20"] * 3
    child = int((tmp_path / "turns.child").read_text())
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline, "the compiler of a capped cell goes on"
        time.sleep(0.01)


def test_pytorch_has_no_phases_between_building_and_compiling(pretend):
    pretend(slow="torch-compile 14")
    with process.Process(cells.job(net("torch"))) as child:
        assert [phase["phase"] for phase in child.phases(60)] == ["build", "compile"]
    with (
        process.Process(cells.job(net("torch-compile"))) as child,
        pytest.raises(process.Ended, match="cap of 1 s .* in compile"),
    ):
        list(child.phases(1))


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_cell_that_fails_says_why_and_the_others_go_on(tmp_path, pretend):
    pretend(broken="flax 8")
    record = depth.run(tmp_path / "out", units=["basic"], variants=["flax", "scan"], depths=[8], **RUN)
    assert [net["stopped"] for net in record["nets"]] == ["failed: MemoryError: no room", None]
    assert [net["step"] for net in record["nets"]] == [None, depth.TURN]


def test_a_worker_that_was_killed_is_told_from_one_at_its_cap(pretend):
    pretend()
    with process.Process(cells.job(net())) as killed:
        assert [phase["phase"] for phase in killed.phases(60)] == list(cells.PHASES)
        os.killpg(killed._child.pid, signal.SIGKILL)
        with pytest.raises(process.Ended, match="ended by signal 9"):
            killed.turn(0.0, 60)


def test_a_second_start_is_timed_in_a_process_of_its_own(pretend):
    turns = pretend()
    record = depth.start_twice(net(), 60, lambda text: None)
    assert turns.read_text().splitlines() == ["scan 14"] * 4
    assert 0 < record["warm"] < 30
    assert record["step"] == depth.TURN


def test_no_worker_takes_from_or_leaves_a_compilation_cache(monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    monkeypatch.setattr(
        process,
        "WORKER",
        [sys.executable, "-c", "import os, sys; sys.exit(os.environ['JAX_ENABLE_COMPILATION_CACHE'])"],
    )
    for environment, word in ((None, "false"), (process.cached("folder"), "true")):
        with (
            process.Process(cells.job(net()), environment) as child,
            pytest.raises(process.Ended, match=f"failed: {word}"),
        ):
            list(child.phases(60))


# Programs


def test_a_turn_is_one_step_or_as_many_as_fit():
    class Sleeper:
        def step(self):
            time.sleep(0.01)
            return 3.0

    assert len(worker.turn(Sleeper(), 0.0)["seconds"]) == 1
    answer = worker.turn(Sleeper(), 0.1)
    assert 2 <= len(answer["seconds"]) <= 10
    assert min(answer["seconds"]) >= 0.01
    assert answer["loss"] == 3.0
    assert worker.turn(Sleeper(), 0.0, clock=time.process_time)["seconds"][0] < 0.01  # it sleeps, and computes nothing


def test_kernels_start_alike_in_stacks_and_alone():
    stacked, alone = cells.start("kernel", (5, 3, 3, 16, 32)), cells.start("kernel", (3, 3, 16, 32))
    assert (stacked == alone).all()
    n = alone.size
    assert abs(alone.var() * (9 * 16) / 2 - 1) * math.sqrt(n / 2) < 4
    assert (cells.start("kernel", (7, 8, 6)) == cells.start("kernel", (8, 6))).all()
    assert [cells.start(name, (2,)).tolist() for name in ("scale", "var", "bias", "mean")] == [
        [1, 1],
        [1, 1],
        [0, 0],
        [0, 0],
    ]


@pytest.mark.parametrize("unit", cells.UNITS)
@pytest.mark.parametrize("variant", ["unrolled", *cells.SCANNED])
def test_a_variant_is_what_its_name_says(unit, variant):
    if variant == "reversible" and unit != "reversible":
        return
    model = programs.network(net(variant, unit, 20))
    assert model.scan == (variant != "unrolled")
    assert model.remat == {"unit": "unit", "sqrt": "sqrt", "reversible": "reversible"}.get(variant, "none")
    if unit != "reversible":
        assert (model.order, model.join is Plain) == ("pre" if unit == "preact" else "post", unit == "plain")


def test_stochastic_depth_is_the_papers():
    model = programs.network(net("stochastic"))
    assert model.survival == 0.5
    assert isinstance(model.join(), Drop)
    assert model.join().per == "batch"


@pytest.mark.parametrize("unit", cells.UNITS)
def test_every_net_has_as_many_layers_as_it_says(unit):
    images = cells.images(2)[0]
    shapes = jax.eval_shape(
        lambda: programs.network(net("unrolled", unit, 20)).init(jax.random.key(0), images, train=False)
    )
    kernels = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes["params"]) if path[-1].key == "kernel"]
    assert len(kernels) == 20


def test_reversible_units_have_as_many_operations_as_basic_ones():
    unit, x = programs.reversible_unit(4), np.zeros((1, 4, 4, 8), np.float32)
    kernels = jax.eval_shape(lambda: unit.init(jax.random.key(0), x, train=False))["params"]
    assert {kernels[half]["conv1"]["kernel"].shape for half in "fg"} == {(3, 3, 4, 4)}


def losses(program, steps=3):
    phases = list(program.prepare())
    first = [phases[-1]["loss"]] if "loss" in phases[-1] else []
    return [*first, *(program.step() for _ in range(steps - len(first)))], phases


@pytest.mark.slow
def test_scan_flax_and_torch_train_the_same_net():
    ours, phases = losses(programs.Program(net("scan")))
    assert [phase["phase"] for phase in phases] == ["trace", "lower", "compile"]
    assert all(phase["seconds"] > 0 for phase in phases)
    assert phases[-1]["temporaries"] > 4 * 4 * 32 * 32 * 4  # bytes: at least one map of the first stage
    assert phases[-1]["cache_hits"] == 0
    theirs = [losses(programs.Program(net("flax")))[0]]
    if cells.has_torch():
        theirs += [losses(worker.load(cells.job(net(variant))))[0] for variant in ("torch", "torch-checkpoint")]
    assert ours[2] < ours[0]
    for other in theirs:
        assert_allclose(other, ours, rtol=2e-4)


@pytest.mark.parametrize("unit", sorted(cells.STAGES))
def test_a_stages_gradients_are_results(unit):
    (variant, *_) = cells.STAGES[unit]
    program = programs.Program(net(variant, unit, 3, kind="stage"))
    loss, gradients, _ = jax.eval_shape(program.program, program.shapes, program.batch)
    assert loss.shape == ()
    assert gradients == program.shapes["params"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(gradients)} == {3}


@pytest.mark.slow
def test_the_whole_benchmark_runs_at_a_small_size(tmp_path, capsys):
    variants = "scan,stochastic,flax" + (",torch" if cells.has_torch() else "")
    arguments = ["--units", "basic", "--variants", variants, "--depths", "8,14", "--steps", "1", "--batch", "2"]
    arguments += ["--width", "2", "--stage-units", "dense", "--stage-depths", "2", "--out", str(tmp_path / "out")]
    assert cli.main(["bench", "depth", *arguments]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "depth.json").read_text())
    assert all(net["stopped"] is None and net["step"] > 0 for net in record["nets"])
    assert len(record["nets"]) == 2 * len(variants.split(","))
    for layers in (8, 14):
        found = [net["loss"] for net in record["nets"] if net["depth"] == layers]
        assert_allclose(found, found[0], rtol=1e-3)
    assert [(stage["variant"], stage["depth"]) for stage in record["stages"]] == [("scan", 2), ("sqrt", 2)]
    assert [start["variant"] for start in record["starts"]] == ["scan"]
    assert all(start["cache_hits"] > 0 and start["warm"] < start["cold"] for start in record["starts"])
    assert all(title in said for title in ("Stages of equal units", "to its first step", "Exponents"))
