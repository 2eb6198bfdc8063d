"""The one exception for bad input, and the hint that names what was probably meant."""

import difflib
from collections.abc import Iterable

MANY = 40  # names that are too long a line


class InputError(ValueError):
    """Something the user gave cannot work. The message is one line: what was given, its value, the remedy.

    The command line prints the message without a traceback and exits with 2.
    """


def choices(name: str, valid: Iterable[str]) -> str:
    """'did you mean X?' where a valid name is close, else the list of valid names; of very many, the nearest."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(valid) > MANY:
        nearest = difflib.get_close_matches(name, valid, n=5, cutoff=0.0)
        return f"choose from {len(valid)}, such as {', '.join(nearest)}"
    return f"choose from {', '.join(valid)}"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, at most 200 characters; the name of its type if it is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__


class TrainingFailed(RuntimeError):
    """Training cannot go on: the loss is not finite. The command line prints the message and exits with 1."""


class Stopped(Exception):
    """A signal ended training after everything was saved. `number` is the signal's."""

    def __init__(self, message, number):
        super().__init__(message)
        self.number = number
