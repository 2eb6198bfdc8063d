"""`deepjax summary`."""

import json
import re
from dataclasses import dataclass

import tyro

from deepjax.cli.terminal import parse, table
from deepjax.config import Options
from deepjax.errors import InputError
from deepjax.fields import option


@dataclass(frozen=True)
class Summary:
    """Options of `deepjax summary`."""

    model: tyro.conf.Positional[str]
    """A name that `deepjax models` lists."""
    input: str = ""
    """Shape of one example: height,width,channels. Empty: the network's usual input."""
    num_classes: int | None = option(None, at_least=1)
    """Number of logits. Unset: the network's usual number."""
    options: Options = option({})
    """Options of the model: --options depth=38 shortcut=B."""
    count: str = "macs"
    """macs: multiply-adds of convolutions and matrix products. conv-bias: parameters and operations as counted by hand:
    every convolution has a bias, batch norms are left out, and a pooling counts its outputs."""
    level: int | None = None
    """Sum the layers whose paths share this many first names: 1 gives the stages."""
    json: bool = False
    """Print JSON."""


def summary(arguments):
    """Print the layers of a network: output shape of one example, parameters, multiply-adds, receptive field."""
    options = parse(Summary, arguments, "deepjax summary", summary.__doc__)
    from deepjax import zoo
    from deepjax.summary import summarize

    model = zoo.create(options.model, options.options, num_classes=options.num_classes)
    text = options.input or ",".join(map(str, zoo.usual_input(options.model)))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise InputError(f"--input {text!r} must be numbers separated by commas, such as 32,32,3")
    shape = tuple(map(int, text.split(",")))
    rows = summarize(model, shape, count=options.count, level=options.level)
    parameters, macs = (sum(getattr(row, name) for row in rows) for name in ("parameters", "macs"))
    cost = "macs" if options.count == "macs" else "operations"
    if options.json:
        record = {"model": options.model, "input": shape, "count": options.count, "parameters": parameters, cost: macs}
        record["layers"] = [_row_record(row, cost) for row in rows]
        print(json.dumps(record, indent=2))
        return 0
    header = ("layer", "kind", "output", "repeats", "parameters", "MACs" if cost == "macs" else cost)
    table(*_right((*header, "field", "stride", "offset"), [_row_cells(row) for row in rows], first=4))
    print("field, stride, offset: output position o depends on the `field` input pixels from offset + o * stride on")
    rounded = f" ({macs / 1e9:.3f} G)" if macs >= 10**7 else ""
    print(f"{options.model}: {parameters:,} parameters, {macs:,} {'MACs' if cost == 'macs' else cost}{rounded}")
    return 0


def _row_record(row, cost):
    record = row._asdict()
    record[cost] = record.pop("macs")
    field = record.pop("field")
    return record | {"receptive_field": field and field._asdict()}


def _row_cells(row):
    def pixels(values):
        return "x".join(f"{v:g}" for v in (values[:1] if len(set(values)) == 1 else values))

    return (
        row.path,
        row.kind,
        "x".join(map(str, row.output)) or "-",
        f"x{row.repeats}" if row.repeats > 1 else "",
        f"{row.parameters:,}" if row.parameters else "",
        f"{row.macs:,}" if row.macs else "",
        *(map(pixels, row.field) if row.field else ("", "", "")),
    )


def _right(header, rows, first):
    """Return header and rows with the cells from column `first` on aligned to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    header, *rows = (
        (*row[:first], *(cell.rjust(width) for cell, width in zip(row[first:], widths[first:], strict=True)))
        for row in [header, *rows]
    )
    return header, rows
