"""Observe any Linen model: its module calls, its jaxpr, the arguments it takes."""

from deepjax.trace.arguments import accepts, call_arguments, input_errors
from deepjax.trace.calls import around_calls, around_methods
from deepjax.trace.jaxpr import TOP, Interpreter, Mark, Where, call_jaxpr, read_mark

__all__ = [
    "TOP",
    "Interpreter",
    "Mark",
    "Where",
    "accepts",
    "around_calls",
    "around_methods",
    "call_arguments",
    "call_jaxpr",
    "input_errors",
    "read_mark",
]
