"""SIGINT and SIGTERM while a run trains."""

import signal
import threading


class Signals:
    """While active, SIGINT and SIGTERM are noted in `received`; a second SIGINT interrupts at once."""

    def __init__(self):
        self.received = 0
        self.before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows no handlers in other threads
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
