"""The one exception for bad input, and the hint that names what was probably meant."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot work. The message is one line: what was given, its value, the remedy.

    The command line prints the message without a traceback and exits with 2.
    """


def choices(name: str, valid: Iterable[str]) -> str:
    """'did you mean X?' where a valid name is close, else the list of valid names."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(valid)}"


class TrainingFailed(RuntimeError):
    """Training cannot go on: the loss is not finite. The command line prints the message and exits with 1."""


class Stopped(Exception):
    """A signal ended training after everything was saved. `number` is the signal's."""

    def __init__(self, message, number):
        super().__init__(message)
        self.number = number
