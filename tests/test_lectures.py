"""docs/lectures.md: its commands exist, and those that only count run."""

import json
import re
import shlex
import subprocess
import sys

import pytest

import helpers
from deepjax import cli, figures, zoo
from deepjax.cli.bench import Depth
from deepjax.cli.search import _read
from deepjax.cli.terminal import parse

ROWS = [
    re.split(r" *(?<!\\)\| *", line.strip("| "))
    for line in (helpers.ROOT / "docs" / "lectures.md").read_text(encoding="utf8").splitlines()
    if line.startswith("| ") and not line.startswith(("| deck |", "| --- |"))
]
TESTS = [shlex.split(found)[1:] for row in ROWS for found in re.findall(r"`(pytest [^`]*)`", row[2])]
PROGRAMS = [
    shlex.split(found.replace(r"\|", "|"))[2] for row in ROWS for found in re.findall(r"`(python -c [^`]*)`", row[2])
]
# Runs programs, a list as JSON, in one process that is not a test's. Each has its own names.
RUNNER = """
import json, sys
for program in json.loads(sys.argv[1]):
    print("program:", program, flush=True)
    exec(compile(program, "row", "exec"), {"__name__": "__main__"})
"""
COMMANDS = [
    shlex.split(found)[1:] for row in ROWS for found in re.findall(r"`(?:[A-Z_]+=\S+ )*(deepjax [^`]*)`", row[2])
]


def test_each_row_has_six_cells_and_a_deck():
    assert len(ROWS) > 60
    for row in ROWS:
        assert len(row) == 6, row
        assert set(row[0].split(", ")) <= {"D1", "D2", "F", "I", "A"}, row
        assert "`" in row[2], row


def test_figures_and_configs_exist():
    for words in COMMANDS:
        if words[0] == "figure":
            assert words[1] in figures.FIGURES
        elif words[0] in ("train", "search"):
            path = cli.configs.configs()[words[1]]
            read = _read if words[0] == "search" else lambda path, words: cli.configs.configured("train", path, words)
            assert read(path, words[1:])
        elif words[0] == "summary":
            assert words[1] in (*zoo.MODELS, "NAME")
        elif words[0] == "bench":
            assert parse(Depth, words[2:], "deepjax bench depth")
        else:
            assert words[0] == "models", words


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[0] in ("summary", "models") and "NAME" not in words], ids=" ".join
)
def test_commands_that_count(words, capsys):
    assert cli.main(words) == 0
    assert capsys.readouterr().out


def test_tests_exist():
    for words in TESTS:
        files = [word for word in words if word.endswith(".py")]
        assert files, words
        text = "".join((helpers.ROOT / file).read_text(encoding="utf8") for file in files)
        if "-k" in words:
            names = re.split(" or | and ", words[words.index("-k") + 1])
            assert all(name in text for name in names), words


@pytest.mark.slow
def test_programs_run(tmp_path):
    assert len(PROGRAMS) > 50
    command = [sys.executable, "-c", RUNNER, json.dumps(PROGRAMS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
