"""Tables in a CSV file: a row of names, then one example in each row, with numbers as features."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepjax.data.records import Arrays, Dataset
from deepjax.data.sources.source import DataSource, Wanted
from deepjax.data.splits import stratified
from deepjax.errors import InputError, choices
from deepjax.foreign import reading

TEST = 0.2  # fraction of the rows for testing


class Table(NamedTuple):
    """The cells of a CSV file as text, row by row."""

    path: str
    columns: tuple[str, ...]
    numbers: tuple[int, ...]
    """Of each row in the file, the header being row 1: what a spreadsheet shows."""
    rows: tuple[tuple[str, ...], ...]

    def text(self, name: str) -> list[str]:
        """Return a column. Raise InputError, with row and column, if a cell is empty."""
        column = self.columns.index(name)
        values = [row[column].strip() for row in self.rows]
        if "" in values:
            raise InputError(f"{self._where(values.index(''), name)} is missing; fill it in, or remove the row")
        return values

    def floats(self, name: str) -> np.ndarray:
        """Return a column as float32 [rows]. Raise InputError, with row and column, for what is no finite number."""
        values = self.text(name)
        found = np.array([_number(value) for value in values], np.float64)
        with np.errstate(over="ignore"):
            found = found.astype(np.float32)
        if not (finite := np.isfinite(found)).all():
            wrong = int(finite.argmin())
            where = self._where(wrong, name)
            raise InputError(f"{where} is {values[wrong]!r:.40}, not a finite number; correct it, or remove the row")
        return found

    def features(self, names) -> np.ndarray:
        """Return these columns as float32 [rows, len(names)]. Raise InputError if one is missing, and as `floats`."""
        for name in names:
            if name not in self.columns:
                raise InputError(f"{self.path} has no column {name!r}; {choices(name, self.columns)}")
        return np.stack([self.floats(name) for name in names], 1)

    def _where(self, index: int, name: str) -> str:
        return f"{self.path}: row {self.numbers[index]}, column {name}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_table(path: Path) -> Table:
    """Read a CSV file with a row of names. Empty lines are skipped.

    Raise InputError for a file that cannot be read, names that are missing or not distinct, no further row, or a row
    with more or fewer cells than names.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    damaged = reading(f"{path}: cannot be read as CSV", "save it as CSV, in UTF-8")
    with damaged, open(path, encoding="utf-8-sig", newline="") as file:
        found = [(number, tuple(row)) for number, row in enumerate(csv.reader(file, strict=True), 1) if row]
    if len(found) < 2:
        raise InputError(f"{path}: has {len(found)} rows; give a row of names, then a row for each example")
    columns = tuple(name.strip() for name in found[0][1])
    if len(set(columns)) < len(columns) or "" in columns:
        raise InputError(f"{path}: the first row must name each column differently, it is {', '.join(columns):.80}")
    for number, row in found[1:]:
        if len(row) != len(columns):
            raise InputError(f"{path}: row {number} has {len(row)} cells, the first row {len(columns)}; correct it")
    numbers, rows = zip(*found[1:])
    return Table(str(path), columns, numbers, rows)


def load_table(path: Path, target="", test: float | None = None, seed=0) -> Dataset:
    """Load a CSV file as a data set: the column `target` (empty: the last) is learned, the others are features.

    A target of numbers makes a data set without classes, for regression; one without any number makes classes of its
    words, in alphabetical order.

    Args:
      path: path of the file.
      target: name of a column.
      test: fraction of the rows to draw for testing, of each class. None: 0.2.
      seed: of this draw.

    Raises:
      InputError: as `read_table`; there is no column `target`, or no other one; a feature is no finite number; a target
        has both numbers and words.
    """
    table = read_table(path)
    target = target or table.columns[-1]
    if target not in table.columns:
        raise InputError(f"data.target {target!r}: {path} has no such column; {choices(target, table.columns)}")
    names = tuple(name for name in table.columns if name != target)
    if not names:
        raise InputError(f"{path}: has only the column {target}; separate columns by commas, and give features too")
    labels, classes = _labels(table, target)
    everything = Arrays(table.features(names), labels)
    rest, drawn = stratified(labels, TEST if test is None else test, seed, "data.test")
    note = f"{len(drawn):,} of {len(labels):,} rows were drawn for testing, with seed {seed}"
    train, none, found = everything.take(rest), everything.take(rest[:0]), everything.take(drawn)
    columns = (*names, target)
    return Dataset(path.stem, classes, (len(names),), train, none, found, notes=(note,), drawn=True, columns=columns)


def _labels(table: Table, target: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (numbers, no classes) or (class of each row, names of classes)."""
    words = table.text(target)
    if any(not math.isnan(_number(word)) for word in words):  # then the others must be numbers too
        return table.floats(target), ()
    classes, labels = np.unique(words, return_inverse=True)
    return labels.astype(np.int32), tuple(map(str, classes))


def _owns(wanted: Wanted) -> bool:
    return wanted.name.lower().endswith(".csv")


def _load(wanted: Wanted) -> Dataset:
    return load_table(Path(wanted.name).expanduser(), wanted.target, wanted.test, wanted.seed)


SOURCE = DataSource(_owns, _load, options=("test", "test_seed", "target"))
