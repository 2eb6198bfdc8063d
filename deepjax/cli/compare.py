"""`deepjax compare`."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import tyro

from deepjax.cli.convert import network_options
from deepjax.cli.terminal import parse, table, warn
from deepjax.config import Options
from deepjax.errors import InputError
from deepjax.fields import option


@dataclass(frozen=True)
class Compare:
    """Options of `deepjax compare`."""

    a: tyro.conf.Positional[str]
    """A file of weights, the folder of a run, or a name that `deepjax weights list` prints."""
    b: tyro.conf.Positional[str]
    """Weights to compare with. torchvision: run torchvision's network in PyTorch with the first set of weights."""
    model: str | None = None
    """Name of the network, for files in PyTorch's layout, which do not record it."""
    input: str = ""
    """Shape of the images, height,width,channels. Empty: the network's usual."""
    num_classes: int | None = option(None, at_least=1)
    """Number of logits. Unset: that of the weights."""
    options: Options = option({})
    """Options of the network: --options norm=batch."""
    tolerance: float = option(1e-4, at_least=0)
    """Allowed ratio of a layer's largest difference to its largest value."""
    batch: int = option(2, at_least=1)
    """Number of images."""
    seed: int = option(0, at_least=0)
    """Seed of the images, which are Gaussian noise."""
    json: bool = False
    """Print JSON. A difference is null if shapes differ or a value is not finite."""


def compare(arguments):
    """Compare two sets of weights layer by layer, or a network with torchvision's; exit with 1 if they diverge."""
    options = parse(Compare, arguments, "deepjax compare", compare.__doc__)
    import numpy as np

    from deepjax.transforms.compare import compare as compare_variables
    from deepjax.transforms.compare import compare_with_torch, torchvision_module

    shape = [int(n) for n in options.input.split(",")] if re.fullmatch(r"\d+,\d+,\d+", options.input) else None
    if options.input and not shape:
        raise InputError(f"--input {options.input!r} must be numbers separated by commas, such as 224,224,3")
    one = _weights(options, options.a)
    x = np.random.default_rng(options.seed).normal(size=(options.batch, *(shape or one.network.usual_input)))
    if options.b == "torchvision":
        module = torchvision_module(one.name, one.network, one.variables)
        result = compare_with_torch(one.network, one.variables, module, x, tolerance=options.tolerance)
    else:
        other = _weights(options, options.b)
        if one.name != other.name:
            raise InputError(
                f"{options.a} is of {one.name}, {options.b} of {other.name}; compare weights of one network"
            )
        result = compare_variables(one.network, one.variables, other.variables, x, tolerance=options.tolerance)
    first = result.first
    if options.json:
        layers = [
            # JSON has no infinity, which stands for another shape or for values that are not finite.
            layer._asdict() | {"difference": layer.difference if math.isfinite(layer.difference) else None}
            for layer in result.layers
        ]
        print(json.dumps({"diverges": first.path if first else None, "layers": layers}, indent=2))
    else:
        rows = [(layer.path, "x".join(map(str, layer.shape[1:])), f"{layer.difference:.1e}") for layer in result.layers]
        table(("layer", "output", "difference"), rows)
        verdict = f"diverge first at {first.path}" if first else "agree"
        print(f"{options.a} and {options.b} {verdict} (tolerance {options.tolerance:g})")
    return 1 if first else 0


class _Weights(NamedTuple):
    name: str  # of the network
    network: Any
    variables: Any


def _weights(options, where):
    """Return the _Weights of a file, a run, or a name."""
    from deepjax.weights import files, kind_of, load_file, load_pretrained

    given = {"num_classes": options.num_classes, **network_options(options.options)}
    kind = kind_of(where)
    if kind == "run":
        from deepjax import inference

        if options.num_classes or options.options:
            raise InputError(
                f"{where} is a run, which records its network's options; leave out --options, --num-classes"
            )
        run = inference.load_run(where, warn=warn)
        return _Weights(run.config.model, run.model.clone(usual_input=run.shape, dtype=None), run.variables)
    if kind == "file":
        found = load_file(where, None if files.is_ours(where) else options.model, **given)
    else:
        found = load_pretrained(where, **given)
    return _Weights(found.source["network"], found.network, found.variables)
