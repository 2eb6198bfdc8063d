"""The exceptions of deepjax, and hints for their messages."""

import difflib
import re
from collections.abc import Iterable

MANY = 40  # of more valid names than this, only the nearest are listed
ADDRESS = re.compile(r"<([\w.]+)(?: object)? at 0x[0-9a-fA-F]+>")  # as repr writes an object: says nothing to a user
PLACE = re.compile(r" at 0x[0-9a-fA-F]+")  # what is left of other objects, such as functions
COLOR = re.compile(r"\x1b\[[0-9;]*m")


class InputError(ValueError):
    """Input that cannot work. The message is one line: the name of the argument, its value, the remedy.

    The command line prints the message without a traceback and exits with 2.
    """


def choices(name: str, valid: Iterable[str]) -> str:
    """Return "did you mean X?" if a valid name is close, else the list of valid names; of very many, the nearest."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(valid) > MANY:
        nearest = difflib.get_close_matches(name, valid, n=5, cutoff=0.0)
        return f"choose from {len(valid)}, such as {', '.join(nearest)}"
    return f"choose from {', '.join(valid)}"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, at most 200 characters; the name of its type if it is empty.

    Addresses of objects are left out, and a KeyError, which is only a key, begins with its name.

    >>> first_line(ValueError("cannot identify <_io.BytesIO object at 0x7fa6>, as\\nit is empty"))
    'cannot identify BytesIO, as'
    """
    lines = COLOR.sub("", str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    line = PLACE.sub("", ADDRESS.sub(lambda match: match[1].rpartition(".")[2], lines[0])).strip()[:200]
    return f"KeyError {line}" if isinstance(error, KeyError) else line


class TrainingFailed(RuntimeError):
    """Training cannot continue: the loss is not finite. The command line prints the message and exits with 1."""


class Stopped(Exception):
    """A signal stopped training, after everything was saved. `number` is the number of the signal."""

    def __init__(self, message, number):
        super().__init__(message)
        self.number = number
