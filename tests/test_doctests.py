"""Every example in a docstring runs and says what it prints."""

import doctest
import importlib
import pkgutil

import pytest

import deepjax

MODULES = [m.name for m in pkgutil.walk_packages(deepjax.__path__, "deepjax.") if "configs" not in m.name]
WITH_EXAMPLES = [name for name in MODULES if ">>>" in (importlib.util.find_spec(name).loader.get_source(name) or "")]


def with_speed(name):
    """The examples of initialization from data compile for seconds; tests/init_from_data holds what they show."""
    return pytest.param(name, marks=pytest.mark.slow) if name.startswith("deepjax.init_from_data.") else name


@pytest.mark.parametrize("name", [with_speed(name) for name in WITH_EXAMPLES])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_part_is_an_attribute_of_the_package():
    parts = {name.split(".")[1] for name in MODULES}
    assert parts - set(deepjax._SUBMODULES) == {"__main__", "cli", "foreign"}
    for part in ("linear", "figures"):
        assert getattr(deepjax, part).__name__ == f"deepjax.{part}"
