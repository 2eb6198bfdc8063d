"""`deepjax plan`: what a config needs, before anything runs."""

import json
import math
import re
from dataclasses import dataclass, fields

from deepjax.cli import training
from deepjax.cli.terminal import table
from deepjax.config import Config
from deepjax.errors import InputError


@dataclass(frozen=True)
class Options(Config):
    """A config, and what to plan it for."""

    input: str = ""
    """Shape of one example: height,width,channels. Empty: that of the data. With --classes, no data are looked for."""
    classes: int | None = None
    """Unset: those of the data."""
    memory: float | None = None
    """GiB of each device. Unset: what the device tells, else the machine's RAM."""
    json: bool = False
    """Print JSON."""


def plan(arguments):
    """Print what a config needs; 1 if no choice fits."""
    if (path := training.chosen("plan", arguments)) is None:
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    options = training.configured("plan", path, arguments, Options)
    config = Config(**{field.name: getattr(options, field.name) for field in fields(Config)})
    if not re.fullmatch(r"(\d+(,\d+)*)?", options.input):
        raise InputError(f"--input {options.input!r} must be numbers with commas between, such as 32,32,3")
    shape = tuple(map(int, options.input.split(","))) if options.input else None
    from deepjax.plan import plan as planned

    if options.memory is not None and not 0 < options.memory < math.inf:
        raise InputError(f"--memory {options.memory:g} must be a number of GiB above 0")
    limit = None if options.memory is None else int(options.memory * 2**30)
    found = planned(config, shape=shape, classes=options.classes, limit=limit)
    if options.json:
        print(json.dumps(_record(found), indent=2))
    else:
        _print(path.stem, config, found)
    return 0 if found.best else 1


def _record(found):
    record = found._asdict() | {"inputs": found.inputs._asdict(), "best": found.best and found.best.remat}
    return record | {"choices": [choice._asdict() for choice in found.choices]}


def _print(name, config, found):
    inputs, devices = found.inputs, f" on {found.devices} devices" if found.devices > 1 else ""
    print(f"{name}: {found.model}, batch {found.batch_size}{devices}, {config.optimizer.name}")
    source = f"{config.data.name}: " if inputs.examples else "as given: "
    examples = f", {inputs.examples:,} training examples" if inputs.examples else ""
    print(f"{source}{'x'.join(map(str, inputs.shape))}, {inputs.classes} classes{examples}\n")
    resident = _bytes(inputs.resident) if inputs.resident else "batch by batch"
    table(
        ("parameters", f"{found.parameters:,}", _bytes(found.parameter_bytes)),
        [
            ("optimizer", "", _bytes(found.optimizer_bytes)),
            ("moments, averages", "", _bytes(found.other_bytes)),
            ("training set on the device", "", resident),
            ("multiply-adds", f"{found.macs:,}", "an example, forward"),
        ],
    )
    print()
    fits = f"fits {_bytes(found.memory)}"
    header = ("remat", "activations", "temporaries", "total", "FLOPs a step", "to compile", fits)
    table(header, [_row(choice, found) for choice in found.choices])
    each = "; all bytes are those of one device" if devices else ""
    print(
        f"\nactivations: what the forward pass leaves for the backward pass; temporaries: all that a step needs{each}"
    )
    print("FLOPs: as if nothing were dropped or frozen; to compile: roughly, in seconds of one core")
    print(f"memory: {_bytes(found.memory)}, {found.memory_of}")
    print(_advice(found))


def _row(choice, found):
    mark = " (config)" if choice.remat == found.remat else ""
    return (
        f"{choice.remat}{mark}",
        _bytes(choice.activations),
        _bytes(choice.temporaries),
        _bytes(choice.total),
        f"{choice.flops / 1e9:,.1f} G",
        f"{choice.compile_seconds:.0f} s",
        "yes" if choice.fits else "no",
    )


def _advice(found):
    if found.best is None:
        return "nothing fits: take a smaller --batch-size, or a smaller network"
    if found.best.remat == found.remat:
        return f"remat {found.best.remat}, as the config has it, computes the least of those that fit"
    return f"remat {found.best.remat} computes the least of those that fit: --model-options remat={found.best.remat}"


def _bytes(n):
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n} B"
