"""The command asks glibc for huge pages, by starting itself again once."""

import io
import os
import subprocess
import sys

import pytest

from deepjax import __main__ as entry


@pytest.fixture
def system(monkeypatch):
    """A Linux with glibc 2.36 that gives huge pages on request; `restarts` gets the arguments of each restart."""
    restarts, files = [], {"/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n"}
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "deepjax", "train", "digits"])
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.setattr(os, "execv", lambda *arguments: restarts.append(arguments))
    monkeypatch.setattr(entry, "open", lambda name, **_: io.StringIO(files[name]), raising=False)
    return restarts, files


def test_it_restarts_once_with_the_same_arguments(system, monkeypatch):
    restarts, _ = system
    entry.use_huge_pages()
    entry.use_huge_pages()
    assert restarts == [(sys.executable, [sys.executable, "-m", "deepjax", "train", "digits"])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    monkeypatch.delenv("GLIBC_TUNABLES")


@pytest.mark.parametrize("version", ["glibc 2.34", "musl 1.2", ""])
def test_not_with_another_library(system, monkeypatch, version):
    monkeypatch.setattr(os, "confstr", lambda name: version)
    entry.use_huge_pages()
    assert not system[0]
    assert "GLIBC_TUNABLES" not in os.environ


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]"])
def test_not_where_it_changes_nothing(system, setting):
    system[1]["/sys/kernel/mm/transparent_hugepage/enabled"] = setting
    entry.use_huge_pages()
    assert not system[0]


def test_settings_of_the_user_are_kept(system, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    entry.use_huge_pages()
    assert not system[0]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"


def test_the_command_works_with_and_without():
    for setting in ({}, {"GLIBC_TUNABLES": ""}):
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | setting
        done = subprocess.run([sys.executable, "-m", "deepjax", "--version"], env=environment, capture_output=True)
        assert (done.returncode, done.stdout[:8]) == (0, b"deepjax ")
