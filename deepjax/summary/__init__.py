"""The layers of any Linen model: output shapes, parameters, multiply-adds, receptive fields. Nothing is computed.

One forward pass is traced with shapes alone (`trace`); its equations are read one by one (`walk`), which gives
multiply-adds, and what each output sees of the input (`rules`, `spans`).
"""

from collections import Counter
from math import prod
from typing import NamedTuple

import flax.traverse_util
import jax.numpy as jnp

from deepjax.errors import InputError, choices
from deepjax.summary.spans import Span
from deepjax.summary.trace import Call, trace
from deepjax.summary.walk import Walk

COUNTS = ("macs", "conv-bias")


class ReceptiveField(NamedTuple):
    """Output position o sees the `size` pixels of the input from offset + o * stride on; one entry per spatial axis.

    Padding is seen too, so an offset may be negative. A stride of 0: all positions see the same pixels, as behind a
    global pooling. Behind a transposed convolution the numbers are fractions: the pixels p seen are those with
    offset + o * stride <= p <= offset + o * stride + size - 1.
    """

    size: tuple[int | float, ...]
    stride: tuple[int | float, ...]
    offset: tuple[int | float, ...]


class Layer(NamedTuple):
    """One row of the table: a module that owns parameters or multiplies, or calls no other module; or a pooling."""

    path: str  # "stage1_rest/unit/branch/conv1"
    kind: str  # the class's name; of a function its own
    output: tuple[int, ...]  # shape of one example's output (of the last array, where there are several)
    repeats: int  # how often a scan runs it
    parameters: int  # over all repeats
    macs: int  # over all calls and repeats; with count "conv-bias" its operations
    field: ReceptiveField | None  # of the last call; None: the output does not depend on the input


def summarize(model, input_shape, *, count="macs", level=None, **call):
    """The layers of a model, in the order in which they are first called.

    Multiply-adds are those of convolutions and matrix products, one each, for one example, from shapes: a tap on
    padding counts; a scan's count every time, those of a `while` once, of a `cond`'s branches the dearest. Equal
    modules of one `nn.jit` class are traced once: the first one's rows have the costs of all.

    `count="conv-bias"` counts as lectures do by hand. Every convolution has a bias, nothing else but matrix products
    has parameters, and operations are parameters x output positions; a pooling has one operation per output value. A
    1x1 convolution with a stride is a pooling, which takes those pixels, and a 1x1 convolution without.

    Args:
      model: any Linen module whose first argument is a batch of examples.
      input_shape: of one example, such as (32, 32, 3): spatial axes and features. A `jax.ShapeDtypeStruct` where the
        input is not float32.
      count: "macs" or "conv-bias".
      level: gather the layers below the first `level` names of their paths; None: no gathering.
      **call: further arguments of the model; a model that takes `train` gets `train=False` unless told otherwise.

    Returns:
      list of `Layer`. The model's parameters and multiply-adds are the sums of theirs.

    Raises:
      InputError: an axis or level below 1, an unknown count, or an input that the model does not take.

    >>> import flax.linen as nn
    >>> conv, norm = summarize(nn.Sequential([nn.Conv(8, (3, 3), 2), nn.LayerNorm()]), (32, 32, 3))
    >>> conv.output, conv.parameters, conv.macs
    ((16, 16, 8), 224, 55296)
    >>> norm.field.size, norm.field.stride, norm.field.offset
    ((3, 3), (2, 2), (0, 0))
    """
    shape, dtype = getattr(input_shape, "shape", input_shape), getattr(input_shape, "dtype", jnp.float32)
    if min(shape, default=1) < 1:
        raise InputError(f"input {','.join(map(str, shape))}: every axis must be at least 1")
    if count not in COUNTS:
        raise InputError(f"count {count!r} is unknown; {choices(str(count), COUNTS)}")
    if level is not None and level < 1:
        raise InputError(f"level {level} must be at least 1")
    jaxpr, variables = trace(model, shape, dtype, call)
    image = tuple(Span(axis + 1, 1, 1, 0, pixels) for axis, pixels in enumerate(shape[:-1]))
    walk = Walk()
    walk.run(jaxpr, [*[None] * (len(jaxpr.invars) - 1), image], cost=walk.cost)
    if () not in walk.calls:  # an `nn.jit` around all, traced before as a part of another model
        walk.calls[()], walk.fields[()] = (Call(type(model).__name__, (), {}), 1), None
    leaves = flax.traverse_util.flatten_dict(variables.get("params", {}))
    return _rows(walk, leaves, count, level)


def _rows(walk, leaves, count, level):
    sizes = _parameters(walk, leaves)
    macs = walk.cost.macs if count == "macs" else _operations(walk)
    kept = {path: size if count == "macs" else _with_biases(walk, path, size) for path, size in sizes.items()}
    layers = {
        path: Layer("/".join(path), c.kind, c.output, times, kept[path], macs[path], _field(walk.fields[path]))
        for path, (c, times) in walk.calls.items()
    }
    callers = _callers(walk)
    poolings = {path for path in walk.pools if path[:-1] in callers}  # others are part of their module
    rows = [
        path
        for path in _in_order(walk.calls)
        if path in poolings or (path not in walk.pools and (sizes[path] or macs[path] or path not in callers))
    ]
    gathered = {}
    for path in rows:
        group = path[:level]
        below = layers[path]
        row = gathered.get(group) or layers.get(group, below)._replace(path="/".join(group), parameters=0, macs=0)
        gathered[group] = row._replace(parameters=row.parameters + below.parameters, macs=row.macs + below.macs)
    return list(gathered.values())


def _parameters(walk, leaves):
    """Path of a call -> parameters that the module itself owns, over all repeats."""
    sizes = dict.fromkeys(walk.calls, 0)
    for path, leaf in leaves.items():
        while path not in sizes:  # the leaf's name, and those of dicts that a module keeps parameters in
            path = path[:-1]
        sizes[path] += leaf.size
    return sizes


def _with_biases(walk, path, size):
    """Parameters of a module of `size` parameters by the count "conv-bias"."""
    own = walk.calls[path][0].own.values()
    if path in walk.cost.convs:
        kernels = sum(prod(shape) + (shape[-1] if len(shape) > 2 else 0) for shape in own if len(shape) > 1)
        return kernels * size // max(sum(map(prod, own)), 1)
    return size if walk.cost.macs[path] else 0


def _operations(walk):
    """Path of a call -> operations by the count "conv-bias"."""
    cost, callers = walk.cost, _callers(walk)
    operations = Counter(cost.macs)
    for path, values in cost.biases.items():
        if path in cost.convs or "bias" in walk.calls[path][0].own:
            operations[path] += values
    for path, values in cost.pooled.items():
        part = path in walk.pools and path[:-1] not in callers
        module = path[:-1] if part else path
        if not (part and "Norm" in walk.calls[module][0].kind):  # a norm's mean over pixels is no pooling
            operations[module] += values
    return operations


def _callers(walk):
    return {path[:i] for path in walk.calls if path not in walk.pools for i in range(len(path))}


def _in_order(calls):
    """Paths in the order in which their calls begin: `calls` has them in the order of their ends."""
    first = {}
    for i, path in enumerate(calls):
        for n in range(len(path) + 1):
            first.setdefault(path[:n], i)
    return sorted(calls, key=lambda path: (first[path], len(path)))


def _field(spans):
    if spans is None:
        return None
    return ReceptiveField(*(tuple(_number(getattr(s, name)) for s in spans) for name in ReceptiveField._fields))


def _number(value):
    return int(value) if value == int(value) else float(value)
