"""The command line as users meet it: a process of its own, its exit code, its lines."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

import helpers
from deepjax import cli
from deepjax.cli import compile_cache
from deepjax.runs.checkpoint import Checkpoints

DEEPJAX = [sys.executable, "-m", "deepjax"]
TINY = [
    "--model", "cifar_resnet", "--model-options", "depth=8", "width=4", "--batch-size", "128",
]  # fmt: skip
SHARED = helpers.TFDS


def start(*arguments, folder, **environment):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")} | environment
    return subprocess.Popen(
        [*DEEPJAX, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, folder, **environment):
    process = start(*arguments, folder=folder, **environment)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def here(capsys, *arguments):
    """A command in this process: (exit code, output, error)."""
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A short run of `deepjax train digits` in a process of its own."""
    folder = tmp_path_factory.mktemp("cli")
    code, out, err = run("train", "digits", "--epochs", 3, *TINY, folder=folder)
    assert (code, err) == (0, "")
    return folder / "runs" / "digits", out


def test_training_prints_what_it_does_in_plain_lines(digits_run):
    folder, out = digits_run
    assert "digits: 1,297 training, 200 validation, 300 test examples of 8x8x1, 10 classes" in out
    for text in ("cifar_resnet: 4,934 parameters", "1 x cpu", "compiled in", "epoch 3/3", "test error"):
        assert text in out
    assert "\x1b" not in out
    assert (folder / "summary.json").exists()


def without_times(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in lines if line.endswith("}")]  # a kill may have cut the last one short
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def wait_for_records(folder, count):
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "training wrote no records"
        time.sleep(0.01)


def newest_state(folder):
    manager = Checkpoints(folder / "checkpoints")
    state = manager.manager.restore(manager.steps[-1])["state"]
    manager.close()
    return jax.tree.map(np.asarray, state)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signalled_run_resumes_to_the_same_numbers(tmp_path, number):
    command = [
        "train",
        "digits",
        "--epochs",
        6,
        "--log-every",
        1,
        "--checkpoint-every",
        5,
        *TINY,
        "--workdir",
    ]
    process = start(*command, "stopped", folder=tmp_path)
    wait_for_records(tmp_path / "stopped", 17)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert err.count("\n") == 1
        assert f"stopped by {number.name} at step" in err
        assert "the same command continues" in err
    reached = max(record["step"] for record in without_times(tmp_path / "stopped"))
    code, out, _ = run(*command, "stopped", folder=tmp_path)
    assert code == 0
    resumed = int(re.search(r"continuing at step (\d+)", out)[1])
    assert resumed >= (reached - 5 if number == signal.SIGKILL else reached)  # a checkpoint every 5 steps
    assert run(*command, "whole", folder=tmp_path)[0] == 0
    assert without_times(tmp_path / "stopped") == without_times(tmp_path / "whole")
    states = [newest_state(tmp_path / name) for name in ("stopped", "whole")]
    chex.assert_trees_all_equal(*states)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("stopped", "whole")]
    assert summaries[0]["test_loss"] == summaries[1]["test_loss"]


def test_eval_reports_classes_and_top_5(digits_run, capsys):
    folder, _ = digits_run
    code, out, err = here(capsys, "eval", folder, "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    summary = json.loads((folder / "summary.json").read_text())
    assert record["error"] == summary["test_error"]
    assert len(record["class_errors"]) == 10
    assert record["top5_error"] <= record["error"]
    code, out, _ = here(capsys, "eval", folder, "--split", "validation")
    assert code == 0
    assert "top-5 error" in out
    assert "200 examples" in out


def test_eval_has_no_top_5_of_two_classes(tmp_path, capsys):
    command = [
        "train",
        "digits",
        "--data.name",
        "xor",
        "--model",
        "mlp",
        "--epochs",
        1,
        "--workdir",
        tmp_path / "run",
    ]
    options = ["--data.augment.translate", 0, "--data.augment.scale", 0, "--devices.count", 1]
    assert here(capsys, *command, *options)[0] == 0
    code, out, _ = here(capsys, "eval", tmp_path / "run", "--json")
    assert code == 0
    assert "top5_error" not in json.loads(out)
    code, _, err = here(capsys, "predict", tmp_path / "run", tmp_path)
    assert code == 2
    assert "not on images" in err


def write_digit(path, index=0):
    from sklearn.datasets import load_digits

    Image.fromarray((load_digits().images[index] * 255 / 16).round().astype(np.uint8)).save(path)


def test_predict_reads_files_and_folders_and_goes_on_past_broken_ones(digits_run, tmp_path, capsys):
    folder, _ = digits_run
    write_digit(tmp_path / "zero.png")
    write_digit(tmp_path / "one.png", 1)
    code, out, err = here(capsys, "predict", folder, tmp_path, "--json", "--top", 3)
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert [Path(row["image"]).name for row in rows] == ["one.png", "zero.png"]
    assert len(rows[0]["classes"]) == 3
    assert rows[0]["classes"][0]["probability"] >= rows[0]["classes"][1]["probability"]
    (tmp_path / "broken.png").write_bytes((tmp_path / "zero.png").read_bytes()[:40])
    code, out, err = here(capsys, "predict", folder, tmp_path)
    assert code == 1
    assert "broken.png" in err
    assert err.count("\n") == 1
    assert "zero.png" in out
    code, out, err = here(capsys, "predict", folder, tmp_path / "zero.png", tmp_path / "missing.png")
    assert code == 1
    assert "missing.png" in err
    assert "zero.png" in out


def test_models_datasets_and_summary(capsys, tmp_path):
    code, out, _ = here(capsys, "models", "--json")
    assert code == 0
    assert json.loads(out)["resnet18"]["shortcut"] == "B"
    code, out, _ = here(capsys, "datasets", "--data-dir", tmp_path)
    assert code == 0
    assert "digits" in out
    assert "deepjax datasets prepare mnist" in out
    code, out, _ = here(capsys, "summary", "cifar_resnet20", "--input", "32,32,3", "--json")
    record = json.loads(out)
    assert record["parameters"] == 269_722
    assert sum(layer["parameters"] for layer in record["layers"]) == 269_722
    code, out, _ = here(capsys, "summary", "resnet18")
    assert "11,689,512 parameters" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "digit"], "did you mean 'digits'"),
        (["train", "nothing.py"], "'nothing.py' is unknown and no file"),
        (["train", "digits", "--epochs", "-1"], "epochs -1 must be at least 1"),
        (["train", "digits", "--epochs", "many"], "many"),
        (["train", "digits", "--epochs"], "--epochs"),
        (["train", "digits", "--optimiser.name", "sgd"], "did you mean --optimizer.name"),
        (["train", "digits", "--optimizer.name", "sdg"], "sdg"),
        (["train", "digits", "--model", "cifar_resnt20"], "did you mean 'cifar_resnet20'"),
        (["train", "digits", "--model", "cifar_resnet", "--model-options", "dpth=8"], "did you mean 'depth'"),
        (["train", "digits", "--data.name", "mnits"], "did you mean 'mnist'"),
        (["train", "mnist_resnet", "--data-dir", "EMPTY"], "deepjax datasets prepare mnist"),
        (["train", "digits", "--model-options", "depth"], "'depth' is not NAME=VALUE"),
        (["train", "digits", "--model-options"], "NAME=VALUE is missing"),
        (["train", "digits", "--schedule.factor", "0.5"], "belongs to the schedule exponential or step or plateau"),
        (["train", "digits", "--batch-size", "5000"], "batch_size 5000"),
        (["eval", "nowhere"], "nowhere holds no run"),
        (["predict", "nowhere", "x.png"], "nowhere holds no run"),
        (["predict", "nowhere"], "predict needs images"),
        (["eval"], "eval needs a run"),
        (["eval", "nowhere", "--average", "votes"], "votes"),
        (["find-lr", "digit"], "did you mean 'digits'"),
        (["find-lr", "digits", "--min-rate", "20"], "min_rate 20.0 and max_rate 10.0 must be finite"),
        (["find-lr", "digits", "--epochs", "-1"], "epochs -1 must be at least 1"),
        (["train", "digits", "--swa-start", "41"], "swa_start 41 must be an epoch"),
        (["train", "digits", "--snapshots", "4"], "set schedule.name warm_restarts and schedule.period 10"),
        (["train", "digits", "--min-rate", "1"], "--min-rate"),
        (["summary", "resnet19"], "did you mean 'resnet1"),
        (["summary", "resnet18", "--input", "wide"], "'wide' must be numbers"),
        (["summary", "resnet18", "--input", "32,32"], "[batch, height, width, channels]"),
        (["summary", "resnet18", "--input", "0,32,3"], "at least 1"),
        (["datasets", "prepare"], "missing argument: TFDS's name"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    code, out, err = here(capsys, *command)
    assert code == 2
    assert err.startswith("deepjax: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_reader_that_goes_away_does_not_end_the_training(tmp_path):
    process = start("train", "digits", "--epochs", 1, *TINY, folder=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    process.wait(timeout=300)
    assert (tmp_path / "runs" / "digits" / "summary.json").exists()


def test_help_and_version(capsys):
    assert here(capsys, "--help")[0] == 0
    code, out, _ = here(capsys, "--version")
    assert code == 0
    assert out.startswith("deepjax 0.")
    code, out, _ = here(capsys, "train", "--help")
    assert code == 0
    assert "mnist_resnet" in out
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "digits", "--help"])
    assert stop.value.code == 0
    assert "--optimizer.learning-rate" in capsys.readouterr().out


def test_a_config_file_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Mine."""\nfrom deepjax.config import *\n'
        "config = Config(data=Data(name='disc'), model='mlp', epochs=1, devices=Devices(count=1))\n"
    )
    code, out, err = here(capsys, "train", path, "--workdir", tmp_path / "run")
    assert (code, err) == (0, "")
    for text, message in (
        ("config = 3", "must define"),
        ("1 / 0", "ZeroDivisionError"),
        ("(", "SyntaxError"),
    ):
        path.write_text(text)
        code, _, err = here(capsys, "train", path, "--workdir", tmp_path / "other")
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_a_loss_that_is_not_finite_ends_with_1(tmp_path, capsys):
    command = ["train", "digits", *TINY, "--schedule.name", "constant", "--optimizer.learning-rate", 1e30]
    code, _, err = here(capsys, *command, "--devices.count", 1, "--workdir", tmp_path / "run")
    assert code == 1
    assert "learning rate 1e+30" in err
    assert err.count("\n") == 1


IMPORTS = """
import importlib, pkgutil, sys
import deepjax
for module in pkgutil.walk_packages(deepjax.__path__, "deepjax."):
    if ".configs" not in module.name:
        importlib.import_module(module.name)
from deepjax import cli
code = cli.main(["train", "digits", "--epochs", "1", *sys.argv[1:]])
found = [name for name in ("tensorflow", "torch", "chex", "pytest") if name in sys.modules]
sys.exit(f"imported {found}" if found else code)
"""


def test_neither_tensorflow_nor_torch_is_ever_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *TINY], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


def test_a_config_and_help_do_not_wait_for_jax(tmp_path):
    script = "import sys, deepjax.config, deepjax.cli; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path).returncode == 0


def test_a_second_start_compiles_nothing_and_gives_the_same_numbers(tmp_path):
    """Programs are kept: a second run writes no new one, and reads the step, of which JAX notes the time."""
    cache = tmp_path / "cache"
    keep = {"XDG_CACHE_HOME": str(cache), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    keep |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    records, kept, read = [], [], []
    for name in ("first", "second"):
        code, _, err = run("train", "digits", "--epochs", 1, *TINY, "--workdir", name, folder=tmp_path, **keep)
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


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    compile_cache.keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_process_that_has_jax_already_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    compile_cache.keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_cache_of_the_users_own_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE", raising=False)
    compile_cache.keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "own")
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert not (tmp_path / "ours").exists()


def test_programs_of_another_processor_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for processor in ("one", "other", "one"):
        monkeypatch.setattr(compile_cache, "_processor", lambda processor=processor: processor)
        monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "0")  # so that what is set here is undone
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        compile_cache.keep_compiled()
        folders.add(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert len(folders) == 2


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason=f"needs prepared MNIST in {SHARED}")
def test_mnist_without_tensorflow(tmp_path):
    command = ["train", "mnist_resnet", "--data-dir", SHARED, "--model-options", "width=2"]
    code, out, err = run(*command, "--epochs", 1, "--batch-size", 1000, "--workdir", "run", folder=tmp_path)
    assert code == 0, err
    assert "57,000 training, 3,000 validation, 10,000 test" in out
    options = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["model_options"]
    assert options == {"stem_stride": 2, "width": 2}


@pytest.mark.skipif(not os.path.ismount("/dev/shm") or os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_is_one_line(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        code, _, err = run("train", "digits", "--epochs", 1, *TINY, "--workdir", disk / "run", folder=tmp_path)
        assert code == 2
        assert err.count("\n") == 1, err
        assert "space" in err
    finally:
        subprocess.run(["umount", str(disk)], check=True)
