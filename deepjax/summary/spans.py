"""Which pixels of the input the entries of an array see.

For each spatial axis of the input it is an interval that moves along with one axis of the array. Where arrays meet, the
interval that covers all of theirs counts. What moves at two rates is covered by all that any entry sees: an interval
may come out too large, never too small.
"""

from fractions import Fraction
from functools import reduce
from math import ceil, floor
from typing import NamedTuple


class Span(NamedTuple):
    """Along one spatial axis of the input: position o of `axis` sees `size` pixels from offset + o * stride on.

    Numbers are fractions behind a transposed convolution: pixel p is seen where
    offset + o * stride <= p <= offset + o * stride + size - 1.
    """

    axis: int | None  # of the array; None: every entry sees the same pixels, and stride is 0
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
    """The fields of an array of this shape whose entries see what the same entries of several arrays see."""
    known = [field for field in fields if field is not None]
    if not known:
        return None
    return tuple(reduce(lambda a, b: _cover(a, b, shape), spans) for spans in zip(*known, strict=True))


def moved(field, shape, axes):
    """The same fields after an array's axes became others; what moved along a lost axis is seen as a whole.

    Args:
      field: `Fields`.
      shape: of the array before.
      axes: dict, axis before -> axis after.
    """
    return each(field, lambda s: s._replace(axis=axes[s.axis]) if s.axis in axes else whole(s, shape))


def everything(field, shape):
    """The fields of an array every entry of which sees what any entry of an array of this shape sees."""
    return moved(field, shape, {})


def whole(span, shape):
    """What all positions see together, cut to the input."""
    if span.axis is None:
        return span
    last = span.offset + (shape[span.axis] - 1) * span.stride + span.size - 1
    start, end = max(ceil(span.offset), 0), min(floor(last) + 1, span.pixels)
    return Span(None, max(end - start, 0), 0, start, span.pixels)


def _cover(a, b, shape):
    if (a.axis, a.stride) != (b.axis, b.stride):
        a, b = whole(a, shape), whole(b, shape)
    start = min(a.offset, b.offset)
    return a._replace(offset=start, size=max(a.offset + a.size, b.offset + b.size) - start)


def each(field, change):
    """The fields with every span that moves changed by a function."""
    return None if field is None else tuple(span if span.axis is None else change(span) for span in field)


def slide(span, window):
    """What the entries of a result see when a `Window` moves over an array whose entries see the span."""
    step = span.stride if window.base == 1 else Fraction(span.stride) / window.base
    return span._replace(
        size=span.size + (window.taps - 1) * window.dilation * step,
        stride=step * window.stride,
        offset=span.offset - window.low * step,
    )


def crop(field, starts, strides):
    """Entries from `starts` on, every `strides`-th one; starts may be negative: entries before the first."""
    return each(
        field,
        lambda s: s._replace(offset=s.offset + starts[s.axis] * s.stride, stride=s.stride * strides[s.axis]),
    )
