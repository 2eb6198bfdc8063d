"""Preparation of TFDS's data sets in another process."""

import importlib
import importlib.util

import pytest

from deepjax import data
from deepjax.errors import InputError


def test_prepare_without_tensorflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError,
        match=r"mnist: needs TensorFlow; install deepjax's extra `prepare`, in its folder: pip install '.\[prepare\]'",
    ):
        data.prepare("mnist", "")


@pytest.mark.parametrize(
    ("code", "match"),
    [
        (
            "print('deepjax-prepare-failed: ValueError: no network'); raise SystemExit(1)",
            "mnist: ValueError: no network$",
        ),
        ("import os; os._exit(3)", "ended with code 3"),
    ],
)
def test_prepare_says_in_one_line_what_the_child_said(monkeypatch, code, match):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(importlib.import_module("deepjax.data.prepare"), "CHILD", code)
    with pytest.raises(InputError, match=match):
        data.prepare("mnist", "")
