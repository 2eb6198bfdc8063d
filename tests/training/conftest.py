"""Tests here train the same few programs again and again, so they compile each once."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def compiled_once(tmp_path_factory):
    """A program that was compiled for one run is loaded from a temporary folder for the next one."""
    from jax.experimental.compilation_cache import compilation_cache

    cache = tmp_path_factory.mktemp("compiled")
    settings = {"enable_compilation_cache": True, "compilation_cache_dir": str(cache)}
    settings |= {"persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, f"jax_{name}") for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(f"jax_{name}", value)
        compilation_cache.reset_cache()
        if values is settings:
            yield
