"""Compilation apart from running."""

import time
from typing import Any


class Compiled:
    """A jitted function that is compiled ahead, so that the time this takes is known apart."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0
        self.compiled: Any = None

    def compile(self, *arguments):
        """Compile for arguments like these. Returns the seconds it took."""
        started = time.monotonic()
        self.compiled = self.function.lower(*arguments).compile()
        self.seconds = time.monotonic() - started
        return self.seconds

    def __call__(self, *arguments):
        """Call it, compiled for the first call's shapes."""
        if not self.seconds:
            self.compile(*arguments)
        return self.compiled(*arguments)
