"""The command `deepjax`, also as `python -m deepjax`. SIGINT and SIGTERM are handled before the rest is imported."""

import contextlib
import os
import signal
import sys
from _thread import allocate_lock

ending = allocate_lock()  # held by the thread that ends the process


def main(argv=None):
    """Run the command line and return its exit code; on SIGINT or SIGTERM, end the process with one line.

    A KeyboardInterrupt is swallowed, or becomes an abort or pages of output, where it meets the import of a compiled
    module, a callback of XLA or a destructor. Therefore the process ends at once, with 128 plus the signal's number.
    Parts that must finish first set their own handlers (`training.signals`).
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    # Python's resource tracker removes the semaphores of worker processes that are ended, and would count them.
    quiet = os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, quiet))
    import threading

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    from deepjax.cli import main as run

    return run(argv)


def end(number, _=None):
    """End this process and the worker processes that it has started, with one line on standard error."""
    if not ending.acquire(blocking=False):
        return
    show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
    what = f"deepjax: stopped by {signal.Signals(number).name}; what was saved before is complete"
    # Standard output may be closed, or the signal may interrupt a write.
    with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{show_cursor}{what}\n".encode())
    if processes := sys.modules.get("multiprocessing.process"):
        for worker in processes.active_children():
            worker.kill()
    os._exit(128 + number)


def _watch(reader):
    """End the process also while its main thread, in which Python calls handlers, compiles or computes."""
    while True:
        for number in os.read(reader, 1):
            if signal.getsignal(number) is end:
                end(number)


if __name__ == "__main__":
    sys.exit(main())
