"""Measure the cost of depth: time to trace, lower and compile, temporaries, and step time of deepjax, Flax and PyTorch.

Every program is compiled in a separate process, while no other runs, and without any cache. Then the programs of one
unit kind and depth take turns at training steps, so that other load on the machine slows all of them equally.
"""

import contextlib
import datetime
import math
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deepjax import files
from deepjax.benchmarks import cells, growth, report
from deepjax.benchmarks.process import Ended, Process, cached
from deepjax.errors import InputError

DEPTHS = (20, 56, 110, 332, 1202)
STAGE_DEPTHS = (10, 1024, 4096, 10000)
TURN = 0.2  # seconds: a turn is one step, or as many as fit
QUIET = 0.5  # largest load per core of a machine that is not busy
MEASURED = ("trace", "lower", "compile", "temporaries", "arguments", "outputs", "code", "cache_hits", "platform")


def run(
    out,
    *,
    units=cells.UNITS,
    variants=None,
    depths=DEPTHS,
    steps=10,
    batch=8,
    width=16,
    stage_units=tuple(cells.STAGES),
    stage_depths=STAGE_DEPTHS,
    second_start=True,
    compile_cap=600.0,
    log=lambda text: None,
):
    """Measure, and write depth.json, depth.md and depth.png to a folder after every group of cells.

    Args:
      out: the folder. An existing report in it is replaced.
      units, variants, depths, batch, width: of the networks; see `cells.nets`.
      steps: turns that each network takes. Short steps are repeated within a turn.
      stage_units, stage_depths: of the stages, which are compiled but not run; see `cells.stages`.
      second_start: also measure the time from the start of a process to the end of its first step, with JAX's
        persistent compilation cache, at the greatest depth of the first unit.
      compile_cap: seconds to build, trace, lower and compile one cell. A cell that takes longer is stopped, and deeper
        cells of its kind are not tried.
      log: function called with each line of progress.

    Returns:
      The contents of depth.json: "command", "machine", "options", "nets", "stages", "starts" (one record for each
      cell), "fits". Times are in seconds and sizes in bytes; a missing number is None.

    Raises:
      InputError: see `cells.nets` and `cells.stages`; steps below 1, a cap that is not positive, a folder that cannot
        be written.
    """
    groups = cells.nets(units, variants, depths, batch, width)
    staged = cells.stages(stage_units, stage_depths, batch, width)
    if steps < 1 or not 0 < compile_cap < math.inf:
        raise InputError(f"steps {steps} must be at least 1, compile_cap {compile_cap:g} a number of seconds above 0")
    folder = writable(out)
    options = {"units": list(units), "variants": variants and list(variants), "depths": sorted(set(depths))}
    options |= {"steps": steps, "batch": batch, "width": width, "compile_cap": compile_cap}
    options |= {"stage_units": list(stage_units), "stage_depths": sorted(set(stage_depths))}
    options["second_start"] = bool(second_start)
    record = {"command": command(options), "machine": machine(), "options": options}
    record |= {"nets": [], "stages": [], "starts": []}
    _warn(record["machine"], variants, log)
    capped = {}
    for group in groups:
        record["nets"] += measure(group, capped, compile_cap, steps, log)
        _write(folder, record)
    for cell in staged:
        record["stages"] += measure([cell], capped, compile_cap, 0, log)
    if second_start:
        deepest = [group for group in groups if group[0].unit == groups[0][0].unit][-1]
        scanned = [cell for cell in deepest if cell.variant in cells.SCANNED and cell[:3] not in capped]
        record["starts"] = [start_twice(cell, compile_cap, log) for cell in scanned]
    _write(folder, record)
    return record


def _warn(machine, variants, log):
    """Say what the numbers will lack."""
    if variants is None and not cells.has_torch():
        log("PyTorch is not installed: its variants are left out")
    if (machine["load"] or 0) > QUIET * machine["cores"]:
        log(f"the machine is busy (load {machine['load']:.1f}): timings will not be reliable")


def measure(group, capped, cap, steps, log):
    """Return the records of cells. Each cell is compiled alone, then the cells take turns at training steps.

    `capped` is {(kind, unit, variant): depth at which the time limit was reached}. This function adds to it.
    """
    records, running = [], []
    with contextlib.ExitStack() as stack:
        for cell in group:
            record = {"unit": cell.unit, "variant": cell.variant, "depth": cell.depth, "stopped": None}
            record |= dict.fromkeys((*MEASURED, "loss", "steps", "step", "step_min", "step_mean", "peak"))
            records.append(record)
            if cell[:3] in capped:
                record["stopped"] = f"not tried: the cap hit at {capped[cell[:3]]}"
            else:
                process = stack.enter_context(Process(cells.job(cell)))
                if _prepared(process, record, cap):
                    running.append((record, process))
                elif record["stopped"].startswith("cap"):
                    capped[cell[:3]] = cell.depth
            log(report.line(cell.kind, record))
        if steps:
            _take_turns(running, steps, cap)
            for record, _ in running:
                log(report.step_line(record))
    return records


def _prepared(process, record, cap):
    """Add the times of compilation to `record`. Return False, after stopping the process, if compilation fails."""
    try:
        for phase in process.phases(cap):
            record |= {name: phase[name] for name in (*MEASURED, "loss") if name in phase}
            if "seconds" in phase:
                record[phase["phase"]] = phase["seconds"]
    except Ended as end:
        process.end()
        record["stopped"] = str(end)
    return record["stopped"] is None


def _take_turns(running, steps, cap):
    """Add step times to the records of processes, which take turns. The first turn is not counted."""
    seconds = {id(record): [] for record, _ in running}
    for turn in range(steps + 1):
        for record, process in running:
            if record["stopped"]:
                continue
            try:
                answer = process.turn(TURN if turn else 0.0, cap)
            except Ended as end:
                record["stopped"] = str(end)
                continue
            record["peak"] = answer["peak"]
            if turn:
                seconds[id(record)] += answer["seconds"]
            elif record["loss"] is None:
                record["loss"] = answer["loss"]
    for record, _ in running:
        taken = seconds[id(record)]
        if not math.isfinite(record["loss"] or 0.0):
            record["loss"] = None  # JSON has no NaN and no infinity
        if taken and not record["stopped"]:
            record |= {"steps": len(taken), "step": statistics.median(taken), "step_min": min(taken)}
            record["step_mean"] = statistics.fmean(taken)


def start_twice(cell, cap, log):
    """Return the seconds from the start of a process to the end of its first step, with an empty and a filled cache.

    The record has "unit", "variant", "depth", "cold" (seconds of the first start), "warm" (of the second start),
    "cache_hits" and "step" (seconds of a later step), both of the second start.
    """
    record = {"unit": cell.unit, "variant": cell.variant, "depth": cell.depth, "cold": None, "warm": None}
    record |= {"cache_hits": None, "step": None, "stopped": None}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in ("cold", "warm"):
                begin = time.monotonic()
                with Process(cells.job(cell), cached(folder)) as process:
                    *_, compiled = process.phases(cap)
                    process.turn(0.0, cap)
                    record[name] = time.monotonic() - begin
                    record["step"] = statistics.median(process.turn(TURN, cap)["seconds"])
                record["cache_hits"] = compiled["cache_hits"]
        except Ended as end:
            record["stopped"] = str(end)
    log(report.start_line(record))
    return record


def command(options):
    """Return the command line with these options.

    >>> command({"depths": [20, 56], "variants": None, "steps": 10, "second_start": False})
    'deepjax bench depth --depths 20,56 --steps 10 --no-second-start'
    """
    words = ["deepjax bench depth"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else f"{value:g}"
            words.append(f"--{flag} {text or chr(39) * 2}")
    return " ".join(words)


def machine():
    """Return the hardware, software versions and settings of the measurement."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    pages = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}) and os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": names[0] if names else platform.processor(),
        "cores": cells.cores(),
        "memory": pages * os.sysconf("SC_PAGE_SIZE") if pages else None,
        "system": platform.platform(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("deepjax", "jax", "jaxlib", "flax", "optax", "torch", "keras")},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def writable(out):
    """Return the folder of a report, created if it is missing. Raise InputError if it cannot be written."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"out {folder} cannot be written ({error.strerror or error}); choose another folder") from None
    return folder


def _write(folder, record):
    record["fits"] = growth.fits(record["nets"])
    files.write_json(folder / "depth.json", record)
    files.write_text(folder / "depth.md", report.markdown(record))
    report.plot(record).savefig(folder / "depth.png", dpi=150)
