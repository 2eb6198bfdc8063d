"""Sources of data sets: one file per kind. To add a kind, add a file with a SOURCE and its line in SOURCES."""

from pathlib import Path

from deepjax.data.sources import builtin, folder, npz, original, prepared, table
from deepjax.data.sources.source import DataSource, Facts, Listed, Wanted
from deepjax.errors import InputError

# In order of precedence: the first source that owns a name loads it.
SOURCES: tuple[DataSource, ...] = (
    builtin.SOURCE,
    table.SOURCE,  # before folders, whose source owns every absolute path
    folder.SOURCE,
    npz.SOURCE,
    original.SOURCE,
    prepared.SOURCE,
)


def find(wanted: Wanted) -> DataSource:
    """Return the source that provides a data set.

    Raise InputError if no source provides it.
    """
    for source in SOURCES:
        if source.owns(wanted):
            return source
    if wanted.name and Path(wanted.name).is_dir():
        raise InputError(f"data.name {wanted.name}: give this folder of images as --data.name ./{wanted.name}")
    prepared.check_data_dir(wanted.data_dir)
    names = {row.name for row in available(wanted.data_dir)}
    hint = prepared.nearest(prepared.base_name(wanted.name), names)
    raise InputError(f"data.name {wanted.name!r}: no such data set, folder with train/, .npz or .csv file; {hint}")


def facts(wanted: Wanted) -> Facts | None:
    """Return the recorded facts about a data set, without reading its images, or None if it must be loaded.

    The files of a well-known data set (`original.ORIGINAL`) need not exist.
    """
    for source in SOURCES:
        if found := source.facts(wanted):
            return found
    return None


def available(data_dir: str) -> list[Listed]:
    """List the built-in data sets, the well-known ones, and all that TFDS prepared in data_dir."""
    return [row for source in SOURCES for row in source.rows(data_dir)]
