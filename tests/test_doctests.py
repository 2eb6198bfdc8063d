"""Every example in a docstring runs and says what it prints."""

import doctest
import importlib
import pkgutil

import pytest

import deepjax

MODULES = [m.name for m in pkgutil.walk_packages(deepjax.__path__, "deepjax.") if "configs" not in m.name]
WITH_EXAMPLES = [name for name in MODULES if ">>>" in (importlib.util.find_spec(name).loader.get_source(name) or "")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
