"""Files: a written one is the old one or the new one; text names its encoding; damage is named."""

import ast
import os
from pathlib import Path

import pytest

import deepjax
from deepjax import files
from deepjax.errors import InputError, first_line


def write_half(path):
    with files.replacing(path) as partial:
        partial.write_text("half")
        raise KeyError


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path):
    path = tmp_path / "record.json"
    files.write_json(path, {"step": 1})
    with pytest.raises(KeyError):
        write_half(path)
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"step": float("nan")})
    assert files.read_json(path) == {"step": 1}
    files.write_json(path, {"step": 2})
    assert files.read_json(path) == {"step": 2}
    assert [found.name for found in tmp_path.iterdir()] == ["record.json"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.json is missing"):
        files.read_json(tmp_path / "missing.json")
    for name, content in (("cut.json", b'{"step": 1'), ("binary.json", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} is not valid JSON"):
            files.read_json(tmp_path / name)


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\n  shapes differ:\n(2,) (3,)")) == "shapes differ:"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def text_without_encoding(tree):
    """Yield the lines of calls that read or write text in the locale's encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner, given = getattr(getattr(node.func, "value", None), "id", ""), {each.arg for each in node.keywords}
        mode = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        opens = name in ("open", "fdopen") and owner not in ("Image", "os") and not any("b" in each for each in mode)
        reads = name == "read_text" or (
            name == "write_text" and isinstance(node.func, ast.Attribute) and owner != "files"
        )
        if "text" in given or "universal_newlines" in given or ((opens or reads) and "encoding" not in given):
            yield node.lineno


def test_every_text_file_names_its_encoding():
    package = Path(deepjax.__file__).parent
    found = {
        f"{path.relative_to(package)}:{line}"
        for path in package.rglob("*.py")
        for line in text_without_encoding(ast.parse(path.read_bytes()))
    }
    assert not found


def test_a_path_that_c_libraries_cannot_open_is_refused(tmp_path, monkeypatch):
    files.check_path("workdir", tmp_path / "größe")
    with pytest.raises(InputError, match=r"workdir '.*\\udcff.* set PYTHONUTF8=1"):
        files.check_path("workdir", tmp_path / os.fsdecode(b"\xff"))
