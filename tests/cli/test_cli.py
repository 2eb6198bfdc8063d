"""The command line: exit codes and lines, in this process."""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepjax import cli, zoo
from deepjax.cli import configs
from deepjax.cli.terminal import parse
from deepjax.config import Config, Optimizer

DENSE = ["--model", "mlp", "--model-options", "depth=2", "width=8", "--devices.count", "1"]
XOR = ["--data.name", "xor", "--data.augment.translate", "0", "--data.augment.scale", "0", *DENSE]


def here(capsys, *arguments):
    """Run a command in this process: (exit code, output, error)."""
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The folder and the output of a short `deepjax train digits`."""
    folder = tmp_path_factory.mktemp("cli") / "digits"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["train", "digits", "--epochs", "3", "--batch-size", "128", *DENSE, "--workdir", str(folder)])
    assert (code, err.getvalue()) == (0, "")
    return folder, out.getvalue()


def test_training_prints_what_it_does_in_plain_lines(digits_run):
    folder, out = digits_run
    assert "digits: 1,297 training, 200 validation, 300 test examples of 8x8x1, 10 classes" in out
    for text in ("mlp: 610 parameters", "1 x cpu", "compiled in", "epoch 3/3", "test error"):
        assert text in out
    assert "\x1b" not in out
    assert (folder / "summary.json").exists()


def test_eval_reports_classes_and_top_5(digits_run, capsys):
    folder, _ = digits_run
    code, out, err = here(capsys, "eval", folder, "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    summary = json.loads((folder / "summary.json").read_text())
    assert record["error"] == summary["test_error"]
    assert len(record["classes"]) == 10
    counts = np.array([row["examples"] for row in record["classes"].values()])
    errors = np.array([row["error"] for row in record["classes"].values()])
    np.testing.assert_allclose((counts * errors).sum() / counts.sum(), record["error"])
    assert 0 <= record["calibration_error"] <= 1
    assert record["top5_error"] <= record["error"]
    code, out, _ = here(capsys, "eval", folder, "--split", "validation")
    assert code == 0
    assert "top-5 error" in out
    assert "200 examples" in out


def test_eval_averages_views_and_writes_pictures(digits_run, tmp_path, capsys):
    folder, _ = digits_run
    code, out, err = here(capsys, "eval", folder, "--views", 2, "--pictures", tmp_path / "new" / "pictures")
    assert (code, err) == (0, "")
    assert "300 examples, 2 views of each" in out
    assert sorted(path.name for path in (tmp_path / "new" / "pictures").iterdir()) == ["confusion.png", "worst.png"]
    one, two = (json.loads(here(capsys, "eval", folder, "--views", n, "--json")[1])["loss"] for n in (1, 2))
    assert one != two


def test_eval_has_no_top_5_of_two_classes(tmp_path, capsys):
    assert here(capsys, "train", "digits", *XOR, "--epochs", 1, "--workdir", tmp_path / "run")[0] == 0
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


def test_predict_reads_subfolders_and_writes_csv_and_a_sheet(digits_run, tmp_path, capsys):
    folder, _ = digits_run
    for k, place in enumerate(("a", "a/b", ".hidden")):
        (tmp_path / "images" / place).mkdir(parents=True)
        write_digit(tmp_path / "images" / place / "digit.png", k)
    (tmp_path / "images" / "broken.png").write_bytes(b"")
    code, out, err = here(capsys, "predict", folder, tmp_path / "images", "--csv", "--show", tmp_path / "sheet.png")
    assert code == 1
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["deepjax"] * 2
    rows = list(csv.DictReader(out.splitlines()))
    assert [Path(row["image"]).relative_to(tmp_path / "images").as_posix() for row in rows] == [
        "a/b/digit.png",
        "a/digit.png",
        "broken.png",
    ]
    assert 0 < float(rows[0]["probability_1"]) <= 1
    assert rows[2]["class_1"] == ""
    assert "cannot be read" in rows[2]["error"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 200
    code, _, err = here(capsys, "predict", folder, tmp_path / "images", "--csv", "--json")
    assert (code, err) == (2, "deepjax: --json and --csv exclude each other; leave one out\n")


def test_a_sample_folder_trains(tmp_path, capsys):
    code, out, err = here(capsys, "datasets", "sample", tmp_path / "photos")
    assert (code, out, err) == (0, f"108 images in {tmp_path / 'photos'}\n", "")
    code, _, err = here(capsys, "datasets", "sample", tmp_path / "photos")
    assert (code, err.count("\n")) == (2, 1)
    options = ["--data.image-size", 16, "--epochs", 1, *DENSE, "--workdir", tmp_path / "run"]
    code, out, err = here(capsys, "train", "photos", "--data-dir", tmp_path / "photos", *options)
    assert (code, err) == (0, "")
    assert "22 of 108 images were drawn for testing, with seed 0" in out
    assert re.search("compiling the training step: about [0-9]+ s", out)
    assert out.splitlines()[-1].endswith(f"; next: deepjax predict {tmp_path / 'run'} IMAGE-or-FOLDER")
    assert json.loads((tmp_path / "run" / "data.json").read_text())["notes"]


def test_models(capsys):
    code, out, _ = here(capsys, "models", "resnet*", "vgg11", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["vgg11"] == {"parameters": 132_863_336, "input": [224, 224, 3], "weights": "hub"}
    assert found["resnet50_paper"]["weights"] == ""
    code, out, _ = here(capsys, "models")
    assert max(map(len, out.splitlines())) <= 100
    assert len(out.splitlines()) == len(zoo.MODELS) + 2
    code, out, _ = here(capsys, "models", "--options", "resnet18", "--json")
    assert json.loads(out)["shortcut"] == "B"


def test_datasets_and_summary(capsys, tmp_path):
    code, out, _ = here(capsys, "datasets", "--data-dir", tmp_path)
    assert code == 0
    assert "digits" in out
    assert "deepjax datasets prepare mnist" in out
    code, out, _ = here(capsys, "summary", "cifar_resnet20", "--input", "32,32,3", "--json")
    record = json.loads(out)
    assert record["parameters"] == 269_722
    assert sum(layer["parameters"] for layer in record["layers"]) == 269_722
    code, out, _ = here(capsys, "summary", "alexnet")
    assert "61,100,840 parameters" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["digits", "--epochs", "3"], "did you mean `deepjax train digits --epochs 3`?"),
        (["train", "digits", "--lr", "0.1"], "option --lr is unknown; did you mean --optimizer.learning-rate?"),
        (["train", "digits", "--learning_rate=0.1"], "did you mean --optimizer.learning-rate?"),
        (["train", "digits", "--optimizer", "adam"], "did you mean --optimizer.name?"),
        (["train", "digits", "--dataset", "mnist"], "did you mean --data.name?"),
        (["train", "digits", "--depth", "20"], "did you mean --model-options depth=?"),
        (["train", "digits", "--optimizer.lr", "3"], "did you mean --optimizer.learning-rate?"),
        (["train", "digits", "--momentum", "0.8"], "did you mean --optimizer.momentum?"),
        (["models", "resnet*", "nonsense"], "models nonsense: no such network"),
        (["predict", "resnet18", "x.png", "--show", "sheet.jpg"], "give a file that ends in .png"),
        (["train", "digits", "--model", "resnet18", "--pretrained", "resnt18"], "pretrained resnt18 is no folder"),
        (["find-lr", "digits", "--flip", "true"], "did you mean --data.augment.flip?"),
        (["eval", "nowhere", "--lr", "1"], "--lr"),
        (["train", "digit"], "did you mean 'digits'"),
        (["train", "nothing.py"], "'nothing.py' is unknown and no .py file"),
        (["train", "digits", "--epochs", "-1"], "epochs -1 must be at least 1"),
        (["train", "digits", "--epochs", "many"], "many"),
        (["train", "digits", "--epochs"], "--epochs"),
        (["train", "digits", "--optimiser.name", "sgd"], "did you mean --optimizer.name"),
        (["train", "digits", "--optimizer.name", "sdg"], "did you mean 'sgd'"),
        (["train", "digits", "--dtype", "float16"], "float16"),
        (["train", "digits", "--optimizer.learning-rate", "nan"], "optimizer.learning_rate nan must be finite"),
        (["train", "digits", "--optimizer.groups", "{'head': 1}"], "is not JSON"),
        (["train", "digits", "--optimizer.groups", "[1]"], "is not like"),
        (["train", "digits", "--model-options", "depth=1e999"], "model_options.depth inf must be finite"),
        (["train", "digits", "--seed", "-1"], "seed -1 must be in [0, 4294967296)"),
        (["predict", "resnet18", "x.png", "--top", "0"], "top 0 must be at least 1"),
        (["train", "digits", "--model", "cifar_resnt20"], "did you mean 'cifar_resnet20'"),
        (["train", "digits", "--model", "cifar_resnet", "--model-options", "dpth=8"], "did you mean 'depth'"),
        (["train", "digits", "--data.name", "mnits"], "did you mean 'mnist'"),
        (["train", "mnist_resnet", "--data-dir", "EMPTY"], "deepjax datasets prepare mnist"),
        (["train", "digits", "--model-options", "depth"], "'depth' is not NAME=VALUE"),
        (["train", "digits", "--model-options"], "NAME=VALUE is missing"),
        (["train", "digits", "--schedule.factor", "0.5"], "belongs to the schedule exponential or step or plateau"),
        (["train", "digits", "--batch-size", "5000"], "batch_size 5000"),
        (["eval", "nowhere"], "nowhere holds no run"),
        (["predict", "nowhere", "x.png"], "nowhere is no folder of a run"),
        (["predict", "nowhere"], "predict needs images"),
        (["eval"], "eval needs a run"),
        (["eval", "nowhere", "--average", "votes"], "votes"),
        (["find-lr", "digit"], "did you mean 'digits'"),
        (["find-lr", "digits", "--min-rate", "20"], "min_rate 20.0 and max_rate 10.0 must be"),
        (["find-lr", "digits", "--epochs", "-1"], "epochs -1 must be at least 1"),
        (["train", "digits", "--swa-start", "41"], "swa_start 41 must be an epoch"),
        (["train", "digits", "--snapshots", "4"], "set schedule.name warm_restarts and schedule.period 10"),
        (["train", "digits", "--min-rate", "1"], "--min-rate"),
        (["find-lr", "digits", "--steps", "9"], "steps 9 must be at least 10"),
        (["find-lr", "digits", "--smoothing", "1"], "smoothing 1.0 must be in [0, 1)"),
        (["summary", "resnet19"], "did you mean 'resnet1"),
        (["summary", "resnet18", "--input", "wide"], "'wide' must be numbers"),
        (["summary", "resnet18", "--input", "32,32"], "[batch, height, width, channels]"),
        (["summary", "resnet18", "--input", "0,32,3"], "at least 1"),
        (["convert", "vgg11", "a.pth", "b.safetensors", "--options", "num_classes=3"], "is not an option of a network"),
        (["compare", "resnet18", "torchvision", "--options", "revision=3"], "revision is not an option of a network"),
        (["train", "digits", "--model-options", "name=3"], "name is not an option"),
        (["train", "digits", "--model", "cifar_resnet", "--model-options", "depth=deep"], "'deep'; it must be"),
        (["models", "resnt18"], "did you mean 'resnet18'"),
        (["models", "--options", "resnt18"], "did you mean 'resnet18'"),
        (["models", "vgg*", "--options", "resnet18"], "give one of the two"),
        (["eval", "nowhere", "--views", "3"], "views"),
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


def test_help_and_version(capsys):
    code, out, _ = here(capsys, "--help")
    assert code == 0
    for name, command in cli.COMMANDS.items():  # each with its own docstring's first line
        assert re.search(rf"^  {name} +{re.escape(command.__doc__.splitlines()[0])}$", out, re.MULTILINE)
    assert here(capsys)[0] == 2
    code, out, _ = here(capsys, "--version")
    assert code == 0
    assert out.startswith("deepjax 0.")
    code, out, _ = here(capsys, "train", "--help")
    assert code == 0
    assert "mnist_resnet" in out
    for command, option in (("train", "--optimizer.learning-rate"), ("find-lr", "--min-rate"), ("plan", "--epochs")):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "digits", "--help"])
        assert stop.value.code == 0
        assert option in capsys.readouterr().out


def test_options_and_groups_are_read_and_default_to_those_of_the_config():
    groups = {"head/*": {"learning_rate": 0.5, "clip_adaptive": None}, "stem*": {"frozen": True}}
    assert parse(Optimizer, ["--groups", json.dumps(groups)], "x").groups == groups
    assert parse(Optimizer, [], "x", default=Optimizer(groups=groups)).groups == groups
    options = {"depth": 38, "shortcut": "B", "scan": False, "remat": None, "rate": 0.5}
    words = ["depth=38", "shortcut=B", "scan=False", "remat=null", "rate=0.5"]
    assert parse(Config, ["--model-options", *words], "x").model_options == options
    assert parse(Config, [], "x", default=Config(model_options=options)).model_options == options


def test_a_config_file_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Mine."""\nfrom deepjax.config import *\n'
        "config = Config(data=Data(name='xor'), model='mlp', model_options={'depth': 2, 'width': 8},"
        " epochs=1, devices=Devices(count=1))\n"
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


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b"# -*- coding: latin-1 -*-\n"])
def test_a_config_file_names_its_own_encoding(tmp_path, start):
    text = '"""Pr\u00fcfung."""\nfrom deepjax.config import *\nconfig = Config(data_dir="\u00fc")\n'
    path = tmp_path / "mine.py"
    path.write_bytes(start + text.encode("latin-1" if b"latin" in start else "utf-8"))
    assert configs.docstring(path) == "Pr\u00fcfung."
    assert configs.load(path).data_dir == "\u00fc"


def test_a_config_file_that_exits_is_refused(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("import sys; sys.exit(3)")
    code, _, err = here(capsys, "train", tmp_path / "mine.py")
    assert (code, err.count("\n")) == (2, 1)
    assert "SystemExit" in err


@pytest.mark.parametrize(("encoding", "printed"), [("cp1252", b"\\u732b \xfc"), ("ascii", b"\\u732b \\xfc")])
def test_letters_that_a_terminal_lacks_are_escaped(monkeypatch, encoding, printed):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    monkeypatch.setitem(cli.COMMANDS, "models", lambda arguments: print("\u732b \u00fc") or 0)
    assert cli.main(["models"]) == 0
    assert cli.main(["\u732b"]) == 2
    streams[1].flush()
    assert streams[0].buffer.getvalue().rstrip() == printed
    assert rb"deepjax: command '\u732b' is unknown" in streams[1].buffer.getvalue()


def test_a_path_that_the_locale_cannot_encode_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "models", lambda arguments: "\udcff".encode())
    code, _, err = here(capsys, "models")
    assert (code, err.count("\n")) == (2, 1)
    assert "set PYTHONUTF8=1" in err


@pytest.mark.parametrize(("arguments", "number"), [((), 2), ((15,), 15)])
def test_an_interrupt_is_one_line(capsys, monkeypatch, arguments, number):
    def interrupted(_):
        raise KeyboardInterrupt(*arguments)

    monkeypatch.setitem(cli.COMMANDS, "models", interrupted)
    code, _, err = here(capsys, "models")
    assert (code, err.count("\n")) == (128 + number, 1)


def test_a_loss_that_is_not_finite_ends_with_1(tmp_path, capsys):
    command = ["train", "digits", *XOR, "--schedule.name", "constant", "--optimizer.learning-rate", 1e30]
    code, _, err = here(capsys, *command, "--workdir", tmp_path / "run")
    assert code == 1
    assert "learning rate 1e+30" in err
    assert err.count("\n") == 1


@pytest.mark.skipif(not os.path.ismount("/dev/shm") or os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_is_one_line(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        code, _, err = here(capsys, "train", "digits", "--epochs", 1, *XOR, "--workdir", disk / "run")
        assert code == 2
        assert err.count("\n") == 1, err
        assert "space" in err
    finally:
        subprocess.run(["umount", str(disk)], check=True)
