"""What all experiments have in common."""

import base64
import dataclasses
import inspect
import json
from html import escape

import pytest

from deepjax import cli, figures
from deepjax.figures import Claim, Settings, find, looking
from deepjax.runs import plots


@pytest.mark.parametrize("name", figures.FIGURES)
def test_an_experiment_is_whole(name):
    experiment = find(name)
    assert experiment.SOURCE
    assert "\n" not in experiment.TITLE
    assert set(experiment.USES) <= set(Settings._fields[1:])
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


def test_a_claim_is_checked_for_several_seeds(tmp_path, capsys, monkeypatch):
    experiment = find("squared-error-sigmoid")
    numbers, seen = experiment.numbers(Settings()), []
    monkeypatch.setattr(experiment, "numbers", lambda settings: seen.append(settings.seed) or numbers)
    monkeypatch.setattr(experiment, "claim", lambda numbers: Claim("odd", seen[-1] % 2 == 1))
    monkeypatch.setattr(experiment, "draw", lambda numbers: plots.new_figure(1, 1))
    words = ["figure", "squared-error-sigmoid", "--out", str(tmp_path), "--seed", "5"]
    assert cli.main([*words, "--seeds", "3"]) == 1
    assert capsys.readouterr().out.endswith("seed 6, FAIL: odd\nseed 7, pass: odd\nthe claim holds for 2 of 3 seeds\n")
    assert seen == [5, 6, 7]
    assert cli.main([*words[:-1], str(2**32 - 1), "--seeds", "2"]) == 2
    assert "seeds above 2^32 - 1" in capsys.readouterr().err


def test_figures_are_listed(capsys):
    assert cli.main(["figures"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in figures.FIGURES)


def test_an_unknown_figure_is_one_line(capsys):
    assert cli.main(["figure", "squared-eror-sigmoid"]) == 2
    assert "did you mean 'squared-error-sigmoid'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words", "refused"),
    [
        ("loss-surface", ["--full"], "--full"),
        ("delta-rule", ["--data-dir", "folder"], "--data-dir"),
        ("squared-error-sigmoid", ["--full", "--data-dir", "folder"], "--data-dir"),
    ],
)
def test_an_option_that_a_figure_does_not_use_is_refused_before_anything_is_computed(
    name, words, refused, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(find(name), "numbers", None)
    assert cli.main(["figure", name, "--out", str(tmp_path / "out"), *words]) == 2
    assert f"figure {name} does not use {refused}; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_reads_the_settings_that_it_names(name):
    experiment = find(name)
    source = inspect.getsource(experiment)
    if experiment.USES == looking.USES:
        source += inspect.getsource(looking)
    assert {each for each in Settings._fields[1:] if f"settings.{each}" in source} == set(experiment.USES)


def test_a_drawing_that_fails_is_a_warning_and_the_numbers_are_written(tmp_path, capsys, monkeypatch):
    experiment = find("squared-error-sigmoid")

    def draw(numbers):
        raise RuntimeError("no font")

    monkeypatch.setattr(experiment, "draw", draw)
    assert cli.main(["figure", "squared-error-sigmoid", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("deepjax: warning: ")
    assert "cannot be drawn (RuntimeError: no font)" in printed.err
    assert "squared-error-sigmoid.json\n" in printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["squared-error-sigmoid.json"]


def test_a_notebook_displays_a_table_a_drawing_and_the_claim(monkeypatch):
    experiment = find("squared-error-sigmoid")
    monkeypatch.setattr(experiment, "table", lambda numbers: (("a < b", "c"), [(1, "d")]))
    result = figures.run("squared-error-sigmoid", Settings(seed=3))
    assert result.numbers == experiment.numbers(Settings(seed=3)) != experiment.numbers(Settings(seed=4))
    html = result._repr_html_()
    assert "<tr><th>a &lt; b</th><th>c</th></tr><tr><td>1</td><td>d</td></tr>" in html
    assert base64.b64decode(html.split("base64,")[1].split('"')[0])[:4] == b"\x89PNG"
    assert repr(result) == f"pass: {result.claim.text}"
    assert f"<p>{escape(repr(result))}</p>" in html
