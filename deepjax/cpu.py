"""Two settings that make compiled programs faster on CPU: memory that the process keeps, and XLA's convolutions."""

import ctypes
import functools
import os
import sys
from typing import Any

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # parameters of mallopt(3)
# What YNNPACK computes: jaxlib's own list without convolutions. Without the sums, batch norm is several times slower.
YNNPACK = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
OPTIONS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": YNNPACK}


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, for the rest of its life.

    XLA:CPU allocates the memory of a program anew in each call. The GNU C library returns memory of this size to the
    operating system, which must clear each page again: up to a fifth of the processor time of a training step
    (docs/benchmarks.md). The process may hold more memory than its programs use at once. Call this before the first
    program runs.

    The environment variable DEEPJAX_KEEP_MEMORY=0 prevents it.

    Returns:
      whether the process keeps its memory: False on systems without the GNU C library.
    """
    if os.environ.get("DEEPJAX_KEEP_MEMORY") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1))
    return mallopt is not None and all(mallopt(*setting) for setting in settings)


def compiler_options() -> dict[str, Any]:
    """Return options for `jax.jit(..., compiler_options=...)` with which training steps are fastest.

    On CPU, jaxlib 0.10 computes most convolutions with YNNPACK, which takes two to four times as long as XLA's own
    kernels for gradients of kernels on large images. The options choose XLA's own. They are empty on other platforms,
    where jaxlib does not have this option, and if the environment variable XLA_FLAGS sets it.

    >>> import jax
    >>> step = jax.jit(lambda x: x + 1, compiler_options=compiler_options())
    >>> int(step(1))
    2
    """
    import jax  # here, because processes that measure PyTorch do not import JAX

    if jax.default_backend() != "cpu" or next(iter(OPTIONS)) in os.environ.get("XLA_FLAGS", ""):
        return {}
    return OPTIONS if _are_known() else {}


@functools.cache
def _are_known():
    """Return whether this version of jaxlib compiles with the options."""
    import jax

    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=OPTIONS)
    except jax.errors.JaxRuntimeError:
        return False
    return True
