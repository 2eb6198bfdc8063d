"""`deepjax predict`."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
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
    """Folder of a run; or a network with weights on the hub: resnet18, or a name that `deepjax weights list` shows."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, or folders of them."""
    weights: str = ""
    """File with the weights of the network: .safetensors, .pth or .pt."""
    top: int = option(5, at_least=1)
    """Number of classes to print."""
    crops: Literal[1, 5, 10] = 1
    """Parts of each image whose predictions are averaged. 1: the center. 5: corners and center. 10: and their mirror
    images."""
    json: bool = False
    """Print JSON."""


def predict(arguments):
    """Print the most probable classes of images, by a run or a pretrained network."""
    options = parse(Predict, arguments, "deepjax predict", predict.__doc__)
    if not options.images:
        raise InputError("predict needs images: deepjax predict WORKDIR-or-NAME IMAGE...")
    from deepjax import inference

    run = classifier(options.source, options.weights)
    predictions = inference.predict(run, options.images, top=options.top, crops=options.crops)
    problems = [p for p in predictions if p.problem]
    if options.json:
        print(json.dumps([p.record for p in predictions], indent=2))
    else:
        shown = [(p.path, *p.texts) for p in predictions if not p.problem]
        if shown:
            table(("image", *(f"{i + 1}." for i in range(len(shown[0]) - 1))), shown)
    for prediction in problems:
        complain(prediction.problem, 1)
    return 1 if problems else 0


def classifier(source, weights):
    """Return the Run in the folder `source`, or the Classifier of the network with that name."""
    from deepjax import inference, zoo
    from deepjax.weights.hub import PRETRAINED

    is_network = source in zoo.MODELS or source in PRETRAINED
    if weights or (is_network and not (Path(source) / "config.json").exists()):
        return inference.load_classifier(source, weights)
    if not Path(source).exists() and "/" not in source and (close := get_close_matches(source, zoo.MODELS, 1, 0.7)):
        raise InputError(f"{source} is neither the folder of a run nor a network; did you mean {close[0]!r}?")
    return inference.load_run(source, warn=warn)
