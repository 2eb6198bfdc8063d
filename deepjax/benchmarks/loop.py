"""Measure what `deepjax train` costs beyond its compiled training step: reading batches, records, progress."""

import tempfile
from pathlib import Path

from deepjax import files
from deepjax.benchmarks import input_programs, loop_programs, report, rounds
from deepjax.benchmarks.depth import machine, writable
from deepjax.benchmarks.frameworks import busy, command
from deepjax.benchmarks.loop_programs import SOURCES
from deepjax.errors import InputError, choices

HEADER = (
    "source",
    "network",
    "batch",
    "the step, ms",
    "input",
    "steps per call",
    "train, ms a step",
    "train / step",
    "",
)


def run(out, *, sources=(), steps_per_call=(1,), workers=0, images=256, count=10, cpu=False, log=lambda text: None):
    """Measure, and write loop.json and loop.md. The programs of one source take turns; a turn is at least one epoch.

    Args:
      out: the folder. An existing report in it is replaced.
      sources: keys of `loop_programs.SOURCES`. Empty: all.
      steps_per_call: values of the config's field.
      workers: number of processes that decode JPEG files. 0: threads.
      images: number of JPEG files; 72 % of them are for training.
      count: rounds.
      cpu: measure the processor time of the process, which other work on the machine changes less. No round is dropped.
      log: function called with each line of progress.

    Returns:
      The contents of loop.json: "command", "machine", "options", "cells": records with "source", "model", "batch",
      "steps" of an epoch, "step" (seconds of the compiled step), "input" (share of the time that reading batches
      takes), "steps_per_call", "train" (seconds of a step of the whole loop), "ratio" (of these seconds to the step's),
      all four as `rounds.spread`, "dropped" (disturbed rounds), "busy" (they are used nevertheless), "platform",
      "stopped".

    Raises:
      InputError: an unknown source, fewer than 32 images, negative workers, steps or rounds below 1, a folder
        that cannot be written.
    """
    for name in sources:
        if name not in SOURCES:
            raise InputError(f"source {name!r} is unknown; {choices(name, SOURCES)}")
    if not steps_per_call or min(steps_per_call) < 1:
        raise InputError(f"steps_per_call {list(steps_per_call)}: name at least one number, from 1")
    if workers < 0 or count < 1 or images < 32:
        raise InputError(
            f"workers {workers} must be at least 0, rounds {count} at least 1, images {images} at least 32"
        )
    folder = writable(out)
    sources = list(dict.fromkeys(sources)) or list(SOURCES)
    options = {"sources": sources, "steps-per-call": sorted(set(steps_per_call)), "workers": workers}
    options |= {"images": images, "rounds": count, "cpu": cpu}
    record = {"command": command("loop", options), "machine": machine(), "options": options, "cells": []}
    for line in busy(record["machine"]):
        log(line)
    with tempfile.TemporaryDirectory() as runs:
        if "jpeg" in sources:
            input_programs.write_images(Path(runs, "images"), images)
        for source in sources:
            record["cells"] += _measure(source, runs, options["steps-per-call"], workers, count, cpu, log)
            files.write_json(folder / "loop.json", record)
            files.write_text(folder / "loop.md", markdown(record))
    return record


def _measure(source, folder, sizes, workers, count, cpu, log):
    """Return the records of a source, one for each number of steps per call."""
    log(source)
    jobs = {name: loop_programs.job(source, folder, name, 1, workers, cpu) for name in ("step", "input")}
    jobs |= {f"train {size}": loop_programs.job(source, folder, "train", size, workers, cpu) for size in sizes}
    facts, taken = rounds.take(jobs, count, log, cap=3600.0)
    used, dropped, disturbed = (taken, 0, False) if cpu else rounds.keep(taken)
    steps = facts["step"].get("steps")

    def a_step(name):
        return rounds.spread([seconds / steps for seconds in rounds.seconds_of(used, name)])

    found = {"source": source, "steps": steps, "dropped": dropped, "busy": disturbed, "step": a_step("step")}
    found |= {field: facts["step"].get(field) for field in ("model", "batch", "platform")}
    found["input"] = rounds.spread([1 - quotient for quotient in rounds.quotients(used, "step", "input")])
    return [
        {
            **found,
            "steps_per_call": size,
            "train": a_step(f"train {size}"),
            "ratio": rounds.spread(rounds.quotients(used, f"train {size}", "step")),
            "stopped": next((fact["stopped"] for fact in facts.values() if fact["stopped"]), None),
        }
        for size in sizes
    ]


def tables(record):
    """Return the table of a record as [(title, header, rows of cells)]."""

    def cell(spread, form, factor=1.0):
        return format(spread["median"] * factor, form) if spread else "-"

    def ratio(spread):
        return f"{spread['median']:.3f} ({spread['low']:.3f} to {spread['high']:.3f})" if spread else "-"

    rows = [
        (
            one["source"],
            str(one["model"]),
            str(one["batch"]),
            cell(one["step"], ",.2f", 1e3),
            cell(one["input"], ".1%"),
            str(one["steps_per_call"]),
            cell(one["train"], ",.2f", 1e3),
            ratio(one["ratio"]),
            one["stopped"] or (f"{one['dropped']} rounds disturbed" if one["dropped"] else ""),
        )
        for one in record["cells"]
    ]
    return [("The loop of training beside its compiled step", HEADER, rows)]


def about(record):
    """Return one paragraph about the machine and the versions."""
    return report.about({"machine": record["machine"], "nets": record["cells"]})


def markdown(record):
    """Return the report as Markdown."""
    sections = "\n".join(report.section(*table) for table in tables(record))
    return f"# The loop of training\n\n`{record['command']}`\n\n{about(record)}\n\n{sections}"
