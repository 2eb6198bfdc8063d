"""Where the command line keeps compiled programs."""

import os
import sys

from deepjax.cli import compile_cache


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    compile_cache.keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_process_that_has_jax_already_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    compile_cache.keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_cache_of_the_users_own_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_MAX_SIZE", raising=False)
    compile_cache.keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "own")
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert not (tmp_path / "ours").exists()


def test_programs_of_another_processor_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for processor in ("one", "other", "one"):
        monkeypatch.setattr(compile_cache, "_processor", lambda processor=processor: processor)
        monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "0")  # so that what is set here is undone
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        compile_cache.keep_compiled()
        folders.add(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert len(folders) == 2
