"""The interface of a data source: one kind of place from which data sets are loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from deepjax.data.records import Dataset


class Wanted(NamedTuple):
    """Which data set to load."""

    name: str
    """config.Data.name."""
    data_dir: str
    """config.Config.data_dir: folder with data sets. Empty: the source's default folder, if it has one."""
    image_size: int
    """config.Data.image_size: height and width in pixels. 0: as stored."""
    test: float | None = None
    """config.Data.test: fraction of the images to draw for testing. None: the source's own default."""
    skip_broken: bool = False
    """config.Data.skip_broken: leave out images that cannot be decoded."""
    seed: int = 0
    """config.Data.test_seed: of the draw of test images."""
    target: str = ""
    """config.Data.target: name of the column to learn. Empty: the last."""


class Facts(NamedTuple):
    """Properties of a data set that are known before its images are read."""

    shape: tuple[int, ...]
    """Of one example: (H, W, C), or (features,)."""
    classes: int
    examples: dict[str, int]
    """Number of examples of each split: train, test and, if the data set has one, validation."""


class Listed(NamedTuple):
    """One row of `deepjax datasets`."""

    name: str
    kind: str
    what: str
    status: str
    """"ready", the folder of the files, or the command that prepares the data set."""


def _nothing(_) -> None:
    return None


def _no_rows(_) -> list[Listed]:
    return []


@dataclass(frozen=True)
class DataSource:
    """A kind of data set. A file in `deepjax/data/sources` defines one; `sources.SOURCES` lists them all."""

    owns: Callable[[Wanted], bool]
    """Return whether this source provides the data set. The first source in SOURCES that owns a name loads it."""
    load: Callable[[Wanted], Dataset]
    """Load the data set with the splits that it has. An empty validation split means that it has none."""
    rows: Callable[[str], list[Listed]] = _no_rows
    """Return the rows of `deepjax datasets` for a data_dir."""
    facts: Callable[[Wanted], Facts | None] = _nothing
    """Return the facts that are known without reading images, or None if the data set must be loaded."""
    options: tuple[str, ...] = ()
    """Those fields of config.Data that other sources refuse, but this one uses."""
