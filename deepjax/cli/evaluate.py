"""`deepjax eval`."""

import json
from dataclasses import dataclass
from typing import Literal

import tyro

from deepjax.cli.terminal import parse, table, warn
from deepjax.errors import InputError


@dataclass(frozen=True)
class Eval:
    """Options of `deepjax eval`."""

    workdir: tyro.conf.Positional[tuple[str, ...]]
    """Folder of the run, or folders of several."""
    average: Literal["predictions", "weights"] = "predictions"
    """How several runs or snapshots are averaged. predictions: the mean of their softmax probabilities. weights: the
    mean of their parameters, with the moments of batch norms estimated on the training set."""
    split: Literal["test", "validation", "train"] = "test"
    data_dir: str = ""
    """Folder of the images. Empty: the folder that the run has recorded."""
    json: bool = False
    """Print JSON."""


def evaluate(arguments):
    """Print the test error of a run by class; of several runs, of each and of their average.

    With more than five classes, the top-5 error is printed too. A run of snapshots is treated like several runs.
    Of another task than classification, its metrics are printed.
    """
    options = parse(Eval, arguments, "deepjax eval", evaluate.__doc__)
    if not options.workdir:
        raise InputError("eval needs a run: deepjax eval WORKDIR [WORKDIR ...]")
    from deepjax import inference

    runs = [inference.load_run(folder, warn=warn) for folder in options.workdir]
    found = inference.evaluate_runs(runs, average=options.average, split=options.split, data_dir=options.data_dir)
    parts = _parts(options, runs, found.alone)
    record = _record(options.split, runs, found.together)
    if parts:
        record |= {"average": options.average, "runs" if len(runs) > 1 else "snapshots": parts}
    if options.json:
        print(json.dumps(record, indent=2))
        return 0
    what = f"{options.average} of {len(parts)} averaged" if parts else f"checkpoint of step {record['step']}"
    if isinstance(found.together, inference.Evaluation):
        _print(options, record, parts, found.together.class_counts(len(runs[0].classes))[0], what)
        return 0
    for part, one in zip(parts, found.alone):  # alone has one more if there are no parts
        print(f"{part['workdir']} step {part['step']}: {runs[0].task.text(one.metrics)}")
    print(f"{options.split} {runs[0].task.text(found.together.metrics)}, {what}")
    return 0


def _print(options, record, parts, counts, what):
    """Print an Evaluation of classification; `counts`: examples of each class."""
    rows = [
        (name, str(count), "-" if error is None else f"{100 * error:.2f}")
        for (name, error), count in zip(record["class_errors"].items(), counts, strict=True)
    ]
    table(("class", "examples", "error %"), rows)
    if parts:
        print()
        rows = [(part["workdir"], part["step"], f"{100 * part['error']:.2f}", f"{part['loss']:.4f}") for part in parts]
        together = f"{options.average} averaged", "", f"{100 * record['error']:.2f}", f"{record['loss']:.4f}"
        table(("run", "step", "error %", "loss"), [*rows, together])
    top5 = f", top-5 error {100 * record['top5_error']:.2f} %" if "top5_error" in record else ""
    print(
        f"{options.split} error {100 * record['error']:.2f} %{top5}, loss {record['loss']:.4f}, "
        f"{record['examples']} examples, {what}"
    )


def _record(split, runs, result) -> dict:
    """Return what is printed of an evaluation."""
    from deepjax import inference

    classes, where = runs[0].classes, {"step": runs[0].step} if len(runs) == 1 else {}
    if not isinstance(result, inference.Evaluation):
        return {"split": split, **where, **result.metrics}
    errors = [None if error != error else error for error in result.class_errors(len(classes)).tolist()]
    return {
        "split": split,
        **where,
        "examples": len(result.labels),
        "error": result.error,
        "loss": result.loss,
        **({"top5_error": result.top5_error} if len(classes) > 5 else {}),
        "class_errors": dict(zip(classes, errors, strict=True)),
    }


def _parts(options, runs, alone):
    """Return what was averaged, each with its own error; [] if nothing was averaged."""
    if len(alone) == 1:
        return []
    places = [(run.config.workdir, run.step) for run in runs]
    if len(runs) == 1:
        places = [(runs[0].config.workdir, step) for step in runs[0].steps]
    return [
        {"workdir": workdir, "step": step, **one.metrics} for (workdir, step), one in zip(places, alone, strict=True)
    ]
