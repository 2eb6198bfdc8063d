"""Evaluate a jaxpr equation by equation, and find the first equation from which a value that is not finite spreads.

Values that are not finite may be harmless: `where(mask, scores, -inf)` is, and so is a logarithm of 0 that a `where`
removes. So every equation whose result is not finite becomes an `Event` with links to the events that made its operands
bad. The origin is the first event that made such a value out of finite ones, of those from which links lead to the
results of the whole function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from deepjax.trace.jaxpr import SCOPE, called_jaxpr, scan_sizes

# Primitives that compute each element of the result from the same element of the operands.
_NAMES = (
    "abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt clamp convert_element_type copy "
    "cos cosh digamma div erf erf_inv erfc exp exp2 expm1 imag integer_pow lgamma log log1p logistic max min mul neg "
    "nextafter pow real reduce_precision rem round rsqrt sign sin sinh sqrt square sub tan tanh"
)
ELEMENTWISE = frozenset(_NAMES.split())
# Where the derivative of a primitive is infinite: function of (operands at one element or all, parameters).
SINGULAR: dict[str, Callable] = {
    "sqrt": lambda x, **_: x == 0,
    "rsqrt": lambda x, **_: x == 0,
    "cbrt": lambda x, **_: x == 0,
    "log": lambda x, **_: x == 0,
    "log1p": lambda x, **_: x == -1,
    "pow": lambda x, y, **_: x == 0,
    "integer_pow": lambda x, *, y, **_: (x == 0) & (y < 0),
    "div": lambda x, y, **_: y == 0,
    "atan2": lambda x, y, **_: (x == 0) & (y == 0),
    "acos": lambda x, **_: abs(x) == 1,
    "asin": lambda x, **_: abs(x) == 1,
    "acosh": lambda x, **_: x == 1,
    "atanh": lambda x, **_: abs(x) == 1,
}
# Frames of these folders are never where a user's function stands.
_DEEPJAX = tuple(f"/deepjax/{name}/" for name in ("trace", "doctor", "functional/convolution"))
LIBRARIES = ("/jax/", "/jaxlib/", "/flax/", "/optax/", "/contextlib.py", *_DEEPJAX)


@dataclass(frozen=True)
class Operand:
    """An array that entered an equation."""

    shape: tuple[int, ...]
    dtype: str
    low: float
    """Smallest finite element; NaN if there is none."""
    high: float
    """Largest finite element; NaN if there is none."""
    value: float | None = None
    """The element from which the value that is not finite was made; None where it was made of many elements."""


@dataclass(frozen=True)
class Place:
    """Position of an equation in the function."""

    stack: str = ""
    """Name stacks of the equation and of the calls and loops around it."""
    source: str = ""
    """"file:line in function" of the line that made the equation."""
    steps: tuple[int, ...] = ()
    """Steps of the loops around it, the outermost first."""

    @property
    def layer(self) -> str | None:
        """Path of the module in whose call it is; "" for the outermost module; None outside of all modules."""
        found = SCOPE.findall(self.stack)
        return found[-1] if found else None

    @property
    def transposed(self) -> bool:
        """Whether it is in a backward pass, and not a part of the forward pass that is computed again there."""
        return "transpose(" in self.stack and not self.recomputed

    @property
    def recomputed(self) -> bool:
        """Whether it is a part of the forward pass that the backward pass computes again (`jax.checkpoint`)."""
        return "rematted_computation" in self.stack.rpartition("transpose(")[2]


@dataclass(eq=False)
class Event:
    """An array that is not finite: the result of an equation, an argument or a constant."""

    kind: str  # "equation", "argument", "constant"
    name: str  # of the primitive, or of the argument
    number: int  # in the order of evaluation
    result: float  # an element that is not finite
    index: tuple[int, ...]  # of that element
    dtype: str  # of the array
    place: Place = Place()
    operands: tuple[Operand, ...] = ()
    creates: bool = False  # an element that is not finite was made of finite ones
    makes_nan: bool = False  # a NaN was made of infinite elements
    sources: tuple["Event", ...] = ()  # that made the operands bad
    rows: tuple[int, ...] = ()  # of an argument: indices along the first axis
    consumers: list["Event"] = field(default_factory=list)


PASSES = ("", "forward", "backward", "update")  # in the order of their causes; "" for arguments and constants
Pair = tuple[Any, tuple[Event, ...]]  # an array, and the events from which its bad elements come


def is_bad(value) -> bool:
    """Return whether an array of real or complex numbers has an element that is not finite."""
    return _is_of(jnp.inexact, value) and not bool(np.isfinite(np.asarray(value)).all())


class Search:
    """Evaluate a jaxpr with concrete arrays. `events` and `singular` grow on the way."""

    def __init__(self):
        self.count = 0
        self.events: list[Event] = []
        self.singular: list[tuple[int, str, Place]] = []  # (number, primitive, place) of derivatives that are infinite
        self.first_transposed: int | None = None  # number of the first equation of the backward pass

    def given(self, kind, name, value, place=Place()) -> Pair:
        """Return an argument or a constant as a pair; `place` is where a constant is read."""
        if not is_bad(value):
            return value, ()
        wrong = np.argwhere(~np.isfinite(np.asarray(value)))
        index = tuple(int(i) for i in wrong[0])
        rows = tuple(dict.fromkeys(int(w[0]) for w in wrong)) if len(index) else ()
        nan = bool(np.isnan(np.asarray(value)).any())
        value = np.asarray(value)
        event = Event(kind, name, -1, _number(value[index]), index, str(value.dtype), place, rows=rows, creates=nan)
        self.events.append(event)
        return value, (event,)

    def run(self, jaxpr, constants: Sequence[Pair], arguments: Sequence[Pair], place: Place) -> list[Pair]:
        """Return the results of a jaxpr."""
        found = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
        last = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, Literal)}
        keep = {v for v in jaxpr.outvars if not isinstance(v, Literal)}

        def of(atom, eqn=None):
            if not isinstance(atom, Literal):
                return found[atom]
            here = place if eqn is None or not is_bad(atom.val) else place_of(eqn, place)
            return self.given("constant", "a constant", atom.val, here)

        for i, eqn in enumerate(jaxpr.eqns):
            results = self._results(eqn, [of(v, eqn) for v in eqn.invars], place)
            found.update((v, r) for v, r in zip(eqn.outvars, results, strict=True) if v in keep or last.get(v, -1) > i)
            for v in eqn.invars:  # what nothing reads any more is freed
                if not isinstance(v, Literal) and last[v] == i and v not in keep:
                    found.pop(v, None)
        return [of(v) for v in jaxpr.outvars]

    def _results(self, eqn, operands, place):
        name, body = eqn.primitive.name, called_jaxpr(eqn)
        if name == "scan":
            return self._loop(eqn, operands, place, self._scan_steps)
        if name == "while":
            return self._loop(eqn, operands, place, self._while_steps)
        if name == "cond":
            branches = eqn.params["branches"]
            body = branches[min(max(int(operands[0][0]), 0), len(branches) - 1)]
            return self._closed(body, operands[1:], place_of(eqn, place))
        if body is not None:
            closed = [each for each in eqn.params.values() if isinstance(each, ClosedJaxpr)]
            constants = [self.given("constant", "a constant", value) for each in closed for value in each.consts]
            return self.run(body, constants, operands, place_of(eqn, place))
        return self._plain(eqn, operands, place)

    def _closed(self, closed, operands, place):
        constants = [self.given("constant", "a constant", value) for value in closed.consts]
        return self.run(closed.jaxpr, constants, operands, place)

    def _plain(self, eqn, operands, place):
        self.count += 1
        if self.first_transposed is None and Place(f"{place.stack}/{eqn.source_info.name_stack}").transposed:
            self.first_transposed = self.count
        values, name = [value for value, _ in operands], eqn.primitive.name
        results = _bind(eqn, values)
        here = None
        if name in SINGULAR and bool(np.any(SINGULAR[name](*map(np.asarray, values), **eqn.params))):
            here = place_of(eqn, place)
            self.singular.append((self.count, name, here))
        if not any(map(is_bad, results)):
            return [(result, ()) for result in results]
        here = here or place_of(eqn, place)
        out = next(np.asarray(result) for result in results if is_bad(result))
        event = _event(name, out, [np.asarray(v) for v in values if _is_of(jnp.number, v)], here, self.count)
        event.sources = _sources(name, out, operands)
        for source in event.sources:
            source.consumers.append(event)
        self.events.append(event)
        return [(result, (event,) if is_bad(result) else ()) for result in results]

    def _loop(self, eqn, operands, place, steps):
        """Evaluate a loop in one piece. If its results are not finite, look into the first step at which that is so."""
        results = _bind(eqn, [value for value, _ in operands])
        if not any(map(is_bad, results)):
            return [(result, ()) for result in results]
        here = place_of(eqn, place)
        for number, closed, given in steps(eqn, operands):
            inside = Place(here.stack, here.source, (*here.steps, number))
            pairs = self._closed(closed, given, inside)
            events = [found for value, found in pairs if is_bad(value)]
            if events:
                union = tuple(dict.fromkeys(event for found in events for event in found))
                return [(result, union if is_bad(result) else ()) for result in results]
        return self._plain(eqn, operands, place)  # step by step it is finite: other rounding

    def _scan_steps(self, eqn, operands):
        """Yield (number, body, its operands) of the first step of a scan whose results are not finite."""
        params = eqn.params
        constants, carries = scan_sizes(params)
        first, step = constants + carries, _jitted(params["jaxpr"])
        fixed, carry, stacks = operands[:constants], list(operands[constants:first]), operands[first:]
        order = range(params["length"])
        for number in reversed(order) if params["reverse"] else order:
            slices = [_kept(value[number], found) for value, found in stacks]
            given = [*fixed, *carry, *slices]
            results = step(*(value for value, _ in given))
            if any(map(is_bad, results)):
                yield number, params["jaxpr"], given
                return
            carry = [(value, ()) for value in results[:carries]]

    def _while_steps(self, eqn, operands):
        params = eqn.params
        first = params["cond_nconsts"]
        second = first + params["body_nconsts"]
        test, step = _jitted(params["cond_jaxpr"]), _jitted(params["body_jaxpr"])
        fixed, carry, number = operands[first:second], list(operands[second:]), 0
        while bool(test(*(value for value, _ in [*operands[:first], *carry]))[0]):
            given = [*fixed, *carry]
            results = step(*(value for value, _ in given))
            if any(map(is_bad, results)):
                yield number, params["body_jaxpr"], given
                return
            carry, number = [(value, ()) for value in results], number + 1


def _bind(eqn, values):
    results = eqn.primitive.bind(*values, **eqn.params)
    return results if eqn.primitive.multiple_results else [results]


def _jitted(closed):
    return jax.jit(jaxpr_as_fun(closed))


def _kept(value, events):
    return value, events if is_bad(value) else ()


def _is_of(kind, value):
    return jnp.issubdtype(value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype, kind)


def place_of(eqn, outer: Place) -> Place:
    """Return the position of an equation in a jaxpr that stands at `outer`."""
    inner = str(eqn.source_info.name_stack)
    stack = "/".join(part for part in (outer.stack, inner) if part)
    return Place(stack, _source(eqn) or outer.source, outer.steps)


def _source(eqn):
    """Return the innermost frame outside of libraries as text; the body of a jitted library function has none."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        if not any(part in frame.file_name.replace("\\", "/") for part in LIBRARIES):
            return f"{frame.file_name}:{frame.line_num} in {frame.function_name.rpartition(chr(46))[2]}"
    return ""


def _sources(name, out, operands):
    """Return the events of operands that have bad elements where the result has; of any, if not element by element."""
    wrong = ~np.isfinite(out)
    if name == "select_n":
        which, *cases = operands
        chosen = np.asarray(which[0]).astype(int)
        used = [((chosen == i) & ~np.isfinite(np.asarray(v)) & wrong).any() for i, (v, _) in enumerate(cases)]
        found = [events for (_, events), use in zip(cases, used, strict=True) if use]
    elif name in ELEMENTWISE:
        found = [events for value, events in operands if events and (~np.isfinite(np.asarray(value)) & wrong).any()]
    else:
        found = [events for _, events in operands]
    return tuple(dict.fromkeys(event for events in found for event in events))


def _event(name, out, arrays, place, number):
    """Return the event of an equation, without its sources. arrays: its operands that are numbers."""
    wrong = ~np.isfinite(out)
    finite = [np.isfinite(a) if jnp.issubdtype(a.dtype, jnp.inexact) else np.ones(a.shape, bool) for a in arrays]
    values = name in ELEMENTWISE
    if values:
        all_finite = np.logical_and.reduce([np.broadcast_to(f, out.shape) for f in finite])
        no_nan = np.logical_and.reduce([np.broadcast_to(~np.isnan(_inexact(a)), out.shape) for a in arrays])
        made, nan = wrong & all_finite, np.isnan(out) & no_nan & ~all_finite
    else:
        clean = all(f.all() for f in finite) and name != "select_n"
        no_nan = not any(np.isnan(_inexact(a)).any() for a in arrays)
        made, nan = wrong & clean, np.isnan(out) & (no_nan and not clean)
    chosen = made if made.any() else nan if nan.any() else wrong
    index = tuple(int(i) for i in np.argwhere(chosen)[0])
    operands = tuple(_operand(a, np.broadcast_to(a, out.shape)[index] if values else None) for a in arrays)
    made, nan = bool(made.any()), bool(nan.any())
    return Event("equation", name, number, _number(out[index]), index, str(out.dtype), place, operands, made, nan)


def _inexact(array):
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(np.float32)


def _operand(array, element):
    real = np.abs(array) if np.iscomplexobj(array) else _inexact(array)
    finite = real[np.isfinite(real)]
    low, high = (_number(finite.min()), _number(finite.max())) if finite.size else (np.nan, np.nan)
    return Operand(array.shape, str(array.dtype), low, high, None if element is None else _number(element))


def _number(value):
    return float(np.abs(value) if np.iscomplexobj(value) else value)


def origin_of(search: Search, results: Sequence[Pair]) -> Event | None:
    """Return the event from which the bad elements of results come; None if all of them are finite.

    An event of the forward pass comes before one of the backward pass, whose factors are computed in the forward pass.
    """
    reached, ahead = set(), [event for value, events in results if is_bad(value) for event in events]
    while ahead:
        event = ahead.pop()
        if event not in reached:
            reached.add(event)
            ahead += event.sources
    ends = [event for value, events in results if is_bad(value) for event in events]
    for chosen in ("creates", "makes_nan", "kind"):  # every event has a kind
        found = [_first_computed(search, event) for event in reached if getattr(event, chosen)]
        if found:
            return min(found, key=lambda event: (PASSES.index(direction_of(search, event, ends)), event.number))
    return None


def direction_of(search: Search, event: Event, ends: Sequence[Event]) -> str:
    """Return the pass in which an event is, one of PASSES. ends: the events of the bad results."""
    if event.kind != "equation":
        return ""
    if event.place.transposed or not _is_forward(event, ends):
        return "backward"
    after = search.first_transposed is not None and event.number > search.first_transposed
    return "update" if after and "jvp(" not in event.place.stack else "forward"


def _first_computed(search, event):
    """Return the same equation's event in the forward pass, for one that the backward pass has computed again."""
    if not event.place.recomputed:
        return event

    def same(other):
        places = [(e.place.layer, e.place.source, e.place.steps) for e in (event, other)]
        return other.name == event.name and other.creates and places[0] == places[1] and not other.place.recomputed

    return next((other for other in search.events if same(other)), event)


def _is_forward(event, ends):
    """Return whether an event's array is a part of the forward pass, and not only of derivatives.

    Differentiation adds equations to the forward pass whose results only the backward pass reads. So an array belongs
    to the forward pass if links lead from it to a result, or to an array that nothing reads, outside of the backward
    pass.
    """
    seen, ahead = set(), [event]
    while ahead:
        one = ahead.pop()
        if one in seen or one.place.transposed:
            continue
        seen.add(one)
        if one in ends or not one.consumers:
            return True
        ahead += one.consumers
    return False
