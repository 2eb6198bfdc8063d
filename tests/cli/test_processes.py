"""What needs a separate process: signals, a closed output pipe, imports, stored programs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import pytest

import helpers

DEEPJAX = [sys.executable, "-m", "deepjax"]
TINY = ["--model", "cifar_resnet", "--model-options", "depth=8", "width=4", "--devices.count", "1"]
DENSE = ["--model", "mlp", "--model-options", "depth=2", "width=8", "--devices.count", "1"]
XOR = ["--data.name", "xor", "--data.augment.translate", "0", "--data.augment.scale", "0", *DENSE]


def start(*arguments, folder, command=DEEPJAX, **environment):
    """Start a command in a separate process."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"} | environment
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, folder, **environment):
    """Run a command in a separate process: (exit code, output, error)."""
    process = start(*arguments, folder=folder, **environment)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def without_times(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in lines if line.endswith("}")]  # a kill may have cut the last one short
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def wait_for_records(folder, count):
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "training wrote no records"
        time.sleep(0.01)


SIX_EPOCHS = ["train", "digits", "--epochs", 6, "--log-every", 1, "--checkpoint-every", 5, "--batch-size", 128, *TINY]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run in a separate process that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(*SIX_EPOCHS, "--workdir", "run", folder=folder)[0] == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signalled_run_resumes_to_the_same_numbers(tmp_path, uninterrupted, number):
    process = start(*SIX_EPOCHS, "--workdir", "run", folder=tmp_path)
    wait_for_records(tmp_path / "run", 17)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert err.count("\n") == 1
        assert f"stopped by {number.name} at step" in err
        assert "the same command" in err
    reached = max(record["step"] for record in without_times(tmp_path / "run"))
    code, out, _ = run(*SIX_EPOCHS, "--workdir", "run", folder=tmp_path)
    assert code == 0
    resumed = int(re.search(r"at step (\d+)", out)[1])
    assert resumed >= (reached - 5 if number == signal.SIGKILL else reached)  # a checkpoint every 5 steps
    assert without_times(tmp_path / "run") == without_times(uninterrupted)
    chex.assert_trees_all_equal(*map(helpers.newest_state, (tmp_path / "run", uninterrupted)))
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "run", uninterrupted)]
    assert summaries[0]["test_loss"] == summaries[1]["test_loss"]


SCRIPT = [sys.executable, "-c", "import sys; from deepjax.__main__ import main; sys.exit(main())"]  # as installed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [DEEPJAX, SCRIPT], ids=["module", "script"])
def test_a_signal_ends_a_process_with_one_line_from_its_first_instruction_on(tmp_path, command, number):
    """At the import of JAX, in the setup, in compilation; `tests/faults/interrupt.py` tries many more times."""
    for seconds in (0, 0.15, 0.7, 2.5):
        process = start("train", "digits", *TINY, folder=tmp_path, command=command)
        while not handles(process.pid, signal.SIGTERM):
            time.sleep(0.001)
        time.sleep(seconds)
        process.send_signal(number)
        sent = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err.count("\n")) == (128 + number, 1), err
        assert err.startswith(f"deepjax: stopped by {number.name}")
        assert time.monotonic() - sent < 30


def handles(pid, number):
    """Return whether a process has a handler of a signal, from the kernel."""
    caught = int(Path(f"/proc/{pid}/status").read_text(encoding="utf-8").partition("SigCgt:")[2].split()[0], 16)
    return bool(caught & 1 << (number - 1))


@pytest.mark.slow
def test_a_signal_to_a_command_that_waits_for_a_child_process_ends_both(tmp_path):
    process = start("plan", "digits", folder=tmp_path)
    for line in process.stdout:
        if line.startswith("remat"):  # the head of the table: the first choice is compiled next
            break
    time.sleep(0.5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (130, 1), err
    assert children
    time.sleep(0.5)
    assert not [pid for pid in children if runs(pid)]


def runs(pid):
    """Return whether a process runs; one that has ended has no command line, even before its parent has noticed."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def test_a_reader_that_goes_away_does_not_end_the_training(tmp_path):
    process = start("train", "digits", "--epochs", 1, *XOR, folder=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    process.wait(timeout=300)
    assert (tmp_path / "runs" / "digits" / "summary.json").exists()


IMPORTS = """
import contextlib, importlib, io, pkgutil, sys
import deepjax
from deepjax import cli

def imported(*names):
    return [name for name in names if name in sys.modules]

SLOW = ("jax", "flax", "orbax", "matplotlib", "rich", "tensorflow", "torch", "tensorboard")
for arguments in ([], ["--help"], ["train", "--help"], ["train", "digits", "--help"], ["find-lr", "digits", "--help"]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        cli.main(arguments)
    assert out.getvalue(), arguments
    assert not imported(*SLOW), (arguments, imported(*SLOW))
OTHERS = ("benchmarks.systems.torch", "benchmarks.systems.keras")  # only a benchmark's child processes import these
for module in pkgutil.walk_packages(deepjax.__path__, "deepjax."):
    if ".configs" not in module.name and not any(name in module.name for name in OTHERS):
        importlib.import_module(module.name)
assert not imported("matplotlib", "tensorflow", "torch", "chex", "pytest"), imported("matplotlib", "tensorflow")
code = cli.main(["train", "digits", "--epochs", "1", *sys.argv[1:]])
assert not imported("tensorflow", "torch", "chex", "pytest")
sys.exit(code)
"""


def test_what_is_imported_when(tmp_path):
    """Help imports nothing slow; the library no matplotlib before a figure; nothing TensorFlow or PyTorch."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *XOR], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_gives_the_same_numbers(tmp_path):
    """Programs are kept: a second run writes no new one, and reads the step, of which JAX notes the time."""
    cache = tmp_path / "cache"
    keep = {"XDG_CACHE_HOME": str(cache), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    keep |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    records, kept, read = [], [], []
    for name in ("first", "second"):
        code, _, err = run("train", "digits", "--epochs", 1, *XOR, "--workdir", name, folder=tmp_path, **keep)
        assert (code, err) == (0, "")
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        records.append([{k: v for k, v in line.items() if "second" not in k} for line in lines])
        kept.append({path.name for path in cache.rglob("*-cache")})
        read.append({path.name: path.read_bytes() for path in cache.rglob("*-atime")})
    assert records[0] == records[1]
    assert kept[0] == kept[1]
    steps = [name for name in read[0] if name.startswith("jit_step")]
    assert steps
    assert all(read[0][name] != read[1][name] for name in steps)


@pytest.mark.slow
@pytest.mark.skipif(not helpers.TFDS.exists(), reason=f"needs prepared MNIST in {helpers.TFDS}")
def test_mnist_without_tensorflow(tmp_path):
    command = ["train", "mnist_resnet", "--data-dir", helpers.TFDS, "--model-options", "width=2"]
    code, out, err = run(*command, "--epochs", 1, "--batch-size", 1000, "--workdir", "run", folder=tmp_path)
    assert code == 0, err
    assert "57,000 training, 3,000 validation, 10,000 test" in out
    options = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["model_options"]
    assert options == {"stem_stride": 2, "width": 2}
