"""The static part of a convolution: what is fixed before any array is read, and its checks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jax import dtypes, lax

from deepjax.errors import InputError, choices

MAX_TAPS = 128  # taps.py compiles one operation per tap; larger depthwise windows are "grouped"


class Axis(NamedTuple):
    """One spatial axis of a convolution from x to y. All entries are in pixels."""

    size: int  # of x
    window: int
    stride: int
    low: int  # zeros before x
    high: int  # zeros after x; a negative number cuts pixels off instead
    dilation: int

    @property
    def reach(self):
        """The distance from the first to the last tap of a window."""
        return (self.window - 1) * self.dilation

    @property
    def out(self):
        """The size of y: (low + size + high - reach - 1) // stride + 1."""
        return (self.low + self.size + self.high - self.reach - 1) // self.stride + 1


class Form(NamedTuple):
    """A convolution from x to y without its arrays: one `Axis` per spatial axis, the groups and the kind.

    The kind selects the implementation: "dense" has one group, "depthwise" one group per feature of x, "grouped" is
    everything else.
    """

    axes: tuple[Axis, ...]
    groups: int
    kind: str


def form_of(axes, groups, group_features):
    """Return the `Form` of a convolution whose kernel has `group_features` features in."""
    if groups == 1:
        kind = "dense"
    elif group_features == 1 and math.prod(a.window for a in axes) <= MAX_TAPS:
        kind = "depthwise"
    else:
        kind = "grouped"
    return Form(tuple(axes), groups, kind)


def conv_form(x, kernel, bias, stride, padding, dilation, groups):
    """Check the arguments of `conv` and return its `Form`."""
    check_shapes(x, kernel, bias, groups)
    size, window = x.shape[1 - kernel.ndim : -1], kernel.shape[:-2]
    stride, dilation = (per_axis(n, v, len(size)) for n, v in (("stride", stride), ("dilation", dilation)))
    extent = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    padding = low_high(padding, size, extent, stride)
    for n, (low, high), pixels in zip(size, padding, extent, strict=True):
        if pixels > low + n + high:
            raise InputError(
                f"conv: a window of {window} with dilation {dilation} spans {extent} pixels, more than x {size} "
                f"with padding {padding}; increase the padding or use a smaller kernel"
            )
    axes = [
        Axis(n, w, s, low, high, d)
        for n, w, s, (low, high), d in zip(size, window, stride, padding, dilation, strict=True)
    ]
    return form_of(axes, groups, kernel.shape[-2])


def transposed_form(x, kernel, bias, stride, padding, output_padding, dilation, groups):
    """Check the arguments of `conv_transpose` and return the `Form` of the convolution from its output to its input."""
    name = "conv_transpose"
    check_shapes(x, kernel, bias, groups, name=name)
    size, window = x.shape[1 - kernel.ndim : -1], kernel.shape[:-2]
    stride, dilation = (per_axis(n, v, len(size), name) for n, v in (("stride", stride), ("dilation", dilation)))
    if isinstance(padding, str):
        raise InputError(
            f"{name}: padding {padding!r} must be an int of at least 0, or {len(size)} ints or (low, high) pairs"
        )
    padding = low_high(padding, size, (), (), name)
    more = _output_padding(output_padding, stride, dilation)
    numbers = tuple(zip(size, window, stride, padding, dilation, more, strict=True))
    out = tuple((n - 1) * s - sum(p) + (w - 1) * d + m + 1 for n, w, s, p, d, m in numbers)
    if min(out) < 1:
        raise InputError(f"{name}: padding {padding} leaves nothing of y, whose size would be {out}; pad less")
    # An output padding of a whole stride or more would give the convolution another window: cut these pixels off.
    axes = [
        Axis(y, w, s, low, high - m // s * s, d) for y, (_, w, s, (low, high), d, m) in zip(out, numbers, strict=True)
    ]
    return form_of(axes, groups, kernel.shape[-1] // groups)


def _output_padding(value, stride, dilation):
    more = tuple(value) if isinstance(value, Sequence) else (value,) * len(stride)
    limits = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
    if len(more) != len(limits) or not all(isinstance(m, int) and 0 <= m < n for m, n in zip(more, limits)):
        raise InputError(
            f"conv_transpose: output_padding {value!r} must be an int, or one per spatial axis, of at least 0 and "
            f"less than stride {stride} or dilation {dilation}"
        )
    return more


def check_shapes(x, kernel, bias, groups, name="conv"):
    """Raise InputError unless x, kernel and bias fit together. `name` is the function that the message names."""
    spatial = kernel.ndim - 2
    if not 1 <= spatial <= 3:
        raise InputError(f"{name}: kernel of shape {kernel.shape} needs 3, 4 or 5 axes: [*window, features_in, out]")
    if x.ndim < spatial + 2:
        raise InputError(
            f"{name}: x of shape {x.shape} needs a batch axis, {spatial} spatial axes and features, "
            f"to match a kernel of shape {kernel.shape}"
        )
    types = [dtypes.canonicalize_dtype(array.dtype) for array in (x, kernel)]
    if types[0] != types[1]:
        raise InputError(f"{name}: x of type {types[0]} and kernel of type {types[1]} must have one type; cast one")
    if not isinstance(groups, int) or groups < 1 or kernel.shape[-1] % groups:
        raise InputError(f"{name}: groups {groups!r} must be at least 1 and divide the {kernel.shape[-1]} features_out")
    if x.shape[-1] != kernel.shape[-2] * groups:
        raise InputError(
            f"{name}: x has {x.shape[-1]} features, but a kernel of shape {kernel.shape} in {groups} "
            f"groups takes {kernel.shape[-2] * groups}"
        )
    if bias is not None and bias.shape != kernel.shape[-1:]:
        raise InputError(f"{name}: bias of shape {bias.shape} must be {kernel.shape[-1:]}, one per feature of y")


def per_axis(argument, value, axes, name="conv"):
    """Return one int per axis from an int or a sequence. Raise InputError if one is below 1."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes or not all(isinstance(v, int) and v >= 1 for v in values):
        raise InputError(f"{name}: {argument} {value!r} must be an int of at least 1, or {axes} of them")
    return values


def low_high(padding, size, extent, stride, name="conv"):
    """Return (low, high) pixels per axis from what `conv` accepts as padding. Raise InputError for anything else."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise InputError(f"{name}: padding {padding!r}: {choices(padding, ('SAME', 'VALID'))}")
        return tuple(lax.padtype_to_pads(size, extent, stride, padding))
    sides = tuple(padding) if isinstance(padding, Sequence) else (padding,) * len(size)
    pairs = [tuple(p) if isinstance(p, Sequence) else (p, p) for p in sides]
    pixels = [p for pair in pairs for p in pair]
    if [len(pair) for pair in pairs] != [2] * len(size) or not all(isinstance(p, int) and p >= 0 for p in pixels):
        raise InputError(
            f"{name}: padding {padding!r} must be 'SAME', 'VALID', an int of at least 0, or {len(size)} "
            "ints or (low, high) pairs"
        )
    return tuple((low, high) for low, high in pairs)
