"""The settings for CPU: memory that a process keeps, and options of the compiler."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import cpu

RESIDENT = """
import os
import numpy as np
from deepjax import cpu

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = resident()
print(cpu.keep_memory())
array = np.ones(2**27, np.uint8)
del array
print((resident() - before) // 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only for the GNU C library")
@pytest.mark.parametrize(("switch", "kept"), [("1", True), ("0", False)])
def test_freed_memory_stays_in_the_process(switch, kept):
    if "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("only for the GNU C library")
    environment = {**os.environ, "DEEPJAX_KEEP_MEMORY": switch}
    done = subprocess.run([sys.executable, "-c", RESIDENT], env=environment, capture_output=True, text=True, check=True)
    answer, megabytes = done.stdout.split()
    assert answer == str(kept)
    assert int(megabytes) >= 120 if kept else int(megabytes) < 16


def test_options_keep_convolutions_from_ynnpack():
    """The option is one that jaxlib may rename: then the options are empty, and this test names the version."""
    options = cpu.compiler_options()
    assert options, f"jaxlib {jax.lib.__version__} does not know {cpu.OPTIONS}"
    x, kernel = jnp.ones((2, 8, 8, 32)), jnp.ones((3, 3, 32, 32))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    compiled = jax.jit(convolve, compiler_options=options).lower(x, kernel).compile()
    assert "ynn_fusion" not in compiled.as_text()
    np.testing.assert_allclose(compiled(x, kernel), jax.jit(convolve)(x, kernel), rtol=1e-6)


def test_sums_and_products_are_compiled_as_without_options():
    def moments(x, w):
        mean = x.mean((0, 1, 2))
        return mean, jnp.square(x - mean[None, None, None]).mean((0, 1, 2)), x.reshape(-1, 64) @ w

    arguments = jnp.ones((8, 56, 56, 64)), jnp.ones((64, 32))
    found = [
        jax.jit(moments, compiler_options=options).lower(*arguments).compile().as_text().count("ynn_fusion")
        for options in (None, cpu.compiler_options())
    ]
    assert found[0] == found[1]


def test_the_users_flag_goes_first(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution")
    assert cpu.compiler_options() == {}


def test_an_unknown_option_is_left_out(monkeypatch):
    monkeypatch.setattr(cpu, "OPTIONS", {"xla_cpu_no_such_option": "1"})
    cpu._are_known.cache_clear()
    try:
        assert cpu.compiler_options() == {}
    finally:
        cpu._are_known.cache_clear()
