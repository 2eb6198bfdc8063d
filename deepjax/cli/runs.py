"""`deepjax eval` and `deepjax predict`: what starts from the folder of a run, or from pretrained weights."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import tyro

from deepjax.cli.terminal import complain, parse, table, warn
from deepjax.errors import InputError


@dataclass(frozen=True)
class Eval:
    """Test error of a trained run, class by class; top-5 error too where there are more than five classes.

    Of several runs on one set, and of a run of snapshots: the error of each, and of all together.
    """

    workdir: tyro.conf.Positional[tuple[str, ...]]
    """Folder of the run, or folders of several."""
    average: Literal["predictions", "weights"] = "predictions"
    """Of several runs or snapshots. predictions: the mean of their softmax probabilities. weights: the mean of their
    parameters, with batch norms' moments estimated anew on the training set."""
    split: Literal["test", "validation", "train"] = "test"
    data_dir: str = ""
    """Where the images are. Empty: where the run found them."""
    json: bool = False
    """Print JSON."""


def evaluate(arguments):
    """Print the error of a run, or of several averaged, on a split of their data."""
    options = parse(Eval, arguments, "deepjax eval")
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
    counts = found.together.confusion(len(runs[0].classes)).sum(1)
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
    what = f"{options.average} of {len(parts)} averaged" if parts else f"checkpoint of step {record['step']}"
    print(
        f"{options.split} error {100 * record['error']:.2f} %{top5}, loss {record['loss']:.4f}, "
        f"{record['examples']} examples, {what}"
    )
    return 0


def _record(split, runs, result) -> dict:
    """What is printed of an Evaluation."""
    classes = runs[0].classes
    errors = [None if error != error else error for error in result.class_errors(len(classes)).tolist()]
    return {
        "split": split,
        **({"step": runs[0].step} if len(runs) == 1 else {}),
        "examples": len(result.labels),
        "error": result.error,
        "loss": result.loss,
        **({"top5_error": result.top5_error} if len(classes) > 5 else {}),
        "class_errors": dict(zip(classes, errors, strict=True)),
    }


def _parts(options, runs, alone):
    """What was averaged, each with its own error; [] where nothing was."""
    if len(alone) == 1:
        return []
    places = [(run.config.workdir, run.step) for run in runs]
    if len(runs) == 1:
        places = [(runs[0].config.workdir, step) for step in runs[0].steps]
    return [
        {"workdir": workdir, "step": step, "error": one.error, "loss": one.loss}
        for (workdir, step), one in zip(places, alone, strict=True)
    ]


@dataclass(frozen=True)
class Predict:
    """The likeliest classes of images, by a trained run, or by a network with pretrained weights."""

    source: tyro.conf.Positional[str]
    """Folder of the run; or a network: resnet18, or as `deepjax weights list` has it, with weights of the hub."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, or folders of them."""
    weights: str = ""
    """File of the network's weights: .safetensors, .pth or .pt."""
    top: int = 5
    """How many classes to show."""
    crops: Literal[1, 5, 10] = 1
    """Parts of each image whose predictions are averaged. 1: the centre. 5: corners and centre. 10: and mirrored."""
    json: bool = False
    """Print JSON."""


def predict(arguments):
    """Print the likeliest classes of each image; 1 if an image could not be read."""
    options = parse(Predict, arguments, "deepjax predict")
    if not options.images:
        raise InputError("predict needs images: deepjax predict WORKDIR-or-NAME IMAGE...")
    from deepjax import inference

    run = classifier(options.source, options.weights)
    predictions = inference.predict(run, options.images, top=options.top, crops=options.crops)
    problems = [p for p in predictions if p.problem]
    if options.json:
        rows = [
            {"image": p.path, "error": p.problem}
            if p.problem
            else {
                "image": p.path,
                "classes": [{"class": c, "probability": q} for c, q in zip(p.classes, p.probabilities, strict=True)],
            }
            for p in predictions
        ]
        print(json.dumps(rows, indent=2))
    else:
        shown = [
            (p.path, *(f"{c} {100 * q:.1f} %" for c, q in zip(p.classes, p.probabilities, strict=True)))
            for p in predictions
            if not p.problem
        ]
        if shown:
            table(("image", *(f"{i + 1}." for i in range(len(shown[0]) - 1))), shown)
    for prediction in problems:
        complain(prediction.problem, 1)
    return 1 if problems else 0


def classifier(source, weights):
    """The Run in the folder `source`, or the Classifier of the network of that name."""
    from deepjax import inference, zoo
    from deepjax.weights.hub import PRETRAINED

    is_network = source in zoo.MODELS or source in PRETRAINED
    if weights or (is_network and not (Path(source) / "config.json").exists()):
        return inference.load_classifier(source, weights)
    if not Path(source).exists() and "/" not in source and (close := get_close_matches(source, zoo.MODELS, 1, 0.7)):
        raise InputError(f"{source} holds no run, and is no network; did you mean {close[0]!r}?")
    return inference.load_run(source, warn=warn)
