"""`deepjax predict`."""

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from deepjax.cli.terminal import complain, parse, table, warn
from deepjax.errors import InputError
from deepjax.fields import option


@dataclass(frozen=True)
class Predict:
    """Options of `deepjax predict`."""

    source: tyro.conf.Positional[str]
    """Folder of a run; a file of weights in deepjax's layout; or a network with weights on the hub: resnet18, or a name
    that `deepjax weights list` shows. A name means the network, ./resnet18 the folder."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, or folders of them. For a run on features: CSV files with a row of names."""
    weights: str = ""
    """File with the weights of the network: .safetensors, or one of PyTorch, such as .pth."""
    top: int | None = option(None, at_least=1)
    """Number of classes to print. Unset: 5."""
    crops: Literal[1, 5, 10] = 1
    """Parts of each image whose predictions are averaged. 1: the center. 5: corners and center. 10: and their mirror
    images."""
    json: bool = False
    """Print JSON."""
    csv: bool = False
    """Print comma-separated values: one row for each image, with its classes and their probabilities, or for each row
    of a CSV file, with the predicted number."""
    show: str = ""
    """PNG file to write: a sheet of the first 64 images with the most probable class of each. Empty: none."""


def predict(arguments):
    """Print the most probable classes of images, or the numbers of a regression, by a run or a pretrained network."""
    options = parse(Predict, arguments, "deepjax predict", predict.__doc__)
    if not options.images:
        raise InputError("predict needs images: deepjax predict WORKDIR-or-NAME IMAGE...")
    if options.json and options.csv:
        raise InputError("--json and --csv exclude each other; leave one out")
    sheet = Path(options.show).expanduser()
    if options.show and (sheet.suffix != ".png" or not sheet.absolute().parent.is_dir()):
        raise InputError(f"--show {options.show}: give a file that ends in .png, in a folder that exists")
    from deepjax import inference
    from deepjax.data.listing import describe_skipped, find_images

    run = inference.load_source(options.source, options.weights, warn=warn)
    if options.show and len(run.shape) == 1:
        raise InputError(f"--show {options.show}: the run was trained on features, not on images; leave it out")
    predictions = inference.predict(run, options.images, top=options.top, crops=options.crops)
    problems = [p for p in predictions if p.problem]
    if options.json:
        print(json.dumps([p.record for p in predictions], indent=2))
    elif options.csv:
        _print_csv(predictions)
    else:
        shown = [(p.path, *p.texts) for p in predictions if not p.problem]
        if shown:
            ranks = [f"{i + 1}." for i in range(len(shown[0]) - 1)]
            table(("row" if len(run.shape) == 1 else "image", *(ranks if len(ranks) > 1 else ["prediction"])), shown)
    for prediction in problems:
        complain(prediction.problem, 1)
    for path in map(Path, options.images):
        if path.is_dir() and (skipped := describe_skipped(find_images(path)[1])):
            warn(f"{path}: {skipped}")
    if options.show:
        _draw(run, predictions, sheet)
    return 1 if problems else 0


def _print_csv(predictions):
    rows = [p.row for p in predictions]
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(sys.stdout, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _draw(run, predictions, path):
    """Write a sheet of the images as the network sees them, with the most probable class of each."""
    from deepjax.runs import gallery, plots

    shown = [p for p in predictions if not p.problem][: gallery.MOST]
    if not shown:
        return
    images = [run.read(Path(p.path))[0] for p in shown]
    more = len(predictions) - len(shown)
    title = f"the first {len(shown)} of {len(predictions)} images" if more else ""
    captions = [f"{Path(p.path).name}\n{p.texts[0]}" for p in shown]
    plots.save(gallery.gallery(images, captions, title), path)
    complain(f"wrote {path}", 0)
