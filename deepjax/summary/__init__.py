"""Summarize the layers of any Linen model: output shapes, parameters, multiply-adds, receptive fields.

Nothing is computed. One forward pass is traced with shapes alone, and its equations are read one by one (`costs`),
which gives the multiply-adds, and the pixels that each output depends on (`rules`, `spans`).
"""

from collections import Counter
from math import prod
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from deepjax.errors import InputError, choices
from deepjax.summary.costs import Reader, Seen
from deepjax.summary.spans import Span
from deepjax.trace import call_arguments, call_jaxpr, input_errors
from deepjax.zoo.network import Network

COUNTS = ("macs", "kernels", "conv-bias")


class ReceptiveField(NamedTuple):
    """The pixels that a map depends on: position o on the `size` pixels from offset + o * stride on.

    Each field has one entry per spatial axis. Padding is included, so an offset may be negative. A stride of 0 means
    that all positions depend on the same pixels, as after a global pooling. After a transposed convolution the numbers
    are fractions: the pixels p are those with offset + o * stride <= p <= offset + o * stride + size - 1.
    """

    size: tuple[int | float, ...]
    stride: tuple[int | float, ...]
    offset: tuple[int | float, ...]


class Row(NamedTuple):
    """One row of the table: a module that owns parameters or multiplies, or calls no other module; or a pooling."""

    path: str  # "stage1_rest/unit/branch/conv1"
    kind: str  # name of the class, or of the function
    output: tuple[int, ...]  # shape of one example's output (of the last array, if there are several)
    repeats: int  # how often a scan runs it
    parameters: int  # over all repeats
    macs: int  # over all calls and repeats; its operations if count is "conv-bias"
    field: ReceptiveField | None  # of the last call; None if the output does not depend on the input


def summarize(model, input_shape, *, count="macs", level=None, **call):
    """List the layers of a model, in the order in which they are first called.

    Multiply-adds are those of convolutions and matrix products, for one example, computed from shapes. Taps on padding
    count. Every step of a scan counts, one step of a `while`, and the most expensive branch of a `cond`. A product with
    a fixed matrix along the pixels does not count, because it is a resampling, such as an adaptive pooling.

    `count="kernels"` counts the parameters that multiply-adds use: those of kernels, without biases and norms.

    `count="conv-bias"` follows the counting by hand in lectures. Every convolution has a bias. Only convolutions and
    matrix products have parameters. Operations are parameters x output positions. A pooling has one operation per
    input value. A 1x1 convolution with a stride counts as a selection of pixels, one operation for each value that is
    kept, followed by a 1x1 convolution without stride; 1x1 convolutions of the same map share the selection. The logits
    of a network of the zoo are followed by a softmax, with one operation per logit.

    Args:
      model: any Linen module whose first argument is a batch of examples.
      input_shape: of one example, such as (32, 32, 3): spatial axes and features. Pass a `jax.ShapeDtypeStruct` if the
        input is not float32.
      count: "macs", "kernels" or "conv-bias".
      level: merge the rows whose paths share their first `level` names; None: do not merge.
      **call: further arguments of the model. A model that takes `train` gets `train=False` by default.

    Returns:
      list of `Row`. The parameters and multiply-adds of the model are the sums of theirs.

    Raises:
      InputError: an axis or level below 1, an unknown count, or an input that the model does not take.

    >>> import flax.linen as nn
    >>> conv, norm = summarize(nn.Sequential([nn.Conv(8, (3, 3), 2), nn.LayerNorm()]), (32, 32, 3))
    >>> conv.output, conv.parameters, conv.macs
    ((16, 16, 8), 224, 55296)
    >>> norm.field.size, norm.field.stride, norm.field.offset
    ((3, 3), (2, 2), (0, 0))
    """
    rows, _ = read_layers(model, input_shape, count=count, level=level, **call)
    return rows


def read_layers(model, input_shape, *, count="macs", level=None, **call):
    """Return (rows of `summarize`, the `costs.Reader` that has read the model)."""
    if count not in COUNTS:
        raise InputError(f"count {count!r} is unknown; {choices(str(count), COUNTS)}")
    if level is not None and level < 1:
        raise InputError(f"level {level} must be at least 1")
    jaxpr, variables = trace_model(model, input_shape, **call)
    shape = getattr(input_shape, "shape", input_shape)
    reader = Reader()
    reader.run(jaxpr, _inputs(jaxpr, shape))
    leaves = flax.traverse_util.flatten_dict(variables.get("params", {}))
    rows = _rows(reader, leaves, count, level)
    if count == "conv-bias" and isinstance(model, Network) and model.return_logits and not model.features_only:
        n = model.num_classes
        rows.append(rows[-1]._replace(path="softmax", kind="softmax", output=(n,), parameters=0, macs=n))
    return rows, reader


def map_fields(model, input_shape, **call) -> dict[str, ReceptiveField]:
    """Return the receptive field of each array in the output of a model that returns a dict of feature maps.

    For arguments and errors, see `summarize`. Maps that do not depend on the input are left out.
    """
    jaxpr, variables = trace_model(model, input_shape, **call)
    shape = getattr(input_shape, "shape", input_shape)
    reader = Reader()
    found = reader.run(jaxpr, _inputs(jaxpr, shape))
    call = call_arguments(model, train=False) | call
    x = jax.ShapeDtypeStruct((1, *shape), getattr(input_shape, "dtype", jnp.float32))
    names = jax.eval_shape(lambda variables, x: model.apply(variables, x, **call), variables, x)
    return {name: field for name, seen in zip(sorted(names), found) if (field := _field(seen.field)) is not None}


def _inputs(jaxpr, shape):
    image = tuple(Span(axis + 1, 1, 1, 0, pixels) for axis, pixels in enumerate(shape[:-1]))
    return [*[Seen(fixed=False)] * (len(jaxpr.invars) - 1), Seen(image, fixed=False)]


def trace_model(model, input_shape, **call):
    """Return (jaxpr of an inference call on one example, shapes of the variables). For arguments, see `summarize`."""
    shape, dtype = getattr(input_shape, "shape", input_shape), getattr(input_shape, "dtype", jnp.float32)
    if min(shape, default=1) < 1:
        raise InputError(f"input {','.join(map(str, shape))}: every axis must be at least 1")
    call = call_arguments(model, train=False) | call
    x = jax.ShapeDtypeStruct((1, *shape), dtype)
    keys = {"params": jax.random.key(0)}  # the stream that Flax uses in place of all others
    with input_errors(shape):
        variables = nn.meta.unbox(jax.eval_shape(lambda x: model.init(keys, x, **call), x))
    mutable = nn.DenyList("intermediates")
    return call_jaxpr(model, variables, x, call, rngs=keys, mutable=mutable), variables


def _rows(reader, leaves, count, level):
    sizes = _parameters(reader, leaves)
    macs = _operations(reader) if count == "conv-bias" else reader.cost.macs
    counted = {path: _counted(reader, path, size, count) for path, size in sizes.items()}
    rows = {
        path: Row("/".join(path), c.kind, c.shape, times, counted[path], macs[path], _field(reader.fields[path]))
        for path, (c, times) in reader.calls.items()
    }
    callers = _callers(reader)
    poolings = {path for path in reader.pools if path[:-1] in callers}  # others are part of their module
    shown = [
        path
        for path in _in_order(reader.calls)
        if path in poolings or (path not in reader.pools and (sizes[path] or macs[path] or path not in callers))
    ]
    merged = {}
    for path in shown:
        group = path[:level]
        below = rows[path]
        row = merged.get(group) or rows.get(group, below)._replace(path="/".join(group), parameters=0, macs=0)
        merged[group] = row._replace(parameters=row.parameters + below.parameters, macs=row.macs + below.macs)
    return list(merged.values())


def _parameters(reader, leaves):
    """Return {path of a call: number of parameters that the module itself owns, over all repeats}."""
    sizes = dict.fromkeys(reader.calls, 0)
    for path, leaf in leaves.items():
        while path not in sizes:  # drop the names of the leaf and of dicts of parameters inside a module
            path = path[:-1]
        sizes[path] += leaf.size
    return sizes


def _counted(reader, path, size, count):
    """Return how many parameters a count sees of a module that owns `size` of them."""
    own = reader.calls[path][0].parameters.values()
    if count == "macs":
        return size
    if path in reader.cost.convs or count == "kernels":
        biased = count == "conv-bias"
        kernels = sum(prod(shape) + (shape[-1] if biased and len(shape) > 2 else 0) for shape in own if len(shape) > 1)
        return kernels * size // max(sum(map(prod, own)), 1) if reader.cost.macs[path] else 0
    return size if reader.cost.macs[path] else 0


def _operations(reader):
    """Return {path of a call: operations by the count "conv-bias"}."""
    cost, callers = reader.cost, _callers(reader)
    operations = Counter(cost.macs)
    for path, values in cost.biases.items():
        if path in cost.convs or "bias" in reader.calls[path][0].parameters:
            operations[path] += values
    for path, values in cost.pooled.items():
        part = path in reader.pools and path[:-1] not in callers
        module = path[:-1] if part else path
        if not (part and "Norm" in reader.calls[module][0].kind):  # a norm's mean over pixels is not a pooling
            operations[module] += values
    return operations


def _callers(reader):
    return {path[:i] for path in reader.calls if path not in reader.pools for i in range(len(path))}


def _in_order(calls):
    """Sort paths by when their first call begins; `calls` has them in the order in which their calls end."""
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
