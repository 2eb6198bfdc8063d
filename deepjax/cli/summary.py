"""`deepjax summary`."""

import json
import re
from dataclasses import dataclass

import tyro

from deepjax.cli.terminal import parse, table
from deepjax.config import Options
from deepjax.errors import InputError, choices
from deepjax.fields import option

STYLES = ("layers", "slide")


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
    style: str = "layers"
    """layers: a row for each layer. slide: the table of a lecture, with rows such as 3 x res(3, 64)."""
    count: str = ""
    """macs: multiply-adds of convolutions and matrix products, all parameters. kernels: the same, without the
    parameters of biases and norms. conv-bias: parameters and operations as counted by hand: every convolution has a
    bias, batch norms are left out, a pooling counts its inputs. Empty: macs, or kernels in style slide."""
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
    if options.style not in STYLES:
        raise InputError(f"style {options.style!r} is unknown; {choices(options.style, STYLES)}")
    if options.style == "slide":
        return _print_slide(options, model, shape)
    count = options.count or "macs"
    rows = summarize(model, shape, count=count, level=options.level)
    parameters, macs = _sums(rows, "macs")
    cost = "operations" if count == "conv-bias" else "macs"
    if options.json:
        record = {"model": options.model, "input": shape, "count": count, "parameters": parameters, cost: macs}
        record["layers"] = [_row_record(row, cost) for row in rows]
        print(json.dumps(record, indent=2))
        return 0
    header = ("layer", "kind", "output", "repeats", "parameters", "MACs" if cost == "macs" else cost)
    table(*_right((*header, "field", "stride", "offset"), [_row_cells(row) for row in rows], first=4))
    print("field, stride, offset: output position o depends on the `field` input pixels from offset + o * stride on")
    print(_total(options.model, parameters, macs, cost))
    return 0


def _print_slide(options, model, shape):
    """Print the table of a lecture. `Mflop` are millions of multiply-adds."""
    from deepjax.summary.slides import slide

    if options.level is not None:
        raise InputError(f"--level {options.level} is for style layers; leave it out")
    count = options.count or "kernels"
    lines = slide(model, shape, count=count)
    parameters, operations = _sums(lines, "operations")
    if options.json:
        record = {"model": options.model, "input": shape, "count": count, "parameters": parameters}
        record |= {"operations": operations, "lines": [line._asdict() for line in lines]}
        print(json.dumps(record, indent=2))
        return 0
    rows = [
        (
            f"{line.repeats} x {line.layer}" if line.repeats > 1 else line.layer,
            f"{line.parameters:,}",
            f"{line.operations:,}",
            f"{line.operations / 1e6:.1f}",
            "x".join(map(str, line.volume)),
        )
        for line in lines
    ]
    table(*_right(("layer", "parameters", "operations", "Mflop", "volume"), rows, first=1))
    print(_total(options.model, parameters, operations, "operations"))
    return 0


def _sums(rows, cost):
    return (sum(getattr(row, name) for row in rows) for name in ("parameters", cost))


def _total(model, parameters, operations, cost):
    rounded = f" ({operations / 1e9:.3f} G)" if operations >= 10**7 else ""
    return f"{model}: {parameters:,} parameters, {operations:,} {'MACs' if cost == 'macs' else cost}{rounded}"


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
