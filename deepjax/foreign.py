"""What others wrote: files that foreign libraries read, and the numbers in them."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from deepjax.errors import InputError, first_line


@contextlib.contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Raise any exception of another library as one InputError: "what (reason); remedy".

    Damaged bytes may raise anything, in any version of a library, so the types are not listed. An InputError passes
    unchanged. Only calls of other libraries belong into the block: it would hide our own mistakes too.

    >>> with reading("a.txt: cannot be read", "write it again"):
    ...     b"\\xff".decode("ascii")
    Traceback (most recent call last):
    deepjax.errors.InputError: a.txt: cannot be read ('ascii' codec can't decode byte 0xff ...); write it again
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} ({first_line(error)}); {remedy}") from error


def check_finite(leaves: Mapping[str, Any], where: str) -> None:
    """Raise InputError, with its name, for an array that has NaN or infinity.

    Args:
      leaves: {name: array of floating point numbers}.
      where: beginning of the message, such as the path of a file.
    """
    for name, leaf in leaves.items():
        wrong = np.size(leaf) - int(np.isfinite(leaf).sum())
        if wrong:
            of = f"{wrong:,} of {np.size(leaf):,}"
            raise InputError(f"{where} {name}: {of} values are not finite; use weights that did not diverge")
