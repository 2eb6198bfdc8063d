"""`deepjax eval`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
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
    """How several runs or snapshots are averaged. predictions: the mean of their softmax probabilities, or
    of the numbers they predict. weights: the
    mean of their parameters, with the moments of batch norms estimated on the training set."""
    split: Literal["test", "validation", "train"] = "test"
    views: Literal[1, 2, 5, 10] = 1
    """Views of each image whose predictions are averaged. 2: the image and its mirror image. 5: corners and center,
    enlarged. 10: these and their mirror images."""
    data_dir: str = ""
    """Folder of the images. Empty: the folder that the run has recorded."""
    pictures: str = ""
    """Folder for pictures of the confusion matrix and of the images with the largest losses; of regression, pictures of
    predicted over true numbers and of residuals. Empty: none."""
    json: bool = False
    """Print JSON."""


def evaluate(arguments):
    """Print how good a run is: precision, recall and F1 of each class, test error, calibration.

    Of several runs, the errors of each and of their average are printed. With more than five classes, the top-5 error
    is printed too. A run of snapshots is treated like several runs. Of another task than classification, its metrics
    are printed.
    """
    options = parse(Eval, arguments, "deepjax eval", evaluate.__doc__)
    if not options.workdir:
        raise InputError("eval needs a run: deepjax eval WORKDIR [WORKDIR ...]")
    from deepjax import inference

    if options.pictures:  # before the evaluation, so that a wrong path costs nothing
        Path(options.pictures).expanduser().mkdir(parents=True, exist_ok=True)
    runs = [inference.load_run(folder, warn=warn) for folder in options.workdir]
    choice = {"average": options.average, "split": options.split, "views": options.views}
    found = inference.evaluate_runs(runs, **choice, data_dir=options.data_dir)
    parts = _parts(options, runs, found.alone)
    record = _record(options, runs, found.together)
    if parts:
        record |= {"average": options.average, "runs" if len(runs) > 1 else "snapshots": parts}
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        _print(options, runs, found, record, parts)
    if options.pictures:
        _draw(options, runs, found)
    return 0


def _print(options, runs, found, record, parts):
    from deepjax import inference

    what = f"{options.average} of {len(parts)} averaged" if parts else f"checkpoint of step {record['step']}"
    if isinstance(found.together, inference.Evaluation):
        _print_classes(options, record, parts, what)
        return
    places = [(part["workdir"], part["step"]) for part in parts]
    places += [(f"{options.average} averaged", "") if parts else (runs[0].config.workdir, record["step"])]
    evaluations = [*found.alone[: len(parts)], found.together]
    rows = [(*place, *map(_short, one.metrics.values())) for place, one in zip(places, evaluations, strict=True)]
    table(("run", "step", *found.together.metrics), rows)
    print(f"{options.split} {runs[0].task.text(found.together.metrics)}, {what}")


def _print_classes(options, record, parts, what):
    """Print an Evaluation of classification."""

    def percent(value):
        return "-" if value is None else f"{100 * value:.2f}"

    rows = [
        (name, row["examples"], *(percent(row[score]) for score in ("error", "precision", "recall", "f1")))
        for name, row in record["classes"].items()
    ]
    table(("class", "examples", "error %", "precision %", "recall %", "F1 %"), rows)
    if parts:
        print()
        rows = [(part["workdir"], part["step"], percent(part["error"]), f"{part['loss']:.4f}") for part in parts]
        together = f"{options.average} averaged", "", percent(record["error"]), f"{record['loss']:.4f}"
        table(("run", "step", "error %", "loss"), [*rows, together])
    top5 = f", top-5 error {percent(record['top5_error'])} %" if "top5_error" in record else ""
    views = f", {options.views} views of each" if options.views > 1 else ""
    print(
        f"{options.split} error {percent(record['error'])} %{top5}, loss {record['loss']:.4f}, mean F1 "
        f"{percent(record['mean_f1'])} %, calibration error {percent(record['calibration_error'])} %, "
        f"{record['examples']} examples{views}, {what}"
    )


def _record(options, runs, result) -> dict:
    """Return what is printed of an evaluation."""
    from deepjax import inference

    classes, where = runs[0].classes, {"step": runs[0].step} if len(runs) == 1 else {}
    if not isinstance(result, inference.Evaluation):
        return {"split": options.split, **where, **result.metrics}
    scores = result.scores(len(classes))
    columns = {name: [_number(value) for value in values.tolist()] for name, values in scores._asdict().items()}
    columns["error"] = [None if recall is None else 1 - recall for recall in columns["recall"]]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for row in rows:
        row["f1"] = row["f1"] if row["examples"] else None
    known = [row["f1"] for row in rows if row["f1"] is not None]
    return {
        "split": options.split,
        **where,
        "views": options.views,
        "examples": len(result.labels),
        "error": result.error,
        "loss": result.loss,
        **({"top5_error": result.top5_error} if len(classes) > 5 else {}),
        "mean_f1": sum(known) / len(known),
        "calibration_error": _number(result.calibration_error),
        "classes": dict(zip(classes, rows, strict=True)),
    }


def _short(value):
    return f"{value:.5g}"


def _number(value):
    """Return a number as JSON holds it: NaN, of a class without examples or scores without probabilities, as None."""
    return None if math.isnan(value) else value


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


def _draw(options, runs, found):
    """Write the task's pictures into options.pictures."""
    from deepjax.runs import plots

    folder = Path(options.pictures).expanduser()
    title = f"{options.split}: {runs[0].task.text(found.together.metrics)}"
    for name, figure in runs[0].task.figures(found.together, title, found.examples).items():
        plots.save(figure, folder / name)
        print(f"wrote {folder / name}")
