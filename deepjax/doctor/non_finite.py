"""The hunt for NaN and infinity: which operation makes the first value that is not finite, where, and from what."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
from jax.extend.core import jaxprs_in_params

from deepjax.doctor.origins import SINGULAR, Event, Operand, Place, Search, direction_of, is_bad, origin_of, place_of
from deepjax.doctor.remedies import overflows, remedy_of
from deepjax.trace.calls import around_methods

ROWS = 10  # of an argument that are named


@dataclass(frozen=True)
class NonFinite:
    """The first value that is not finite, of those that spread to the results of a function."""

    kind: str
    """"equation", or "argument" or "constant" if such a value was there before the first equation."""
    primitive: str
    """Name of the operation in `jax.lax`, such as "log"; of an argument, its path, such as "params['kernel']"."""
    derivative_of: str
    """Name of the operation of the forward pass whose derivative it is, such as "sqrt"; "" if there is none."""
    layer: str | None
    """Path of the Linen module in whose call it is; "" for the model itself; None outside of all modules."""
    source: str
    """"file:line in function" of the line that made the operation; "" for an argument."""
    direction: str
    """"forward", "backward", "update" (after the backward pass), or "" for an argument."""
    steps: tuple[int, ...]
    """Steps of the loops around it (for a scan over units, the unit), counted from 0, the outermost first."""
    operands: tuple[Operand, ...]
    """What entered the operation."""
    result: float
    """The value: NaN, inf or -inf."""
    dtype: str
    """Type of the operation's result."""
    index: tuple[int, ...]
    """Index of that value in the operation's result."""
    rows: tuple[int, ...]
    """Indices of the bad entries of an argument along its first axis."""
    trap: bool
    """Whether a gradient of 0 met an infinite derivative, as behind a `where` that hides the bad elements."""
    remedy: str

    @property
    def overflow(self) -> bool:
        """Whether the operation is defined for what entered it, and its result is only too large for its type."""
        return self.kind == "equation" and not self.trap and not self.derivative_of and overflows(self)

    @property
    def what(self) -> str:
        """The operation and its layer in a few words."""
        if self.kind != "equation":
            where = f" ({self.source})" if self.source else ""
            return f"{self.primitive} holds {_shown(self.result)}{self._of_rows()}{where}"
        name = f"the derivative of {self.derivative_of}" if self.derivative_of else self.primitive
        where = f" in layer {self.layer}" if self.layer else "" if self.layer is None else " in the model"
        units = "".join(f", step {step} of its loop" for step in self.steps[-1:])
        return f"{name}{where}{units} ({self.direction}{f', {self.source}' if self.source else ''})"

    def _of_rows(self):
        if not self.rows:
            return ""
        more = f" and {len(self.rows) - ROWS} more" if len(self.rows) > ROWS else ""
        return f" in row{'s' * (len(self.rows) > 1)} {', '.join(map(str, self.rows[:ROWS]))}{more}"

    def __str__(self):
        lines = [f"first value that is not finite: {_shown(self.result)} at index {list(self.index)}"]
        lines += [f"  from       {self.what}"]
        if self.derivative_of:
            lines += [f"  computed   {self.primitive}, a part of that derivative"]
        lines += [f"  entered    {_described(operand)}" for operand in self.operands]
        return "\n".join([*lines, f"  remedy     {self.remedy}"])


def _shown(value):
    return "NaN" if value != value else f"{value:.6g}"


def _described(operand):
    value = "" if operand.value is None else f"{_shown(operand.value)}, "
    return f"{value}of {operand.dtype}{list(operand.shape)} in [{operand.low:.4g}, {operand.high:.4g}]"


def hunt(function: Callable, *arguments) -> NonFinite | None:
    """Find the first operation that makes a value that is not finite, of those that reach a function's results.

    The function is traced, and its operations are computed one by one, so this takes much longer than a call: some
    seconds for a training step. A loop is first computed in one piece, and only the step at which it fails is taken
    apart. Values that do not reach the results, such as those that a `where` removes, are not reported.

    Args:
      function: pure function of arrays, such as the gradient of a loss, or a training step. It may be jitted.
      *arguments: pytrees of arrays.

    Returns:
      The finding; None if all results are finite.

    >>> import jax.numpy as jnp
    >>> found = hunt(jax.grad(lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()), jnp.array([4.0, 0.0]))
    >>> found.derivative_of, found.direction, found.index, found.trap
    ('sqrt', 'backward', (1,), True)
    """
    device = jax.devices()[0]
    arguments = jax.tree.map(lambda a: jax.device_put(a, device), arguments)
    with around_methods(_scoped):
        closed = jax.make_jaxpr(function)(*arguments)
    search = Search()
    leaves, _ = jax.tree_util.tree_flatten_with_path(arguments)
    names = _argument_names(function)
    given = [search.given("argument", _named(path, names), leaf) for path, leaf in leaves]
    constants = [search.given("constant", "a constant", value) for value in closed.consts]
    results = search.run(closed.jaxpr, constants, given, Place())
    origin = origin_of(search, results)
    return None if origin is None else _finding(closed.jaxpr, search, results, origin)


def _scoped(module, method, run, args, kwargs):
    """A rule for `around_methods`: a named scope with the module's path around each of its methods."""
    if module.scope is None:  # a method of an unbound module
        return run(*args, **kwargs)
    with jax.named_scope(f"deepjax<{'/'.join(module.path)}>"):
        return run(*args, **kwargs)


def _argument_names(function):
    try:
        return [p.name for p in inspect.signature(function).parameters.values() if p.kind < p.VAR_POSITIONAL]
    except (TypeError, ValueError):  # a function without a signature
        return []


def _named(path, names):
    """Return the path of a leaf of the arguments, which begins with an argument's position, as text."""
    position = path[0].idx
    first = names[position] if position < len(names) else f"argument {position}"
    return first + jax.tree_util.keystr(path[1:])


def _finding(jaxpr, search, results, origin):
    direction = derivative = ""
    trap = False
    if origin.kind == "equation":
        ends = [event for value, events in results if is_bad(value) for event in events]
        direction = direction_of(search, origin, ends)
        derivative = _derivative_of(jaxpr, search, origin) if direction == "backward" else ""
        trap = direction == "backward" and _is_trap(origin)
    found = NonFinite(
        kind=origin.kind,
        primitive=origin.name,
        derivative_of=derivative,
        layer=origin.place.layer,
        source=origin.place.source,
        direction=direction,
        steps=origin.place.steps,
        operands=origin.operands,
        result=origin.result,
        dtype=origin.dtype,
        index=origin.index,
        rows=origin.rows,
        trap=trap,
        remedy="",
    )
    return replace(found, remedy=remedy_of(found))


def _is_trap(origin: Event):
    """Whether a gradient that is exactly 0 met an infinite derivative as soon as it arrived."""
    if origin.name == "div" and origin.place.transposed:  # the derivative of log(x) is gradient / x
        return [operand.value for operand in origin.operands] == [0, 0]
    derivatives, met = [origin], []
    for event in derivatives:  # which grows
        if event.place.transposed:
            met.append(event)
        else:
            derivatives += [one for one in event.consumers if one not in derivatives]
    return any(e.name == "mul" and e.makes_nan and 0 in [operand.value for operand in e.operands] for e in met)


def _derivative_of(jaxpr, search, origin) -> str:
    """Return the operation of the forward pass, on the same line, whose derivative an equation belongs to, or "".

    Where several can be meant, it is the last whose derivative was infinite for one of its operands.
    """

    at = (origin.place.source, origin.place.layer)
    before = [one for one in search.singular if one[0] < origin.number]
    met = [name for _, name, place in before if (place.source, place.layer) == at]
    if met:
        return met[-1]
    found = [name for name, place in _places(jaxpr, Place()) if (place.source, place.layer) == at]
    return next((name for name in reversed(found) if name not in ("div", origin.name)), "")


def _places(jaxpr, outer):
    """Yield (primitive, place) of all equations whose derivative can be infinite."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in SINGULAR:
            yield name, place_of(eqn, outer)
        for body in jaxprs_in_params(eqn.params):
            yield from _places(body, place_of(eqn, outer))
