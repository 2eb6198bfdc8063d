"""Data sets in one .npz file."""

from pathlib import Path
from typing import Any

import numpy as np

from deepjax.data.records import Dataset
from deepjax.data.sources.arrays import from_arrays
from deepjax.data.sources.source import DataSource, Wanted
from deepjax.errors import InputError
from deepjax.foreign import reading


def npz(path: Path) -> Dataset:
    """Load x_train, y_train, x_test, y_test and, if present, x_validation and y_validation of an .npz file.

    `from_arrays` describes the types that it takes. Raise InputError for a file that cannot be read, a missing array,
    or what `from_arrays` refuses.
    """
    stored = _stored(path)
    validation = ("x_validation", "y_validation")
    names = ("x_train", "y_train", "x_test", "y_test", *(validation if set(validation) & set(stored) else ()))
    missing = [name for name in names if name not in stored]
    if missing:
        found = ", ".join(stored) or "nothing"
        raise InputError(f"data.name {path}: lacks {', '.join(missing)}; it has {found}")
    arrays: dict[str, Any] = {name: stored[name] for name in names}
    return from_arrays(**arrays, name=path.stem)


def _stored(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"data.name {path}: no such file or folder; check the path")
    damaged = reading(f"data.name {path}: cannot be read as .npz", "save it again")
    # The file is opened here, because np.load does not close a file that it cannot read.
    with damaged, open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _owns(wanted: Wanted) -> bool:
    return wanted.name.endswith(".npz")


def _load(wanted: Wanted) -> Dataset:
    return npz(Path(wanted.name).expanduser())


SOURCE = DataSource(_owns, _load)
