"""What the README and the notebook show is run here."""

import json
import re
import subprocess
import sys

import pytest

import helpers
from deepjax import figures

ROOT = helpers.ROOT


# Runs blocks of code, {name: text} as JSON, in one process that is not a test's. Each has its own names.
RUNNER = """
import json, sys
for name, block in json.loads(sys.argv[1]).items():
    exec(compile(block, name, "exec"), {"__name__": "__main__"})
"""


FIRST = [ROOT / "README.md", ROOT / "docs" / "depth.md"]
OTHERS = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path not in FIRST]
# Its lines read a program that a command of the page writes; tests/inference/test_export.py does both.
WITHOUT_FILES = [path for path in OTHERS if path.name != "finetuning.md"]


@pytest.mark.parametrize(
    "documents", [FIRST, pytest.param(WITHOUT_FILES, marks=pytest.mark.slow)], ids=["first", "others"]
)
def test_lines_of_library_use_run(documents, tmp_path):
    blocks = {}
    for document in documents:
        found = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf8"), re.DOTALL)
        blocks |= {f"{document.name}, block {i}": block for i, block in enumerate(found, 1)}
    assert len(blocks) >= 5
    command = [sys.executable, "-c", RUNNER, json.dumps(blocks)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_readmes_commands_are_the_two():
    text = (ROOT / "README.md").read_text()
    assert "pip install . && deepjax train digits\n" in text
    assert "pip install '.[test]' && pytest -n 2 -m \"not slow\"\n" in text


def test_links_within_the_repository_lead_somewhere():
    for document in [*FIRST, *OTHERS, ROOT / "CHANGELOG.md", *(ROOT / "colab").glob("*.md")]:
        text = document.read_text(encoding="utf8")
        for target in re.findall(r"\]\(([^):\s]+)\)", text) + re.findall(r'src="([^":]+)"', text):
            name, _, anchor = target.partition("#")
            found = document.parent / name if name else document
            assert found.exists(), f"{document.name} links to {target}"
            assert found.is_dir() or found.stat().st_size, f"{target} is empty"
            assert not anchor or anchor in anchors(found), f"{document.name} links to {target}"


def anchors(document):
    """Return the anchors that GitHub and MyST give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs_and_equals_its_text(path):
    """`jupytext --sync colab/*.ipynb` writes what was changed in one of the two files to the other."""
    import jupytext
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    text = jupytext.read(path.with_suffix(".md"), fmt="md:myst").cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [(cell.cell_type, cell.source) for cell in text]
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "strip the outputs"
    assert "assert" in code[-1].source
    assert f"blob/main/colab/{path.name})" in cells[0].source
    assert "%pip install" in code[0].source


def test_figures_that_documents_name_exist():
    for document in [*FIRST, *OTHERS]:
        text = document.read_text(encoding="utf8")
        for name in re.findall(r"deepjax figure ([a-z0-9-]+)", text):
            assert name in figures.FIGURES, f"{document.name}: {name}"
        for name in re.findall(r"figures/([a-z0-9-]+)\.png", text):
            assert f"deepjax figure {name}" in text, f"{document.name} has a picture without its command: {name}"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_notebook_runs_with_a_reduced_budget(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the notebook's own process is not a test's
    monkeypatch.setenv("SMOKE", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
