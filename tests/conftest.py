"""Eight CPU devices for the sharding tests, exact products, no silent broadcasting, and short compiles."""

import os

import jaxlib

# Most of the time of these tests is compilation, so XLA's optimizer is off, unless XLA_OPTIMIZER=on asks for it. One
# LLVM module for a program, and XLA's older emitter of loops while it exists, compile in about half the default's time.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jaxlib.__version__.startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
if os.environ.get("XLA_OPTIMIZER") != "on":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # programs that earlier processes compiled must not be used

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def program_folder(tmp_path_factory):
    """Folder of the programs that this process compiled in rooms with `compiled_once`."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="package")
def compiled_once(program_folder):
    """For rooms whose tests train the same few programs again and again: each is compiled once, then loaded."""
    from jax.experimental.compilation_cache import compilation_cache

    def use(settings):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    settings = {"jax_enable_compilation_cache": True, "jax_compilation_cache_dir": str(program_folder)}
    settings |= {"jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    use(settings)
    yield
    use(before)
