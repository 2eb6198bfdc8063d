"""Control of a `worker` process: start it, request measurements, and stop it at a time limit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

WORKER = [sys.executable, "-m", "deepjax.benchmarks.worker"]

# Caches are off, so that compile times are those of real compilations. Several processes may share a GPU.
ALONE = {
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


def cached(folder):
    """Return environment variables that make JAX store every compiled program in a folder."""
    return {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


class Ended(Exception):
    """A worker was stopped at its time limit, or failed. The message gives the reason and the phase."""


class Process:
    """One worker process, which measures one program. As a context manager, it stops the process at the end."""

    def __init__(self, job, environment=None):
        """Start the process, with changes of the environment. For `job`, see `worker`."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed on exit
        self._capped = False
        self._phases = job["phases"]
        self._child = subprocess.Popen(
            [*WORKER, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **ALONE, **(environment or {})},
            start_new_session=True,  # so that compilers that the process starts are stopped with it
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._in, self._out = self._child.stdin, self._child.stdout

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Stop the process and its child processes. A second call has no effect."""
        if self._in.closed:
            return
        self._kill()
        self._child.wait()
        for pipe in (self._in, self._out, self._log):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def phases(self, cap):
        """Yield the worker's record of each phase. Raise Ended if the phases take longer than `cap` seconds."""
        end = time.monotonic() + cap
        for phase in self._phases:
            yield self._answer(end - time.monotonic(), f"cap of {cap:g} s reached in {phase}")

    def turn(self, least, cap):
        """Return the result of the worker's `turn`. Raise Ended if it takes longer than `cap` seconds."""
        with contextlib.suppress(BrokenPipeError):  # the worker has failed: `_answer` raises Ended with the reason
            self._in.write(f"{least}\n".encode())
            self._in.flush()
        return self._answer(cap, f"cap of {cap:g} s reached in a step")

    def _answer(self, seconds, late):
        timer = threading.Timer(max(seconds, 0), self._stop)
        timer.start()
        try:
            line = self._out.readline()
        finally:  # an interrupt, too, must not leave the thread, for which the process would wait at its end
            timer.cancel()
        if line:
            return json.loads(line)
        raise Ended(late if self._capped else f"failed: {self._last_words()}")

    def _stop(self):
        self._capped = True
        self._kill()

    def _kill(self):
        if not hasattr(os, "killpg"):
            self._child.kill()
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the process has already ended
            os.killpg(self._child.pid, signal.SIGKILL)

    def _last_words(self):
        code = self._child.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            return f"ended by signal {-code}; was there memory enough?"
        return " ".join(lines[-1].split())[:200] if lines else f"exit code {code}"
