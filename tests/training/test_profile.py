"""A trace of some steps and its table."""

import dataclasses
import gzip
import json
from collections import Counter

import pytest

from deepjax.config import Config, Data
from deepjax.errors import InputError
from deepjax.training import profile, train

SMALL = Config(
    Data("moons"), model="mlp", model_options={"depth": 3, "width": 8}, epochs=1, batch_size=80, eval_batch_size=200
)


def of_steps(text):
    return dataclasses.replace(SMALL, profile=text)


def test_the_table_counts_a_step_and_names_the_layer():
    times = Counter({"dot.7": 30_000, "fusion.1": 10_000})
    lines = profile.table(times, {"dot.7": "jit(step)/transpose(jvp(MLP))/head/dot_general"}, 10)
    assert lines[1].split() == ["3.000", "75.0", "%", "dot.7", "transpose(jvp(MLP))/head/dot_general"]
    assert lines[2].split() == ["1.000", "25.0", "%", "fusion.1"]
    assert len(profile.table(Counter({f"add.{i}": 1 for i in range(30)}), {}, 1)) == 1 + profile.SHOWN


def test_times_are_those_of_operations_without_loops(tmp_path):
    def event(name, dur, **args):
        return {"ph": "X", "name": name, "dur": dur, "args": args}

    events = [
        event("dot.1", 2.0, hlo_op="dot.1"),
        event("dot.1", 3.0, hlo_op="dot.1"),
        event("while.2", 9.0, hlo_op="while.2"),  # its time is that of the operations inside
        event("end: dot.1", 1.0, hlo_op="dot.1"),
        event("python", 7.0),
        {"ph": "M", "name": "thread_name"},
    ]
    with gzip.open(tmp_path / "trace.json.gz", "wt", encoding="utf-8") as file:
        json.dump({"traceEvents": events}, file)
    assert profile.operation_times(tmp_path / "trace.json.gz") == {"dot.1": 5.0}


@pytest.mark.parametrize("text", ["10", "0:3", "5:4", "a:b", "1:2:3", "-1:2"])
def test_steps_that_are_none(text):
    with pytest.raises(InputError, match=r"profile '.*' must be FIRST:LAST"):
        train(of_steps(text))


def test_steps_beyond_the_end_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="profile 3:9999: the run has [0-9]+ steps"):
        train(of_steps("3:9999"))
    assert not list(tmp_path.iterdir())


def test_a_run_writes_a_trace_and_a_table(tmp_path):
    lines = []
    folder = tmp_path / "run"
    summary = train(dataclasses.replace(of_steps("2:3"), workdir=str(folder)), log=lines.append)
    (start,) = [i for i, line in enumerate(lines) if line.startswith("ms a step")]
    (end,) = [i for i, line in enumerate(lines) if line.startswith("trace: ")]
    shares = [float(line.split()[1]) for line in lines[start + 1 : end]]
    assert 1 < len(shares) <= profile.SHOWN
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 100.5
    assert any("head" in line for line in lines[start + 1 : end])
    assert list(folder.rglob("perfetto_trace.json.gz"))
    assert list(folder.rglob("*.xplane.pb"))
    again = train(dataclasses.replace(SMALL, workdir=str(folder)), log=lines.append)
    assert again == summary  # the traced steps are no other experiment
