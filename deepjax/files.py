"""Atomic writes: every file is written under a temporary name in the same folder, then renamed."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepjax.errors import InputError

PARTIAL = ".tmp"  # the suffix of a file that is not complete


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write; rename it to `path` when the block ends without an exception.

    The content reaches the disk before the rename (fsync), so a crash leaves the old file or the new one. After an
    exception the temporary file is removed, and `path` is unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically. Raise ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raise InputError if it is missing or not valid JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; restore it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); it may be truncated") from None


def check_path(name: str, path: str | Path) -> None:
    """Raise InputError for a path with letters that the locale lacks, which libraries in C++ cannot open.

    Args:
      name: of the argument, for the message.
      path: of a file or folder. A relative path is checked with the folders above.
    """
    whole = os.path.abspath(path)
    try:
        whole.encode()
    except UnicodeEncodeError:
        locale = sys.getfilesystemencoding()
        raise InputError(f"{name} {whole!a} has letters outside of the locale ({locale}); set PYTHONUTF8=1") from None
