"""Describe which pixels of the input the entries of an array depend on.

For each spatial axis of the input, these pixels form an interval that moves along with one axis of the array. If an
entry depends on several arrays, its interval covers their intervals. If intervals move at different rates, the result
is one fixed interval, which covers the pixels of all entries. So an interval may be too large, but is never too small.
"""

from fractions import Fraction
from functools import reduce
from math import ceil, floor
from typing import NamedTuple


class Span(NamedTuple):
    """Along one spatial axis of the input: position o of `axis` depends on `size` pixels from offset + o * stride on.

    Numbers are fractions after a transposed convolution: the pixels p are those with
    offset + o * stride <= p <= offset + o * stride + size - 1.
    """

    axis: int | None  # of the array; None: every entry depends on the same pixels, and stride is 0
    size: int | Fraction
    stride: int | Fraction
    offset: int | Fraction
    pixels: int  # of the input


class Window(NamedTuple):
    """How a convolution or a pooling moves along one axis."""

    taps: int
    stride: int
    low: int  # padding before the first pixel
    dilation: int  # between taps
    base: int  # 1 plus the zeros between the array's entries: the stride of a transposed convolution


Fields = tuple[Span, ...] | None  # one span per spatial axis of the input; None: the array does not depend on it


def union(fields, shape):
    """Return the fields of an array of this shape whose entries depend on the same entries of several arrays."""
    known = [field for field in fields if field is not None]
    if not known:
        return None
    return tuple(reduce(lambda a, b: _cover(a, b, shape), spans) for spans in zip(*known, strict=True))


def moved(field, shape, axes):
    """Return the fields of an array after its axes were moved. Entries depend on all positions of an axis that is lost.

    Args:
      field: `Fields`.
      shape: shape of the array before.
      axes: dict, axis before -> axis after.
    """
    return each(field, lambda s: s._replace(axis=axes[s.axis]) if s.axis in axes else of_all_positions(s, shape))


def of_all_entries(field, shape):
    """Return the fields of an array each of whose entries depends on all entries of an array of this shape."""
    return moved(field, shape, {})


def of_all_positions(span, shape):
    """Return the span of an entry that depends on all positions of an array of this shape, cut to the input."""
    if span.axis is None:
        return span
    last = span.offset + (shape[span.axis] - 1) * span.stride + span.size - 1
    start, end = max(ceil(span.offset), 0), min(floor(last) + 1, span.pixels)
    return Span(None, max(end - start, 0), 0, start, span.pixels)


def _cover(a, b, shape):
    if (a.axis, a.stride) != (b.axis, b.stride):
        a, b = of_all_positions(a, shape), of_all_positions(b, shape)
    start = min(a.offset, b.offset)
    return a._replace(offset=start, size=max(a.offset + a.size, b.offset + b.size) - start)


def each(field, change):
    """Return the fields with a function applied to every span that moves."""
    return None if field is None else tuple(span if span.axis is None else change(span) for span in field)


def slide(span, window):
    """Return the span after a `Window` moved over an array with this span."""
    step = span.stride if window.base == 1 else Fraction(span.stride) / window.base
    return span._replace(
        size=span.size + (window.taps - 1) * window.dilation * step,
        stride=step * window.stride,
        offset=span.offset - window.low * step,
    )


def crop(field, starts, strides):
    """Return the fields of every `strides`-th entry from `starts` on. Negative starts are entries before the first."""
    return each(
        field,
        lambda s: s._replace(offset=s.offset + starts[s.axis] * s.stride, stride=s.stride * strides[s.axis]),
    )
