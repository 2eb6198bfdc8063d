"""Measure every convolution of a network of the zoo: deepjax beside `jax.lax` and PyTorch.

Convolutions of one shape are measured once. For the method, see `rounds`.
"""

import math
from collections import Counter
from typing import NamedTuple

import jax

from deepjax import files, layers, zoo
from deepjax.benchmarks import layer_maps, report, rounds
from deepjax.benchmarks.depth import machine, writable
from deepjax.benchmarks.frameworks import busy, check_dtypes, check_threads, command
from deepjax.errors import InputError, choices
from deepjax.functional.convolution.form import conv_form
from deepjax.trace import around_calls

HEADER = ("x", "window", "stride", "features", "groups", "layers", "map", "dtype", "threads", "system")
HEADER = (*HEADER, "ms", "quartiles", "time / deepjax", "GFLOP/s", "")


class Layer(NamedTuple):
    """A convolution: everything that its time depends on, besides the batch. One entry for each axis."""

    size: tuple[int, ...]  # of x, in pixels
    features_in: int
    features: int
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # zeros before and after x
    groups: int
    out: tuple[int, ...]  # of y, in pixels

    @property
    def macs(self):
        """Return the multiply-adds of one example."""
        return math.prod((*self.out, *self.window, self.features_in // self.groups, self.features))


def convolutions(name):
    """Return {Layer: how often the network calls it} of a network of the zoo, for its usual input.

    Raises:
      InputError: an unknown network, or one without convolutions of images.
    """
    if name not in zoo.MODELS:
        raise InputError(f"model {name!r} is unknown; {choices(name, zoo.MODELS)}")
    options = {"scan": False} if "scan" in zoo.options_of(name) else {}
    model, found = zoo.create(name, options), Counter()

    def note(module, run, args, kwargs):
        y = run(*args, **kwargs)
        if type(module) is layers.Conv and args[0].ndim == 4 and module.dilation in (1, (1, 1)):
            found[_layer(module, args[0], y)] += 1
        return y

    x = jax.ShapeDtypeStruct((1, *model.usual_input), "float32")
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    with around_calls(note):
        jax.eval_shape(lambda variables, x: model.apply(variables, x, train=False), variables, x)
    if not found:
        raise InputError(f"model {name} has no convolution; choose another, such as resnet50")
    return dict(found)


def _layer(module, x, y):
    shape = (*module.window, x.shape[-1] // module.groups, module.features)
    kernel = jax.ShapeDtypeStruct(shape, x.dtype)
    form = conv_form(x, kernel, None, module.stride, module.padding, module.dilation, module.groups)
    stride, padding = tuple(axis.stride for axis in form.axes), tuple((axis.low, axis.high) for axis in form.axes)
    features_in, size = x.shape[-1], x.shape[1:-1]
    return Layer(
        size, features_in, module.features, tuple(module.window), stride, padding, module.groups, y.shape[1:-1]
    )


def run(out, name, *, batch=16, dtypes=("float32",), threads=(), count=15, log=lambda text: None):
    """Measure forward pass, input gradient and kernel gradient, and write layers.json and layers.md after every layer.

    Args:
      out: the folder. An existing report in it is replaced.
      name: a network of the zoo.
      batch: examples in a batch.
      dtypes, threads: as of `frameworks.run`.
      count: rounds.
      log: function called with each line of progress.

    Returns:
      The contents of layers.json: "command", "machine", "options", "cells": records with "layer", "calls" (how often
      the network has it), "map", "dtype", "threads", "dropped", "busy", "systems": {name: {"seconds", "ratio"
      (its seconds divided by those of deepjax), both as `rounds.spread`, "speed" (multiply-adds x 2 a second),
      "loss" (mean absolute value of the result), "platform", "stopped"}}.

    Raises:
      InputError: see `convolutions` and `frameworks.run`; a batch or rounds below 1.
    """
    found = convolutions(name)
    dtypes, threads = check_dtypes(dtypes), check_threads(threads)
    if batch < 1 or count < 1:
        raise InputError(f"batch {batch} and rounds {count} must be at least 1")
    folder = writable(out)
    options = {"model": name, "batch": batch, "dtypes": dtypes, "threads": threads, "rounds": count}
    record = {"command": command("layers", options), "machine": machine(), "options": options, "cells": []}
    for line in busy(record["machine"]):
        log(line)
    for dtype in dtypes:
        for cores in threads:
            for layer, calls in found.items():
                for which in layer_maps.MAPS:
                    cell = {"layer": layer._asdict(), "calls": calls, "map": which, "dtype": dtype, "threads": cores}
                    record["cells"].append(_measure(cell, layer, batch, count, log))
                files.write_json(folder / "layers.json", record)
                files.write_text(folder / "layers.md", markdown(record))
    return record


def _measure(cell, layer, batch, count, log):
    log(f"{layer.size} {layer.features_in}, window {layer.window}, {layer.features} features: {cell['map']}")
    jobs = {
        system: layer_maps.job(system, cell["map"], layer._asdict(), batch, cell["dtype"], cell["threads"])
        for system in layer_maps.systems()
    }
    facts, taken = rounds.take(jobs, count, log)
    used, dropped, disturbed = rounds.keep(taken)
    numbers = {}
    for name in jobs:
        seconds = rounds.spread(rounds.seconds_of(used, name))
        ratio = rounds.spread(rounds.quotients(used, name, "deepjax")) if name != "deepjax" else None
        speed = 2 * batch * layer.macs / seconds["median"] if seconds else None
        numbers[name] = {"seconds": seconds, "ratio": ratio, "speed": speed, "loss": facts[name].get("loss")}
        numbers[name] |= {"stopped": facts[name]["stopped"], "platform": facts[name].get("platform")}
    return {**cell, "dropped": dropped, "busy": disturbed, "systems": numbers}


def tables(record):
    """Return the table of a record as [(title, header, rows of cells)]."""
    rows = [_row(cell, name, found) for cell in record["cells"] for name, found in cell["systems"].items()]
    options = record["options"]
    return [(f"Convolutions of {options['model']}, batch {options['batch']}", HEADER, rows)]


def _row(cell, name, found):
    layer, seconds, ratio = Layer(**cell["layer"]), found["seconds"], found["ratio"]
    by = "x".join
    return (
        f"{by(map(str, layer.size))}x{layer.features_in}",
        by(map(str, layer.window)),
        by(map(str, layer.stride)),
        str(layer.features),
        str(layer.groups),
        str(cell["calls"]),
        cell["map"].replace("_", " "),
        cell["dtype"],
        str(cell["threads"]),
        name,
        f"{1e3 * seconds['median']:.3g}" if seconds else "-",
        f"{1e3 * seconds['low']:.3g} to {1e3 * seconds['high']:.3g}" if seconds else "-",
        f"{ratio['median']:.2f}" if ratio else "-",
        f"{found['speed'] / 1e9:,.1f}" if found["speed"] else "-",
        found["stopped"] or ("other processes disturbed most rounds" if cell["busy"] else ""),
    )


def about(record):
    """Return one paragraph about the machine and the versions."""
    found = [numbers for cell in record["cells"] for numbers in cell["systems"].values()]
    return report.about({"machine": record["machine"], "nets": found})


def markdown(record):
    """Return the report as Markdown."""
    sections = "\n".join(report.section(*table) for table in tables(record))
    return f"# Convolutions, one by one\n\n`{record['command']}`\n\n{about(record)}\n\n{sections}"
