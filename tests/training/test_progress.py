"""What a run reports in a notebook."""

import re
import time

import pytest

from deepjax.training import NotebookDisplay
from deepjax.training.progress import NOTEBOOK_LINES


class Cell:
    """Stands for IPython's `display`: the outputs of a cell."""

    def __init__(self):
        self.outputs = []

    def __call__(self, data, *, raw, display_id):
        assert raw
        assert display_id
        self.outputs.append(data["text/plain"])
        return self

    def update(self, data, *, raw):
        assert raw
        self.outputs[-1] = data["text/plain"]


@pytest.fixture
def cell(monkeypatch):
    found = Cell()
    monkeypatch.setattr("IPython.display.display", found)
    return found


def test_a_cell_has_one_output_with_the_newest_lines_and_the_state_below(cell, monkeypatch, capsys):
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    show = NotebookDisplay()
    for i in range(2 * NOTEBOOK_LINES):
        show(f"line {i}")
    show.step(1, 9, 1, 3, "loss 2.0")
    show.step(2, 9, 1, 3, "loss 1.0")
    show.step(3, 9, 1, 3, "loss 0.5")
    *lines, state = cell.outputs[0].splitlines()
    assert lines == [f"line {i}" for i in range(NOTEBOOK_LINES, 2 * NOTEBOOK_LINES)]
    assert state == "step 3/9  epoch 1/3  loss 0.5  0:06 left"
    show("epoch 1/3  done")
    assert cell.outputs[0].splitlines()[-2:] == [f"line {2 * NOTEBOOK_LINES - 1}", "epoch 1/3  done"]
    show.warn("disk almost full")
    assert capsys.readouterr().out == "warning: disk almost full\n"
    assert len(cell.outputs) == 1


@pytest.mark.slow
def test_a_notebook_shows_one_output_of_a_training(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the notebook's own process is not a test's
    code = """
from deepjax.config import Config, Data
from deepjax.training import NotebookDisplay, train
config = Config(data=Data(name="disc"), model="mlp", model_options={"depth": 2, "width": 4}, epochs=30, workdir="run")
summary = train(config, log=NotebookDisplay())
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (output,) = notebook.cells[0].outputs
    lines = output["data"]["text/plain"].splitlines()
    assert len(lines) == NOTEBOOK_LINES
    assert re.match("epoch 30/30 ", lines[-2])
    assert lines[-1].startswith("test error")
