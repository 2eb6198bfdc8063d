"""SIGINT and SIGTERM: noted while a run trains, raised while a child process is waited for."""

import contextlib
import signal
import threading
import time

NUMBERS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.5  # seconds after which another SIGINT is a second one


class Signals:
    """While active, SIGINT and SIGTERM are noted in `received`. A later second SIGINT acts as before `Signals`."""

    def __init__(self):
        self.received, self.since = 0, 0.0
        self.before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows no handlers in other threads
            self.before = {number: signal.signal(number, self._note) for number in NUMBERS}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def released(self):
        """Let signals act at once, because nothing that is done inside needs to be saved."""
        self.__exit__()
        if self.received:
            signal.raise_signal(self.received)
        yield
        self.__enter__()

    def _note(self, number, _):
        now = time.monotonic()
        # `timeout -s INT` and some shells send a signal to the process and to its group, which is one wish to stop.
        if self.received and number == signal.SIGINT and now - self.since > AGAIN:
            self.__exit__()
            signal.raise_signal(number)
        elif not self.received:
            self.received, self.since = number, now


@contextlib.contextmanager
def raising():
    """While active, SIGINT and SIGTERM raise KeyboardInterrupt(number), so that `with` ends child processes.

    Only for code that waits for child processes: elsewhere other libraries may swallow the exception.
    """

    def interrupt(number, _):
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
