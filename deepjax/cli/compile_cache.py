"""JAX's persistent compilation cache, so that the second start of a command compiles nothing."""

import hashlib
import os
import platform
import sys
from pathlib import Path

MAX_BYTES = 2 * 2**30  # programs that have not been used for the longest time are removed first


def keep_compiled():
    """Set JAX's environment variables so that it stores compiled programs in the user's cache folder.

    Nothing is set if JAX is already imported, which is when it reads these variables; if the user has set a folder; or
    if the folder cannot be written. JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. Each kind of processor has
    a separate folder, because JAX's keys do not contain the processor, and a program compiled for one may not run on
    another that shares the home folder.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "deepjax" / "xla" / hashlib.sha256(_processor().encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # there is no home folder
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))


def _processor():
    """Return the architecture and features of the processor, as far as the system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return f"{platform.machine()} {features}"
