"""Measure the input of training: images per second of a data source by augmentation and number of worker processes."""

import tempfile
from pathlib import Path

from deepjax import files
from deepjax.benchmarks import input_programs, report, rounds
from deepjax.benchmarks.depth import machine, writable
from deepjax.benchmarks.frameworks import busy, command
from deepjax.errors import InputError, choices

SOURCES = ("digits", "jpeg")
HEADER = ("source", "augmentation", "workers", "images / s", "quartiles", "")


def run(out, *, sources=SOURCES, augments=(), workers=(0, 1, 2), batch=64, images=512, count=10, log=lambda text: None):
    """Measure, and write input.json and input.md. The programs of one source take turns.

    Args:
      out: the folder. An existing report in it is replaced.
      sources: "digits", whose images are in memory, and "jpeg", a folder of JPEG files that is made for it.
      augments: keys of `input_programs.AUGMENTS`. Empty: all.
      workers: numbers of processes that decode files; for digits, which need none, only 0 is measured.
      batch: images in a batch.
      images: number of JPEG files.
      count: rounds.
      log: function called with each line of progress.

    Returns:
      The contents of input.json: "command", "machine", "options", "cells": records with "source", "augment", "workers",
      "speed" (images a second, as `rounds.spread`), "platform", "stopped".

    Raises:
      InputError: an unknown source or augmentation, a negative number of workers, a batch or number of rounds below 1,
        fewer than two batches of images, a folder that cannot be written.
    """
    _check(sources, augments, workers, batch, images, count)
    augments = list(augments) or list(input_programs.AUGMENTS)
    folder = writable(out)
    options = {"sources": list(sources), "augments": augments, "workers": sorted(set(workers)), "batch": batch}
    options |= {"images": images, "rounds": count}
    record = {"command": command("input", options), "machine": machine(), "options": options, "cells": []}
    for line in busy(record["machine"]):
        log(line)
    with tempfile.TemporaryDirectory() as pictures:
        if "jpeg" in sources:
            input_programs.write_images(Path(pictures), images)
        for source in sources:
            record["cells"] += _measure(source, pictures, augments, options["workers"], batch, count, log)
            files.write_json(folder / "input.json", record)
            files.write_text(folder / "input.md", markdown(record))
    return record


def _check(sources, augments, workers, batch, images, count):
    for what, names, known in (("source", sources, SOURCES), ("augmentation", augments, input_programs.AUGMENTS)):
        for name in names:
            if name not in known:
                raise InputError(f"{what} {name!r} is unknown; {choices(name, known)}")
    if not sources or not workers or min(workers) < 0:
        raise InputError(f"sources {list(sources)} and workers {list(workers)}: name at least one of each, from 0")
    if batch < 1 or count < 1 or images < 4 * batch:
        raise InputError(f"batch {batch}, rounds {count} must be at least 1, images {images} at least {4 * batch}")


def _measure(source, folder, augments, workers, batch, count, log):
    """Return the records of a source. For each augmentation, all numbers of workers take turns."""
    records = []
    for augment in augments:
        if source not in input_programs.ONLY.get(augment, SOURCES):
            continue
        log(f"{source}, {augment}")
        numbers = workers if source == "jpeg" else [0]
        jobs = {str(number): input_programs.job(source, folder, augment, number, batch) for number in numbers}
        facts, taken = rounds.take(jobs, count, log)
        for number in numbers:
            name = str(number)
            speed = rounds.spread([batch / seconds for seconds in rounds.seconds_of(taken, name)])
            record = {"source": source, "augment": augment, "workers": number, "speed": speed}
            record |= {field: facts[name].get(field) for field in ("platform", "stopped")}
            records.append(record)
    return records


def tables(record):
    """Return the table of a record as [(title, header, rows of cells)]."""
    rows = []
    for cell in record["cells"]:
        speed = cell["speed"]
        numbers = (f"{speed['median']:,.0f}", f"{speed['low']:,.0f} to {speed['high']:,.0f}") if speed else ("-", "-")
        rows.append((cell["source"], cell["augment"], str(cell["workers"]), *numbers, cell["stopped"] or ""))
    return [(f"Input, batch {record['options']['batch']}", HEADER, rows)]


def about(record):
    """Return one paragraph about the machine and the versions."""
    return report.about({"machine": record["machine"], "nets": record["cells"]})


def markdown(record):
    """Return the report as Markdown."""
    sections = "\n".join(report.section(*table) for table in tables(record))
    return f"# The input of training\n\n`{record['command']}`\n\n{about(record)}\n\n{sections}"
