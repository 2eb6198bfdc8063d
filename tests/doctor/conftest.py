"""Broken networks and their healthy twins run many equal programs, so each is compiled once."""

import pytest


@pytest.fixture(autouse=True, scope="package")
def load_programs(compiled_once):
    """A program that was compiled for one examination is loaded from a temporary folder for the next one."""
