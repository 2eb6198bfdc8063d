"""The metrics of a run as a table, and in Weights & Biases, for which a module of this file stands in."""

import csv
import json
import sys
import types

import pytest

import helpers
from deepjax.config import Config, Devices, Optimizer
from deepjax.errors import InputError, Stopped
from deepjax.runs import metrics

TINY = Config(
    model="mlp",
    model_options={"depth": 1, "width": 4},
    optimizer=Optimizer("adam"),
    devices=Devices(count=1),
    epochs=2,
    batch_size=400,
    log_every=1,
)


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(folder):
    """The table has the same numbers as metrics.jsonl, and nothing where a line has no number."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = list(dict.fromkeys(name for line in lines for name in line))
    rows = table(folder)
    assert list(rows[0]) == names
    assert rows == [{name: str(line.get(name, "")) for name in names} for line in lines]
    return lines


def test_the_table_has_the_lines_of_metrics_jsonl_and_resumes_with_them(tmp_path):
    log = metrics.MetricsLog(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == ""
    log.write("train", 1, 0.5, loss=1.0, learning_rate=0.1)
    log.write("validation", 2, 1.0, loss=0.5, error=0.25)  # another column
    log.write("train", 3, 1.5, loss=0.7, learning_rate=0.1)
    assert [line["step"] for line in same(tmp_path)] == [1, 2, 3]  # before it is closed, too
    log.close()
    log = metrics.MetricsLog(tmp_path, 2)
    log.write("train", 3, 1.5, loss=0.6, learning_rate=0.1)
    log.close()
    assert [(line["step"], line["loss"]) for line in same(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 0.6)]


class Wandb(types.ModuleType):
    """What deepjax uses of the package."""

    def __init__(self, problem=None):
        super().__init__("wandb")
        self.problem, self.started, self.logged, self.summary, self.finished = problem, [], [], {}, 0
        self.metrics = []

    def init(self, **options):
        if self.problem:
            raise RuntimeError(self.problem)
        self.started.append(options)
        return self

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


def test_a_run_in_weights_and_biases_resumes_under_its_id(tmp_path, monkeypatch):
    stub = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    with monkeypatch.context() as patch:
        helpers.stop_after(patch, 3)
        with pytest.raises(Stopped):
            helpers.train(TINY, tmp_path / "mine", wandb="deep")
    summary = helpers.train(TINY, tmp_path / "mine", wandb="deep")
    first, second = stub.started
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("deep", "mine", "allow")
    assert first["config"]["optimizer"]["name"] == "adam"
    json.dumps(first["config"])
    assert ("*", "step") in stub.metrics
    lines = same(tmp_path / "mine")
    named = ("kind", "step", "epoch")
    expected = [
        {"step": line["step"], "epoch": line["epoch"]}
        | {f"{line['kind']}/{name}": value for name, value in line.items() if name not in named}
        for line in lines
    ]
    assert stub.logged == expected
    assert stub.summary == summary
    assert stub.finished == 2


def test_without_the_package_or_its_account_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if not installed
    with pytest.raises(InputError, match="wandb deep: the package wandb is not installed .*; run `pip install"):
        helpers.train(TINY, tmp_path / "run", wandb="deep")
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # a folder of that name
    with pytest.raises(InputError, match="not installed"):
        helpers.train(TINY, tmp_path / "run", wandb="deep")
    monkeypatch.setitem(sys.modules, "wandb", Wandb("no API key\nmore"))
    with pytest.raises(InputError, match=r"wandb deep: no API key; run `wandb login`, or set WANDB_MODE=offline"):
        helpers.train(TINY, tmp_path / "run", wandb="deep")
    helpers.train(TINY, tmp_path / "run")  # a free field: the run resumes without it
