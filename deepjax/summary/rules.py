"""Compute the receptive fields of an equation's results from those of its operands.

Take an array whose entries depend on `size` pixels each, which move by `stride` from `offset` on. A window of k taps
with dilation r, stride s and low padding p over it gives entries that depend on

    size + (k - 1) r stride  pixels, moving by  s stride,  from  offset - p stride  on

(Araujo, Norris & Sim 2019, "Computing receptive fields of convolutional neural networks", section 2). An equation
without a rule here gives entries that depend on everything that any entry of its operands depends on.
"""

from collections.abc import Callable
from fractions import Fraction
from math import prod

from jax.extend.core import Literal

from deepjax.summary.spans import Window, crop, each, moved, of_all_entries, of_all_positions, slide, union

# The operands have one shape; an entry of the result depends on what the same entries of the operands depend on.
ELEMENTWISE = frozenset(
    (
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt",
        "ceil", "clamp", "conj", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div",
        "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow",
        "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "name", "ne", "neg",
        "nextafter", "not", "optimization_barrier", "or", "pow", "pvary", "real", "reduce_precision", "rem",
        "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign",
        "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
    )
)  # fmt: skip
CUMULATIVE = frozenset(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"))


def outputs(eqn, fields):
    """Return the fields of an equation's results.

    Args:
      eqn: an equation of a jaxpr that does not call another jaxpr.
      fields: list of `Fields`, one per operand.

    Returns:
      list of `Fields`, one per result.
    """
    if all(field is None for field in fields):
        return [None] * len(eqn.outvars)
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        rule = _elementwise
    elif name.startswith("reduce_window"):
        rule = _reduce_window
    elif "axes" in eqn.params and name.startswith(("reduce_", "arg")):
        rule = _reduce
    elif name in CUMULATIVE:
        rule = _cumulative
    else:
        rule = RULES.get(name, _unknown)
    return rule(eqn, fields)


def _shape(atom) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())


# Rules: (equation, fields of its operands) -> fields of its results


def _unknown(eqn, fields):
    shapes = map(_shape, eqn.invars)
    seen = union([of_all_entries(f, s) for f, s in zip(fields, shapes, strict=True)], ())
    return [seen] * len(eqn.outvars)


def _elementwise(eqn, fields):
    if eqn.primitive.name == "optimization_barrier":
        return fields
    return [union(fields, _shape(eqn.outvars[0]))]


def _conv(eqn, fields):
    p, shape, kernel = eqn.params, _shape(eqn.invars[0]), _shape(eqn.invars[1])
    if fields[1] is not None:  # a kernel made from the input
        return _unknown(eqn, fields)
    x, k, y = p["dimension_numbers"]
    axes = dict(zip(x[2:], y[2:], strict=True))
    sizes = [kernel[axis] for axis in k[2:]]
    lows = [low for low, _ in p["padding"]]
    numbers = zip(sizes, p["window_strides"], lows, p["rhs_dilation"], p["lhs_dilation"], strict=True)
    windows = dict(zip(x[2:], (Window(*n) for n in numbers), strict=True))
    if p["batch_group_count"] == 1:
        axes[x[0]] = y[0]
    slid = each(fields[0], lambda s: slide(s, windows[s.axis]) if s.axis in windows else s)
    return [each(slid, lambda s: s._replace(axis=axes[s.axis]) if s.axis in axes else of_all_positions(s, shape))]


def _reduce_window(eqn, fields):
    p = eqn.params
    lows = [low for low, _ in p["padding"]]
    numbers = (p["window_dimensions"], p["window_strides"], lows, p["window_dilation"], p["base_dilation"])
    windows = [Window(*n) for n in zip(*numbers, strict=True)]
    shape = _shape(eqn.outvars[0])
    seen = union([each(f, lambda s: slide(s, windows[s.axis])) for f in fields], shape)
    return [seen] * len(eqn.outvars)


def _reduce(eqn, fields):
    shape = _shape(eqn.invars[0])
    kept = [axis for axis in range(len(shape)) if axis not in eqn.params["axes"]]
    axes = {axis: i for i, axis in enumerate(kept)}
    return [union([moved(f, shape, axes) for f in fields], _shape(v)) for v in eqn.outvars]


def _cumulative(eqn, fields):
    axes = {axis: axis for axis in range(len(_shape(eqn.invars[0]))) if axis != eqn.params["axis"]}
    return [moved(fields[0], _shape(eqn.invars[0]), axes)]


def _transpose(eqn, fields):
    axes = {old: new for new, old in enumerate(eqn.params["permutation"])}
    return [moved(fields[0], _shape(eqn.invars[0]), axes)]


def _squeeze(eqn, fields):
    shape = _shape(eqn.invars[0])
    kept = [axis for axis in range(len(shape)) if axis not in eqn.params["dimensions"]]
    return [moved(fields[0], shape, {axis: i for i, axis in enumerate(kept)})]


def _broadcast_in_dim(eqn, fields):
    old, new = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    pairs = enumerate(eqn.params["broadcast_dimensions"])
    return [moved(fields[0], old, {axis: to for axis, to in pairs if old[axis] == new[to]})]


def _reshape(eqn, fields):
    """A spatial axis may be split, and may be merged with axes after it that are neither spatial nor features."""
    old, new, field = _shape(eqn.invars[0]), _shape(eqn.outvars[0]), fields[0]
    if 0 in old:
        return _unknown(eqn, fields)
    spatial = {span.axis for span in field}
    group_of = {axis: group for group in _groups(old, new) for axis in group[0]}

    def change(span):
        before, after = group_of.get(span.axis, ((), ()))  # an axis of one pixel is in no group
        if not before or before[0] != span.axis:
            return of_all_positions(span, old)
        if len(before) > 1 and (before[-1] == len(old) - 1 or spatial & set(before[1:])):
            return of_all_positions(span, old)
        merged = prod(old[axis] for axis in before[1:])
        if merged > 1:  # position o of the merged axis is position o // merged of this one
            step = Fraction(span.stride) / merged
            more = step * (merged - 1)
            span = span._replace(size=span.size + more, stride=step, offset=span.offset - more)
        split = prod(new[axis] for axis in after[1:])
        return span._replace(axis=after[0], size=span.size + (split - 1) * span.stride, stride=span.stride * split)

    return [each(field, change)]


def _groups(old, new):
    """Return [(axes of old, axes of new)] with the same entries in the same order; axes of length 1 are left out."""
    a = [axis for axis, n in enumerate(old) if n > 1]
    b = [axis for axis, n in enumerate(new) if n > 1]
    groups = []
    while a:
        i, j = 1, 1
        while (left := prod(old[axis] for axis in a[:i])) != (right := prod(new[axis] for axis in b[:j])):
            i, j = (i + 1, j) if left < right else (i, j + 1)
        groups.append((tuple(a[:i]), tuple(b[:j])))
        a, b = a[i:], b[j:]
    return groups


def _slice(eqn, fields):
    starts = eqn.params["start_indices"]
    return [crop(fields[0], starts, eqn.params["strides"] or (1,) * len(starts))]


def _dynamic_slice(eqn, fields):
    shape, sizes = _shape(eqn.invars[0]), eqn.params["slice_sizes"]
    starts = [int(v.val) if isinstance(v, Literal) else None for v in eqn.invars[1 : 1 + len(shape)]]
    starts = [0 if size == n else start for start, size, n in zip(starts, sizes, shape, strict=True)]
    axes = {axis: axis for axis, start in enumerate(starts) if start is not None}  # those with a constant start
    image = crop(moved(fields[0], shape, axes), starts, (1,) * len(shape))
    return [union([image, *fields[1:]], _shape(eqn.outvars[0]))]


def _split(eqn, fields):
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    rank = len(_shape(eqn.invars[0]))
    starts = [[sum(sizes[:i]) if a == axis else 0 for a in range(rank)] for i in range(len(sizes))]
    return [crop(fields[0], start, (1,) * rank) for start in starts]


def _concatenate(eqn, fields):
    axis, shape = eqn.params["dimension"], _shape(eqn.outvars[0])
    ones, before, placed = (1,) * len(shape), 0, []
    for v, field in zip(eqn.invars, fields, strict=True):
        placed.append(crop(field, [-before if a == axis else 0 for a in range(len(shape))], ones))
        before += _shape(v)[axis]
    return [union(placed, shape)]


def _pad(eqn, fields):
    config = eqn.params["padding_config"]
    padded = each(fields[0], lambda s: slide(s, Window(1, 1, config[s.axis][0], 1, config[s.axis][2] + 1)))
    return [union([padded, fields[1]], _shape(eqn.outvars[0]))]


def _dot_general(eqn, fields):
    contracted, batch = eqn.params["dimension_numbers"]
    sides, taken = [], len(batch[0])
    for v, field, lost, batched in zip(eqn.invars, fields, contracted, batch, strict=True):
        free = [axis for axis in range(len(_shape(v))) if axis not in lost and axis not in batched]
        axes = {axis: i for i, axis in enumerate(batched)} | {axis: taken + i for i, axis in enumerate(free)}
        taken += len(free)
        sides.append(moved(field, _shape(v), axes))
    return [union(sides, _shape(eqn.outvars[0]))]


def _gather(eqn, fields):
    """Keep axes that are gathered completely. Along the others, an entry may depend on any position."""
    numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], _shape(eqn.invars[0])
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = zip([axis for axis in range(len(shape)) if axis not in dropped], numbers.offset_dims, strict=True)
    image = moved(fields[0], shape, {axis: to for axis, to in kept if sizes[axis] == shape[axis]})
    return [union([image, of_all_entries(fields[1], _shape(eqn.invars[1]))], _shape(eqn.outvars[0]))]


RULES: dict[str, Callable] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
