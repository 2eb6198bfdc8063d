"""Tests here train the same few programs again and again, so they compile each once."""

import pytest


@pytest.fixture(autouse=True, scope="package")
def load_programs(compiled_once):
    """A program that was compiled for one run is loaded from a temporary folder for the next one."""
