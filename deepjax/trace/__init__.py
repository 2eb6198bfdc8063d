"""Observe any Linen model: its module calls, its layers, its jaxpr, its batch norms, the arguments it takes."""

from deepjax.trace.arguments import accepts, call_arguments, input_errors
from deepjax.trace.batch_norm import frozen_batch_norms, is_batch_norm, normalizes_by_batch, observed_batch_moments
from deepjax.trace.calls import around_calls, around_methods
from deepjax.trace.jaxpr import TOP, Interpreter, Mark, Where, call_jaxpr, marks, read_mark
from deepjax.trace.layers import Layer, find_layers, find_shared
from deepjax.trace.observe import observer
from deepjax.trace.replace import call_name, evaluate, replaced_calls

__all__ = [
    "TOP",
    "Interpreter",
    "Layer",
    "Mark",
    "Where",
    "accepts",
    "around_calls",
    "around_methods",
    "call_arguments",
    "call_jaxpr",
    "call_name",
    "evaluate",
    "find_layers",
    "find_shared",
    "frozen_batch_norms",
    "input_errors",
    "is_batch_norm",
    "marks",
    "normalizes_by_batch",
    "observed_batch_moments",
    "observer",
    "read_mark",
    "replaced_calls",
]
