"""`deepjax doctor`."""

import json

import pytest

from deepjax.cli import main

NET = """
import flax.linen as nn

def make_model():
    return nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(16), nn.relu, nn.Dense(4), nn.{final}])

def broken():
    raise ValueError("no such thing")
"""


def test_a_function_of_a_file(tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET.format(final="softmax"), encoding="utf-8")
    words = ["doctor", f"{tmp_path}/net.py:make_model", "--input", "4,4,1", "--classes", "4", "--examples", "64"]
    assert main([*words, "--budget", "2", "--json", "--out", str(tmp_path / "report.html")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["findings"][0]["code"] == "wrong_output_activation"
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!")


def test_a_config(capsys):
    words = ["doctor", "toy", "--budget", "2", "--epochs", "30"]
    assert main(words) in (0, 1)
    assert "layer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nowhere.py:make_model", "--input", "3"], "no such file"),
        (["{}/net.py:other", "--input", "3"], "no function other"),
        (["{}/net.py:broken", "--input", "3"], "ValueError"),
        (["{}/net.py:make_model", "--input", "3,x"], "--input '3,x'"),
        (["{}/net.py:make_model"], "--input ''"),
        (["toy", "--out", "report.pdf"], ".html or .json"),
        (["toy", "--budget", "0"], "budget"),
        (["no_such_config"], "is unknown"),
    ],
)
def test_wrong_arguments_are_one_line(words, problem, tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET.format(final="relu"), encoding="utf-8")
    assert main(["doctor", *(word.format(tmp_path) for word in words)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert problem in lines[0]
