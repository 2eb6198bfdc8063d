"""What the README and the notebook show is run here."""

import json
import re
import subprocess
import sys

import pytest

import helpers

ROOT = helpers.ROOT


# Runs blocks of code, {name: text} as JSON, in one process that is not a test's. Each has its own names.
RUNNER = """
import json, sys
for name, block in json.loads(sys.argv[1]).items():
    exec(compile(block, name, "exec"), {"__name__": "__main__"})
"""


def test_lines_of_library_use_run(tmp_path):
    blocks = {}
    for document in ("README.md", "docs/depth.md"):
        found = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
        assert found, document
        blocks |= {f"{document}, block {i}": block for i, block in enumerate(found, 1)}
    command = [sys.executable, "-c", RUNNER, json.dumps(blocks)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_readmes_commands_are_the_two():
    text = (ROOT / "README.md").read_text()
    assert "pip install . && deepjax train digits\n" in text
    assert "pip install '.[test]' && pytest -n 2 -m \"not slow\"\n" in text


def test_links_within_the_repository_lead_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            found = document.parent / target
            assert found.exists(), f"{document.name} links to {target}"
            assert found.is_dir() or found.stat().st_size, f"{target} is empty"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "colab").glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_notebook_runs_with_a_reduced_budget(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the notebook's own process is not a test's
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "strip the outputs"
    assert "assert" in code[-1].source
    budget = [cell for cell in code if re.search("^EPOCHS = [0-9]+$", cell.source, re.MULTILINE)]
    assert len(budget) == 1
    budget[0].source = re.sub("EPOCHS = [0-9]+", "EPOCHS = 6", budget[0].source)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
