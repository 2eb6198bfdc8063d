"""The table of a network as lectures print it: `3 x res(3, 64)`, its parameters, its operations, its volume."""

import re
from typing import NamedTuple

from deepjax.summary import read_layers

PART = re.compile("(?:branch|shortcut|join|before)")  # names of the parts of a unit, or of a module of branches


class Line(NamedTuple):
    """One line of the table: a layer, or equal units one after the other."""

    layer: str  # "conv(7, 64, p3, s2)"
    repeats: int
    parameters: int
    operations: int
    volume: tuple[int, ...]  # shape of the output


def slide(model, input_shape, *, count="kernels", **call):
    """List the layers of a model as lectures do.

    A layer is written by `summary.words.word`. A residual unit is one line, res(window, features, stride), with a
    tuple of features if they differ, and equal units one after the other are one line too. A module of parallel
    branches is one line with its name. Layers that a count sees nothing of, such as norms, are left out, except
    poolings.

    Args:
      model, input_shape, count, **call: see `summarize`. "conv-bias" and "kernels" give the numbers of lectures.

    Returns:
      list of `Line`, of which the first is the input. Parameters and operations are those of all repeats.

    Raises:
      InputError: see `summarize`.

    >>> from deepjax import zoo
    >>> slide(zoo.create("resnet34"), (224, 224, 3), count="conv-bias")[3]
    Line(layer='res(3, 64)', repeats=3, parameters=221568, operations=694837248, volume=(56, 56, 64))
    """
    rows, reader = read_layers(model, input_shape, count=count, **call)
    units = sorted(filter(None, {_unit(row.path) for row in rows}))
    groups = {}
    for row in rows:
        unit = next((unit for unit in units if row.path.startswith(f"{unit}/")), row.path)
        groups.setdefault(unit, []).append(row)
    image = tuple(getattr(input_shape, "shape", input_shape))
    lines = [Line(f"input({', '.join(map(str, _squared(image)))})", 1, 0, 0, image)]
    for path, group in groups.items():
        line, before = _line(path, group, reader, path in units), lines[-1]
        if path in units and (line.layer, line.volume) == (before.layer, before.volume):
            repeats, parameters, operations = (a + b for a, b in zip(before[1:4], line[1:4], strict=True))
            lines[-1] = Line(line.layer, repeats, parameters, operations, line.volume)
        elif line.parameters or line.operations or (_pools(group[0]) and line.volume != before.volume):
            lines.append(line)
    return lines


def _pools(row):
    return "pool" in row.kind or row.kind == "resample"


def _unit(path):
    """Return the path of the unit that a layer is a part of, or "" if it is not in a unit."""
    names = path.split("/")
    return "/".join(names[: next((i for i, name in enumerate(names) if i and PART.match(name)), 0)])


def _line(path, group, reader, is_unit):
    """Return the line of a layer, or of the layers of a unit."""
    words = [reader.words.get(tuple(row.path.split("/")), "") for row in group]
    branch = [
        word
        for row, word in zip(group, words, strict=True)
        if row.path.startswith(f"{path}/branch/") and word.startswith("conv(")
    ]
    if is_unit:
        layer, volume = _residual(branch) if branch else path, reader.calls[tuple(path.split("/"))][0].shape
    else:
        layer, volume = words[0] or group[0].kind, group[0].output
    parameters, operations = (sum(getattr(row, name) for row in group) for name in ("parameters", "macs"))
    return Line(layer, group[0].repeats, parameters, operations, volume)


def _residual(convolutions):
    """Return res(3, (64, 256), s2) from the words of the convolutions of its branch."""
    windows, features = zip(*(re.findall(r"[\dx]+", text)[:2] for text in convolutions), strict=True)
    distinct = [f for i, f in enumerate(features) if i == 0 or f != features[i - 1]]
    stride = next((match.group() for text in convolutions if (match := re.search(r"s\d+", text))), None)
    words = (max(windows, key=_side), distinct[0] if len(distinct) == 1 else f"({', '.join(distinct)})", stride)
    return f"res({', '.join(filter(None, words))})"


def _side(window):
    return max(map(int, window.split("x")))


def _squared(image):
    return image[1:] if len(image) == 3 and image[0] == image[1] else image
