"""Find the image files in a folder. Training and prediction use the same rule."""

import os
from collections import Counter
from pathlib import Path

from deepjax.data.images import SUFFIXES
from deepjax.errors import InputError

SYSTEM = ("__MACOSX", "Thumbs.db", "desktop.ini")  # what operating systems put between a user's files


def find_images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the sorted image files in a folder and its subfolders, and the number of other files by suffix.

    Hidden files and folders (`is_hidden`) are left out and not counted. Links to folders are followed.

    Raise InputError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); check the folder") from error

    found, skipped, visited = [], Counter(), set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in visited:  # a link to a folder that was read already
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES and not is_hidden(name):
                found.append(Path(place, name))
            elif not is_hidden(name):
                skipped[suffix or "no suffix"] += 1
    return sorted(found), skipped


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is not the user's own: its name begins with a dot, or is one of SYSTEM."""
    return name.startswith(".") or name in SYSTEM


def describe_skipped(skipped: Counter[str]) -> str:
    """Return one line about the files that were not read, or "".

    >>> describe_skipped(Counter({".heic": 2, ".txt": 1}))
    '3 files were not read (no images of a known kind): 2 .heic, 1 .txt; convert .heic to .jpg'
    """
    if not skipped:
        return ""
    total, kinds = sum(skipped.values()), ", ".join(f"{n} {suffix}" for suffix, n in skipped.most_common())
    camera = " and ".join(suffix for suffix in (".heic", ".heif", ".avif") if suffix in skipped)
    files = "1 file was" if total == 1 else f"{total:,} files were"
    return f"{files} not read (no images of a known kind): {kinds}" + (f"; convert {camera} to .jpg" if camera else "")
