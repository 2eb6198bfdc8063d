"""Measure whole training steps, or inference, of deepjax beside plain Flax, PyTorch and Keras."""

import math

from deepjax import files
from deepjax.benchmarks import cells, frameworks_report, matmul, rounds, systems, workloads
from deepjax.benchmarks.depth import QUIET, machine, writable
from deepjax.errors import InputError, choices

PEAK = "matmul"  # name of the program that measures the machine's peak
TORCH = ("torch", "torch-compile")
NUMBERS = ("trace", "lower", "compile", "temporaries", "loss", "parameters", "platform", "peak", "stopped")


def run(
    out,
    *,
    names=(),
    compared=(),
    dtypes=workloads.DTYPES,
    threads=(),
    batch=None,
    count=15,
    inference=False,
    log=lambda text: None,
):
    """Measure, and write frameworks.json, frameworks.md and frameworks.png to a folder after every workload.

    Args:
      out: the folder. An existing report in it is replaced.
      names: workloads; see `workloads.choose`.
      compared: systems; see `systems.choose`.
      dtypes: of the computation, names in `workloads.DTYPES`.
      threads: numbers of processor cores. Empty: all powers of two up to the number of cores.
      batch: examples in a batch. None: each workload's own.
      count: rounds.
      inference: measure forward passes in place of training steps.
      log: function called with each line of progress.

    Returns:
      The contents of frameworks.json: "command", "machine", "options", "cells" (see `measure`), "left_out" (lines),
      "means" (see `means`). Times are in seconds and sizes in bytes; a missing number is None.

    Raises:
      InputError: see `workloads.choose` and `systems.choose`; an unknown dtype, threads that the machine does not have,
        rounds below 1, a folder that cannot be written.
    """
    works = workloads.choose(names, batch, inference)
    compared = systems.choose(compared)
    dtypes, threads = check_dtypes(dtypes), check_threads(threads)
    if count < 1:
        raise InputError(f"rounds {count} must be at least 1")
    folder = writable(out)
    options = {"workloads": [work.name for work in works], "systems": compared, "dtypes": dtypes, "threads": threads}
    options["workloads"] = list(dict.fromkeys(options["workloads"]))
    options |= {"batch": batch, "rounds": count, "inference": inference}
    record = {"command": command("frameworks", options), "machine": machine(), "options": options, "cells": []}
    lacking = ((work.name, name, systems.lacks(name, work, inference)) for work in works for name in compared)
    record["left_out"] = list(dict.fromkeys(f"{work} of {name}: {why}" for work, name, why in lacking if why))
    for line in (*record["left_out"], *busy(record["machine"])):
        log(line)
    for dtype in dtypes:
        for cores in threads:
            for work in works:
                record["cells"] += measure(work, compared, dtype, cores, inference, count, log)
                record["means"] = means(record["cells"])
                _write(folder, record)
    return record


def check_dtypes(dtypes):
    """Return the dtypes. Raise InputError for none, or an unknown one."""
    for dtype in dtypes:
        if dtype not in workloads.DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown; {choices(dtype, workloads.DTYPES)}")
    if not dtypes:
        raise InputError(f"dtypes []: name at least one of {', '.join(workloads.DTYPES)}")
    return list(dict.fromkeys(dtypes))


def check_threads(threads):
    """Return the numbers of cores, by default all powers of two. Raise InputError for more than there are."""
    most = cells.cores()
    for number in threads:
        if not 1 <= number <= most:
            raise InputError(f"threads {number} must be from 1 to {most}, the cores that this process may use")
    return sorted(set(threads)) or [2**power for power in range(most.bit_length()) if 2**power <= most]


def busy(machine):
    """Return what to say about the load of the machine before the first measurement, as a list of lines."""
    if (machine["load"] or 0) <= QUIET * machine["cores"]:
        return []
    return [f"the machine is busy (load {machine['load']:.1f}): rounds that others disturb are dropped"]


def measure(work, compared, dtype, threads, inference, count, log):
    """Return [record of one workload], [] if no system has it.

    The record has "workload", "batch", "dtype", "threads", "macs" (multiply-adds of a step), "dropped" (disturbed
    rounds), "busy" (disturbed rounds are used, because too few others are left), "peak" (multiply-adds x 2 a second of
    the matrix product), "systems" ({name: numbers}, see `_numbers`), "against" ({"torch": seconds of deepjax divided by
    those of the better of torch and torch-compile, "flax": ...}) and "rounds" (see `rounds.take`).
    """
    kind = "infer" if inference else "train"
    jobs = {
        name: job(kind, name, work, dtype, threads) for name in compared if not systems.lacks(name, work, inference)
    }
    if not jobs:
        return []
    log(f"{work.name}, batch {work.batch}, {dtype}, {threads} threads")
    facts, taken = rounds.take({**jobs, PEAK: matmul.job(dtype, threads)}, count, log)
    used, dropped, disturbed = rounds.keep(taken)
    if disturbed:
        log(f"  other processes disturbed {dropped} of {count} rounds; all are used")
    macs = next((facts[name]["macs"] for name in ("deepjax", "flax", "keras") if facts.get(name, {}).get("macs")), None)
    cell = {"workload": work.name, "batch": work.batch, "dtype": dtype, "threads": threads, "macs": macs}
    cell |= {"dropped": dropped, "busy": disturbed, "peak": None}
    if peak := rounds.spread([2 * matmul.SIZE**3 / seconds for seconds in rounds.seconds_of(used, PEAK)]):
        cell["peak"] = peak
    cell["systems"] = {name: _numbers(name, facts[name], used, macs) for name in jobs}
    cell["against"] = _against(used, cell["systems"])
    for name in jobs:
        log(f"  {frameworks_report.line(name, cell['systems'][name])}")
    return [{**cell, "rounds": taken}]


def job(kind, system, work, dtype, threads):
    """Return the worker's job that measures a workload in a system; `kind`: "train" or "infer"."""
    found = {"kind": kind, "system": system, "workload": work._asdict(), "dtype": dtype, "threads": threads}
    return {**found, "phases": systems.SYSTEMS[system].phases}


def _numbers(name, facts, used, macs):
    """Return the numbers of a system: "seconds" of a step, "ratio" (its seconds divided by those of deepjax), both as
    `rounds.spread`; "speed" (multiply-adds x 2 a second), "share" of the matrix product's; those of `NUMBERS`."""
    seconds = rounds.spread(rounds.seconds_of(used, name))
    found = {field: facts.get(field) for field in NUMBERS}
    if not math.isfinite(found["loss"] or 0.0):
        found["loss"] = None  # JSON has no NaN and no infinity
    found |= {"seconds": seconds, "ratio": None, "speed": None, "share": None}
    if seconds and name != "deepjax":
        found["ratio"] = rounds.spread(rounds.quotients(used, name, "deepjax"))
    if seconds and macs:
        found["speed"] = 2 * macs / seconds["median"]
        shares = [macs / matmul.SIZE**3 * part for part in rounds.quotients(used, PEAK, name)]
        found["share"] = rounds.spread(shares)
    return found


def _against(used, found):
    """Return {"torch": ..., "flax": ...}: the median quotient of deepjax's seconds and theirs; None without both."""
    both = [name for name in TORCH if found.get(name, {}).get("seconds")]
    better = min(both, key=lambda name: found[name]["seconds"]["median"], default=None)
    pairs = {"torch": better, "flax": "flax"}
    spreads = {word: rounds.spread(rounds.quotients(used, "deepjax", name)) for word, name in pairs.items()}
    return {word: each and each["median"] for word, each in spreads.items()}


def means(measured):
    """Return the geometric means over workloads, one record for each dtype, number of threads and system: "dtype",
    "threads", "against" ("torch": the better of eager and compiled), "mean" of the quotients, "workloads"."""
    found = []
    for dtype, threads in dict.fromkeys((cell["dtype"], cell["threads"]) for cell in measured):
        here = [cell for cell in measured if (cell["dtype"], cell["threads"]) == (dtype, threads)]
        for word in ("torch", "flax"):
            quotients = [cell["against"][word] for cell in here if cell["against"][word]]
            if quotients:
                record = {"dtype": dtype, "threads": threads, "against": word, "workloads": len(quotients)}
                found.append({**record, "mean": rounds.geometric_mean(quotients)})
    return found


def command(name, options):
    """Return the command line with these options.

    >>> command("frameworks", {"workloads": ["fcn_r"], "batch": None, "rounds": 15, "inference": True})
    'deepjax bench frameworks --workloads fcn_r --rounds 15 --inference'
    """
    words = [f"deepjax bench {name}"]
    for option, value in options.items():
        if value is True:
            words.append(f"--{option}")
        elif value not in (None, False):
            words.append(f"--{option} {','.join(map(str, value)) if isinstance(value, list) else value}")
    return " ".join(words)


def _write(folder, record):
    files.write_json(folder / "frameworks.json", record)
    files.write_text(folder / "frameworks.md", frameworks_report.markdown(record))
    frameworks_report.plot(record).savefig(folder / "frameworks.png", dpi=150)
