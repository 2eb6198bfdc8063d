"""The doctor on programs with known faults: how often it names them, and how often it blames their patched twins.

A folder holds `programs.json` and `programs.py`. The latter defines `load(path)`, which returns programs with `id`,
`spec`, `faults` (codes, as `deepjax.doctor` names them) and `build(patched, seed)`, a case with model, inputs, targets,
loss, optimizer, batch_size and epochs. `spec["published"]` may hold what other tools said: {set: {tool: bool or
{"cause": 0 or 1}}}.
"""

import json
import sys
import time
from collections import defaultdict
from importlib import util
from pathlib import Path
from statistics import mean
from typing import Any

import jax

from deepjax.doctor.examine import diagnose
from deepjax.doctor.subject import subject
from deepjax.errors import InputError, first_line
from deepjax.files import replacing


def run(out: Path, folder: Path, *, only=(), seed=0, budget=10.0, log=print) -> dict[str, Any]:
    """Examine every program of a folder and its patched twin, and write doctor.json and doctor.md.

    Args:
      out: folder of the results.
      folder: folder of the programs.
      only: ids of programs; empty: all.
      seed: of the data and the weights.
      budget: seconds of an examination on a nominal machine.
      log: receives one line per program.

    Returns:
      The record: "programs" and "summary".

    Raises:
      InputError: the folder does not hold such programs.
    """
    programs = [program for program in _load(folder) if not only or program.id in only]
    if not programs:
        raise InputError(f"programs {', '.join(only)} are not in {folder}")
    records = []
    for program in programs:
        record = {"id": program.id, "faults": program.faults, "published": program.spec.get("published", {})}
        for name, patched in (("buggy", False), ("patched", True)):
            record[name] = _examined(program, patched, seed, budget)
        records.append(record)
        log(_line(record))
        jax.clear_caches()
    whole = {"seed": seed, "budget": budget, "summary": summary(records), "programs": records}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("doctor.json", json.dumps(whole, indent=1)), ("doctor.md", markdown(whole))):
        with replacing(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return whole


def _load(folder):
    path = folder / "programs.py"
    if not path.is_file() or not (folder / "programs.json").is_file():
        raise InputError(f"{folder} must hold programs.json and programs.py, which builds the programs")
    spec = util.spec_from_file_location("deepjax_doctor_programs", path)
    module = util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)  # pyright: ignore[reportOptionalMemberAccess]
        return module.load(folder / "programs.json")
    except Exception as error:
        raise InputError(f"{path} cannot be run ({type(error).__name__}: {first_line(error)})") from error


def _examined(program, patched, seed, budget):
    begin, case = time.monotonic(), program.build(patched, seed)
    made = subject(
        case.model,
        (case.inputs, case.targets),
        case.loss,
        optimizer=case.optimizer,
        batch_size=case.batch_size,
        epochs=case.epochs,
    )
    start, _, findings, cure = diagnose(made, jax.random.key(seed), budget)
    return {
        "codes": [finding.code for finding in findings],
        "alarm": any(finding.severity == "serious" for finding in findings),
        "learns": [
            bool(finding.outcome and finding.outcome.learns) for finding in findings if finding.severity != "note"
        ],
        "cured": bool(cure and cure.learns),
        "quality": float(start.planned.quality[0]),
        "quality_cured": float(cure.quality_after) if cure else None,
        "seconds": round(time.monotonic() - begin, 1),
    }


def _line(record):
    buggy, patched = record["buggy"], record["patched"]
    right = "right" if buggy["codes"][:1] and buggy["codes"][0] in record["faults"] else "WRONG"
    alarm = f"FALSE ALARM {', '.join(patched['codes'])}" if patched["alarm"] else "twin healthy"
    named = ", ".join(buggy["codes"]) or "nothing"
    return f"{record['id']:<14} {right}: {named} (faults: {', '.join(record['faults'])}); {alarm}; {buggy['seconds']} s"


def summary(records) -> dict[str, Any]:
    """Return shares: first cause right, mean over codes, all found, false alarms, cured; and those of other tools."""
    by_code = defaultdict(list)
    for record in records:
        for code in record["faults"]:
            by_code[code].append(code in record["buggy"]["codes"])
    named = [record for record in records if record["buggy"]["codes"]]
    return {
        "programs": len(records),
        "first_cause_right": mean(_first_right(record) for record in records),
        "mean_over_codes": mean(mean(found) for found in by_code.values()),
        "all_faults_named": mean(set(record["faults"]) <= set(record["buggy"]["codes"]) for record in records),
        "false_alarms": mean(record["patched"]["alarm"] for record in records),
        "remedy_learns": mean(record["buggy"]["cured"] for record in named) if named else 0.0,
        "codes": {code: [sum(found), len(found)] for code, found in sorted(by_code.items())},
        "published": _published(records),
    }


def _first_right(record):
    return bool(record["buggy"]["codes"]) and record["buggy"]["codes"][0] in record["faults"]


def _published(records):
    """Return {"tool (set)": [right, of]} from what the programs' specifications record of other tools."""
    counts = defaultdict(lambda: [0, 0])
    for record in records:
        for name, tools in record["published"].items():
            for tool, verdict in tools.items():
                right = bool(verdict.get("cause")) if isinstance(verdict, dict) else bool(verdict)
                counts[f"{tool} ({name})"][0] += right
                counts[f"{tool} ({name})"][1] += 1
    return dict(sorted(counts.items()))


def about(record) -> str:
    """Return one line about the conditions."""
    programs = record["summary"]["programs"]
    return f"{programs} programs and their patched twins, seed {record['seed']}, budget {record['budget']:g} s each"


def tables(record):
    """Return [(title, header, rows)]."""
    total = record["summary"]
    percent = {
        "first cause right": "first_cause_right",
        "mean over codes of faults named": "mean_over_codes",
        "all faults named": "all_faults_named",
        "remedies learn, of programs with a finding": "remedy_learns",
        "false alarms on patched twins": "false_alarms",
    }
    rows = [[name, f"{100 * total[field]:.1f} %"] for name, field in percent.items()]
    codes = [[code, f"{found} of {count}"] for code, (found, count) in total["codes"].items()]
    others = [[tool, f"{right} of {count}"] for tool, (right, count) in total["published"].items()]
    found = [("deepjax doctor", ["measure", "share"], rows), ("Named where present", ["code", "named"], codes)]
    if others:
        found.append(("Published tools, cause named or fault found", ["tool (set)", "programs"], others))
    return found


def markdown(record) -> str:
    """Return the tables as Markdown."""
    parts = [about(record)]
    for title, header, rows in tables(record):
        lines = [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        parts.append("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]))
    return "\n\n".join(parts) + "\n"
