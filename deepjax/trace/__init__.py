"""Observe any Linen model: its module calls, its jaxpr, the arguments it takes."""

from deepjax.trace.arguments import accepts, call_arguments
from deepjax.trace.calls import around_calls

__all__ = ["accepts", "around_calls", "call_arguments"]
