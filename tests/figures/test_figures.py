"""What all experiments have in common."""

import dataclasses
import json

import pytest

from deepjax import cli, figures
from deepjax.figures import Settings, find


@pytest.mark.parametrize("name", figures.FIGURES)
def test_an_experiment_is_whole(name):
    experiment = find(name)
    assert experiment.SOURCE
    assert "\n" not in experiment.TITLE
    assert all(callable(getattr(experiment, part)) for part in ("numbers", "table", "claim", "draw"))


def test_a_figure_is_written_and_its_claim_is_printed(tmp_path, capsys):
    assert cli.main(["figure", "squared-error-sigmoid", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\npass: at the logit -10" in out
    record = json.loads((tmp_path / "squared-error-sigmoid.json").read_text())
    assert record["claim"]["holds"]
    assert record["seed"] == 0
    assert (tmp_path / "squared-error-sigmoid.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "squared-error-sigmoid.svg").read_bytes()
    experiment = find("squared-error-sigmoid")
    again = dataclasses.asdict(experiment.numbers(Settings()))
    assert record["numbers"] == json.loads(json.dumps(again))


def test_a_claim_that_fails_is_exit_code_1(tmp_path, capsys, monkeypatch):
    experiment = find("squared-error-sigmoid")
    monkeypatch.setattr(experiment, "claim", lambda numbers: figures.Claim("2 is less than 1", False))
    assert cli.main(["figure", "squared-error-sigmoid", "--out", str(tmp_path)]) == 1
    assert "FAIL: 2 is less than 1" in capsys.readouterr().out


def test_figures_are_listed(capsys):
    assert cli.main(["figures"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in figures.FIGURES)


def test_an_unknown_figure_is_one_line(capsys):
    assert cli.main(["figure", "squared-eror-sigmoid"]) == 2
    assert "did you mean 'squared-error-sigmoid'" in capsys.readouterr().err
