"""The comparison with torchvision, which is also a command."""

import importlib.util

import pytest

import helpers


@pytest.fixture(scope="package")
def parity():
    """tests/parity/__main__.py, as a module."""
    helpers.import_torchvision()
    spec = importlib.util.spec_from_file_location("parity", helpers.ROOT / "tests" / "parity" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
