"""Fields of frozen dataclasses: their ranges, and the one reader that checks values against types and ranges.

The command line, config files and recorded runs all pass through `check`.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeVar

from deepjax.errors import InputError, choices

T = TypeVar("T")


class Range(NamedTuple):
    """The numbers that a field allows. A bound that is None does not restrict."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, x):
        return not (
            (self.at_least is not None and x < self.at_least)
            or (self.above is not None and x <= self.above)
            or (self.at_most is not None and x > self.at_most)
            or (self.below is not None and x >= self.below)
        )

    def __str__(self):
        low, high = _first(self.at_least, self.above), _first(self.at_most, self.below)
        if low is not None and high is not None:
            return f"in {'[' if self.above is None else '('}{low}, {high}{']' if self.below is None else ')'}"
        if high is not None:
            return f"{'at most' if self.below is None else 'less than'} {high}"
        return f"{'at least' if self.above is None else 'greater than'} {low}"


def option(
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    free: bool = False,
    inline: bool = False,
) -> Any:
    """Return a dataclass field with a range. A string below the field documents it.

    Args:
      default: the field's default value. A dict is copied for each instance.
      at_least: smallest value of the number, or of each number in a tuple. above, at_most, below: the other bounds.
      free: whether the result of a run does not depend on the field, so that it may change when the run is resumed.
      inline: whether error messages name the fields of this field (a dataclass) without this field's name.
    """
    metadata = {"range": Range(at_least, above, at_most, below), "free": free, "inline": inline}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check(values: Any, prefix: str = "") -> None:
    """Check every field of a dataclass, and of the dataclasses in it, against its type and range.

    Args:
      values: an instance of a dataclass.
      prefix: text before the names of its fields in an error, such as "optimizer.".

    Raises:
      InputError: a value of the wrong type, out of its range, not finite, or not one of the field's choices.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Options:
    ...     rate: float = option(0.1, above=0)
    >>> check(Options(rate=-1.0), "optimizer.")
    Traceback (most recent call last):
    deepjax.errors.InputError: optimizer.rate -1.0 must be greater than 0
    """
    kinds = typing.get_type_hints(type(values))
    for field in dataclasses.fields(values):
        value, where = getattr(values, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(kinds[field.name]):
            if not isinstance(value, kinds[field.name]):
                raise InputError(f"{where} {value!r} must be of type {kinds[field.name].__name__}")
            check(value, prefix if field.metadata.get("inline") else f"{where}.")
            continue
        _check_type(where, value, kinds[field.name])
        limits = field.metadata.get("range", Range())
        if not all(number in limits for number in _numbers(value)):
            raise InputError(f"{where} {value!r} must be {limits}")


def from_dict(kind: type[T], values: Any, prefix: str = "") -> T:
    """Return the dataclass `kind` from what `dataclasses.asdict` gave, possibly by way of JSON.

    Missing fields have their defaults. Lists become tuples.

    Raise InputError for a field that `kind` does not have, for a missing one without a default, and as `check`.
    """
    made = _made(kind, values, prefix)
    check(made, prefix)
    return made


def _made(kind, values, prefix):
    if not isinstance(values, dict):
        raise InputError(f"{prefix.removesuffix('.') or kind.__name__} {values!r} must be an object with named fields")
    kinds, arguments = typing.get_type_hints(kind), {}
    for name, value in values.items():
        if name not in kinds:
            raise InputError(f"{prefix}{name} is not a field of {kind.__name__}; {choices(name, kinds)}")
        if dataclasses.is_dataclass(kinds[name]):
            value = _made(kinds[name], value, f"{prefix}{name}.")
        arguments[name] = _tuples(value)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{prefix}{field.name} is missing")
    return kind(**arguments)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer": {"name": "sgd"}} -> {"optimizer.name": "sgd"}."""
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def replaced(values: Any, path: str, value: Any) -> Any:
    """Return a dataclass with another value at a dotted path, which may lead into a dict.

    Raise InputError for a path to no field.

    >>> from deepjax.config import Config
    >>> replaced(Config(), "optimizer.learning_rate", 0.5).optimizer.learning_rate
    0.5
    """
    name, _, rest = path.partition(".")
    known = [field.name for field in dataclasses.fields(values)]
    if name not in known:
        raise InputError(f"{path} is not a field of {type(values).__name__}; {choices(name, known)}")
    inner = getattr(values, name)
    if rest and not (isinstance(inner, dict) or dataclasses.is_dataclass(inner)):
        raise InputError(f"{path} is not a field; {name} is a single value; leave out .{rest}")
    if rest:
        value = inner | {rest: value} if isinstance(inner, dict) else replaced(inner, rest, value)
    return dataclasses.replace(values, **{name: value})


def is_free(kind: type, path: str) -> bool:
    """Return whether the field at a dotted path of a dataclass is declared `free`.

    A path into a dict, such as "model_options.depth", is that of the dict.
    """
    name, _, rest = path.partition(".")
    field = next(field for field in dataclasses.fields(kind) if field.name == name)  # pyright: ignore[reportArgumentType]
    inner = typing.get_type_hints(kind)[name]
    return is_free(inner, rest) if dataclasses.is_dataclass(inner) else field.metadata.get("free", False)  # pyright: ignore[reportArgumentType]


def _check_type(where, value, kind):
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal and isinstance(value, str) and value not in arguments:
        raise InputError(f"{where} {value!r} is unknown; {choices(value, map(str, arguments))}")
    if origin is dict and isinstance(value, dict) and _fits(value, kind):
        for name, item in value.items():
            _check_type(f"{where}.{name}", item, arguments[1])
    elif not _fits(value, kind):
        raise InputError(f"{where} {value!r} must be {_described(kind)}")
    # An int may be too large for a float.
    elif not all(abs(number) <= sys.float_info.max for number in _numbers(value)):
        raise InputError(f"{where} {value!r:.40} must be finite")


def _fits(value, kind) -> bool:
    """Return whether a value has a type. An int counts as a float; a bool does not count as a number."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    if origin is dict:  # its values are checked one by one, each under its own name
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", types.NoneType: "unset (None)"}


def _described(kind) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, arguments))
    if origin is tuple:
        count = "any number of values" if arguments[-1] is ... else f"{len(arguments)} values"
        return f"a tuple of {count}, each {_described(arguments[0])}"
    if origin is dict:
        return "names with values"
    return WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _numbers(value) -> Iterator[int | float]:
    """Yield the numbers in a value: itself, or those of a tuple, or of tuples in it."""
    if isinstance(value, tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _first(one, other):
    return other if one is None else one
