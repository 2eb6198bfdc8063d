"""`deepjax models`, `deepjax datasets` and `deepjax summary`: what there is, and what it looks like."""

import inspect
import json
import re
from dataclasses import dataclass, field

import tyro

from deepjax.cli.terminal import parse, table
from deepjax.config import Options
from deepjax.errors import InputError


@dataclass(frozen=True)
class Models:
    """The networks that `--model` and `deepjax.zoo.create` know."""

    json: bool = False
    """Print JSON."""


def models(arguments):
    """Print every network with its options."""
    options = parse(Models, arguments, "deepjax models")
    from deepjax import zoo

    known = {name: {k: v for k, v in zoo.options_of(name).items() if k != "dtype"} for name in zoo.MODELS}
    if options.json:
        print(json.dumps(known, indent=2))
    else:
        rows = [(name, " ".join(f"{k}={_plain(v)}" for k, v in found.items())) for name, found in known.items()]
        table(("model", "options and their defaults"), rows)
    return 0


def _plain(value):
    return "" if value is inspect.Parameter.empty else value


@dataclass(frozen=True)
class Datasets:
    """The data that --data.name can name: built in, prepared by TFDS, or as original files."""

    data_dir: str = ""
    """Folder to look in. Empty: TFDS's own."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Prepare:
    """Download and prepare a TFDS set once, so that it can be read without TensorFlow. Needs the extra `prepare`."""

    name: tyro.conf.Positional[str]
    """TFDS's name of the set, such as cifar10."""
    data_dir: str = ""
    """Folder to prepare it in. Empty: TFDS's own."""


def datasets(arguments):
    """Print what can be trained on, or prepare a TFDS set."""
    from deepjax import data

    if arguments[:1] == ["prepare"]:
        options = parse(Prepare, arguments[1:], "deepjax datasets prepare")
        data.prepare(options.name, options.data_dir)
        print(f"{options.name} is ready")
        return 0
    options = parse(Datasets, arguments, "deepjax datasets")
    rows = data.available(options.data_dir)
    if options.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        table(rows[0]._fields, rows)
    return 0


@dataclass(frozen=True)
class Summary:
    """The layers of a network: output shape of one example, parameters, multiply-adds, receptive field."""

    model: tyro.conf.Positional[str]
    """A name that `deepjax models` lists."""
    input: str = ""
    """Shape of one example: height,width,channels. Empty: 224,224,3 for ImageNet's networks, else 32,32,3."""
    num_classes: int | None = None
    """Logits. Unset: the network's usual number."""
    options: Options = field(default_factory=dict)
    """Options of the model: --options depth=38 shortcut=B."""
    count: str = "macs"
    """macs: multiply-adds of convolutions and matrix products. conv-bias: parameters and operations as counted by hand,
    every convolution with a bias, no batch norm, poolings by their outputs."""
    level: int | None = None
    """Gather the layers below this many names of their paths: 1 gives the stages."""
    json: bool = False
    """Print JSON."""


def summary(arguments):
    """Print the layers of a network."""
    options = parse(Summary, arguments, "deepjax summary")
    from deepjax import zoo
    from deepjax.summary import summarize

    model = zoo.create(options.model, options.options, num_classes=options.num_classes)
    text = options.input or ",".join(map(str, zoo.usual_input(options.model)))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise InputError(f"--input {text!r} must be numbers with commas between, such as 32,32,3")
    shape = tuple(map(int, text.split(",")))
    layers = summarize(model, shape, count=options.count, level=options.level)
    parameters, macs = (sum(getattr(layer, name) for layer in layers) for name in ("parameters", "macs"))
    cost = "macs" if options.count == "macs" else "operations"
    if options.json:
        record = {"model": options.model, "input": shape, "count": options.count, "parameters": parameters, cost: macs}
        record["layers"] = [_layer_record(layer, cost) for layer in layers]
        print(json.dumps(record, indent=2))
        return 0
    header = ("layer", "kind", "output", "repeats", "parameters", "MACs" if cost == "macs" else cost)
    table(*_right((*header, "field", "stride", "offset"), [_layer_cells(layer) for layer in layers], first=4))
    print("field, stride, offset: output position o sees the `field` pixels of the input from offset + o * stride on")
    rounded = f" ({macs / 1e9:.3f} G)" if macs >= 10**7 else ""
    print(f"{options.model}: {parameters:,} parameters, {macs:,} {'MACs' if cost == 'macs' else cost}{rounded}")
    return 0


def _layer_record(layer, cost):
    record = layer._asdict()
    record[cost] = record.pop("macs")
    seen = record.pop("field")
    return record | {"receptive_field": seen and seen._asdict()}


def _layer_cells(layer):
    def pixels(values):
        return "x".join(f"{v:g}" for v in (values[:1] if len(set(values)) == 1 else values))

    return (
        layer.path,
        layer.kind,
        "x".join(map(str, layer.output)) or "-",
        f"x{layer.repeats}" if layer.repeats > 1 else "",
        f"{layer.parameters:,}" if layer.parameters else "",
        f"{layer.macs:,}" if layer.macs else "",
        *(map(pixels, layer.field) if layer.field else ("", "", "")),
    )


def _right(header, rows, first):
    """Header and rows whose cells from column `first` on are flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    header, *rows = (
        (*row[:first], *(cell.rjust(width) for cell, width in zip(row[first:], widths[first:], strict=True)))
        for row in [header, *rows]
    )
    return header, rows
