"""What XLA has compiled is kept on disk, so that a command's second start does not compile again."""

import hashlib
import os
import platform
import sys
from pathlib import Path

MOST = 2 * 2**30  # bytes; what was not used for the longest goes first


def keep_compiled():
    """Tell JAX, by its environment variables, to keep programs that took long in the user's cache folder.

    Nothing is changed after JAX is imported, which reads them then, where the user has set a folder already, or where
    ours cannot be written; JAX_ENABLE_COMPILATION_CACHE=false turns it off. Each kind of processor has a folder of its
    own: JAX's keys do not tell them apart, and a program for one may not run on another that shares the home folder.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "deepjax" / "xla" / hashlib.sha256(_processor().encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MOST))


def _processor():
    """Its architecture and what it can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return f"{platform.machine()} {told}"
