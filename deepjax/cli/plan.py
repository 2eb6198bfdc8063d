"""`deepjax plan`: estimate what a config needs before it runs."""

import json
import re
from dataclasses import dataclass
from typing import Annotated

import tyro

from deepjax.cli.configs import chosen, docstring, load, with_file_options, without_config
from deepjax.cli.terminal import parse, table
from deepjax.config import Config
from deepjax.errors import InputError
from deepjax.fields import option


@dataclass(frozen=True)
class PlanOptions:
    """Options of `deepjax plan`: a config, and what to plan it for."""

    config: Annotated[Config, tyro.conf.arg(name="")] = option(inline=True)
    input: str = ""
    """Shape of one example: height,width,channels. Empty: that of the data. With --classes, no data set is needed."""
    classes: int | None = option(None, at_least=1)
    """Number of classes. Unset: that of the data."""
    memory: float | None = option(None, above=0)
    """GiB of memory of each device. Unset: the memory that the device reports, else the machine's RAM."""
    quick: bool = False
    """Compile nothing: print only parameters, optimizer state, inputs and FLOPs."""
    seconds: float = option(300.0, above=0)
    """Time limit of each compilation."""
    json: bool = False
    """Print JSON."""


def plan(arguments):
    """Estimate memory, FLOPs and compile time of a config without running it; exit code 1 if no remat fits."""
    if (path := chosen("plan", arguments)) is None:
        return without_config(arguments)
    default = PlanOptions(load(path))
    options = parse(PlanOptions, arguments[1:], f"deepjax plan {arguments[0]}", docstring(path), default=default)
    config = with_file_options(options.config, default.config)
    if not re.fullmatch(r"(\d+(,\d+)*)?", options.input):
        raise InputError(f"--input {options.input!r} must be numbers separated by commas, such as 32,32,3")
    shape = tuple(map(int, options.input.split(","))) if options.input else None
    from deepjax.plan import plan as estimate

    found = estimate(
        config,
        shape=shape,
        classes=options.classes,
        limit=None if options.memory is None else int(options.memory * 2**30),
        quick=options.quick,
        seconds=options.seconds,
        report=None if options.json else lambda found: _print_news(path.stem, config, found),
    )
    if options.json:
        print(json.dumps(_record(found), indent=2))
    elif not options.quick:
        print(f"\n{_advice(found)}")
    return 0 if options.quick or found.best else 1


def _record(found):
    record = found._asdict() | {"inputs": found.inputs._asdict(), "best": found.best and found.best.remat}
    return record | {"choices": [choice._asdict() for choice in found.choices]}


def _print_news(name, config, found):
    """Print the part of a Plan that has not been printed: its head, or its latest choice."""
    if not found.choices:
        _print_head(name, config, found)
        print(f"\n{_row('remat', 'FLOPs a step', 'temporaries', 'total', 'compiled in', 'fits')}", flush=True)
        return
    choice = found.choices[-1]
    name = f"{choice.remat}{' (config)' if choice.remat == found.remat else ''}"
    flops = f"{choice.flops / 1e9:,.1f} G"
    if choice.total is None:
        print(_row(name, flops, choice.stopped), flush=True)
        return
    fits = "yes" if choice.fits else "no"
    sizes = _bytes(choice.temporaries), _bytes(choice.total)
    print(_row(name, flops, *sizes, f"{choice.compile_seconds:.1f} s", fits), flush=True)


def _row(*cells):
    """Return a row of columns of fixed width, which need not be known when the first row is printed."""
    return "".join(cell.ljust(width) for cell, width in zip(cells, (20, 15, 14, 14, 14, 8))).rstrip()


def _print_head(name, config, found):
    inputs, devices = found.inputs, f" on {found.devices} devices" if found.devices > 1 else ""
    print(f"{name}: {found.model}, batch {found.batch_size}{devices}, {config.optimizer.name}, {found.platform}")
    source = f"{config.data.name}: " if inputs.examples else "as given: "
    examples = f", {inputs.examples:,} training examples" if inputs.examples else ""
    targets = f"{inputs.classes} classes" if inputs.classes else "numbers as targets"
    print(f"{source}{'x'.join(map(str, inputs.shape))}, {targets}{examples}\n")
    table(
        ("parameters", f"{found.parameters:,}", _bytes(found.parameter_bytes)),
        [
            ("optimizer", "", _bytes(found.optimizer_bytes)),
            ("moments, averages", "", _bytes(found.other_bytes)),
            ("training set", "", _bytes(inputs.resident) if inputs.resident else "read batch by batch"),
            ("multiply-adds", f"{found.macs:,}", "per example, forward"),
            ("memory", _bytes(found.memory), found.memory_source),
        ],
    )


def _advice(found):
    if all(choice.stopped for choice in found.choices):
        return "nothing was compiled: raise --seconds, or see --quick"
    if found.best is None:
        return "no remat fits: use a smaller --batch-size or a smaller network"
    if found.best.remat == found.remat:
        return f"remat {found.best.remat}, as in the config, has the fewest FLOPs of those that fit"
    return f"remat {found.best.remat} has the fewest FLOPs of those that fit: --model-options remat={found.best.remat}"


def _bytes(n):
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n} B"
