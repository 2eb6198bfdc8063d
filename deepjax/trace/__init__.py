"""Observe any Linen model: its module calls, its jaxpr, the arguments it takes."""

from deepjax.trace.arguments import accepts, call_arguments
from deepjax.trace.batch_norm import batch_moments, frozen_batch_norms, is_batch_norm, normalizes_by_batch
from deepjax.trace.calls import around_calls

__all__ = [
    "accepts",
    "around_calls",
    "batch_moments",
    "call_arguments",
    "frozen_batch_norms",
    "is_batch_norm",
    "normalizes_by_batch",
]
