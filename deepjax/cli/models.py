"""`deepjax models`."""

import inspect
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase

import tyro

from deepjax.cli.terminal import parse, table
from deepjax.errors import InputError, choices


@dataclass(frozen=True)
class Models:
    """Options of `deepjax models`."""

    patterns: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names to list, such as 'resnet*'. Without any: all."""
    options: str = ""
    """Name of a network whose options to list instead."""
    layers: bool = False
    """List the number of layers too: the convolutions and dense layers on the longest way through the network. Networks
    are traced for this, which takes up to some seconds for each."""
    json: bool = False
    """Print JSON."""


def models(arguments):
    """List the networks: parameters, usual input, whether trained weights exist; or the options of one."""
    options = parse(Models, arguments, "deepjax models", models.__doc__)
    from deepjax import zoo

    if options.options:
        return _list_options(options)
    for pattern in options.patterns:
        if not any(fnmatchcase(name, pattern) for name in zoo.MODELS):
            raise InputError(f"models {pattern}: no such network; {_nearest(pattern)}")
    chosen = [name for name in zoo.MODELS if _matches(name, options.patterns)]
    rows = [_row(name, options.layers) for name in chosen]
    if options.json:
        print(json.dumps({row.pop("model"): row for row in rows}, indent=2))
        return 0
    layers = ("layers",) if options.layers else ()
    table(("model", *layers, "parameters", "input", "trained weights"), [_cells(row) for row in rows])
    print("`deepjax models --options NAME` lists the options of a network")
    return 0


def _cells(row):
    shown = row | {"parameters": f"{row['parameters']:,}", "input": "x".join(map(str, row["input"]))}
    return [value or "-" for value in shown.values()]


def _matches(name, patterns):
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _nearest(pattern):
    from deepjax import zoo

    return choices(pattern.strip("*"), zoo.MODELS)


def _row(name, layers):
    """Return what is listed of a network. Parameters are those of the usual input and number of classes."""
    from deepjax import zoo
    from deepjax.summary.depth import count_layers

    card = zoo.CARDS.get(name)
    weights = "" if card is None else "hub" if card.hub else "file"
    return {
        "model": name,
        **({"layers": count_layers(zoo.create(name), zoo.usual_input(name))} if layers else {}),
        "parameters": zoo.parameter_count(name),
        "input": list(zoo.usual_input(name)),
        "weights": weights,
    }


def _list_options(options):
    from deepjax import zoo

    if options.patterns:
        raise InputError(f"models {' '.join(options.patterns)} --options {options.options}: give one of the two")
    if options.options not in zoo.MODELS:
        raise InputError(f"--options {options.options}: no such network; {_nearest(options.options)}")
    known = {name: value for name, value in zoo.options_of(options.options).items() if name != "dtype"}
    if options.json:
        print(json.dumps(known, indent=2))
        return 0
    table(("option", "default"), [(name, _plain(value)) for name, value in known.items()])
    print(f"set them by --model-options NAME=VALUE ..., or zoo.create({options.options!r}, NAME=VALUE)")
    return 0


def _plain(value):
    return "" if value is inspect.Parameter.empty else json.dumps(value)
