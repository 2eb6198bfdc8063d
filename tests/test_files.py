"""Atomic writes: a file is the old one or the new one."""

import pytest

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
