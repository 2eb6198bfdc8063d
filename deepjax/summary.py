"""The layers of any Linen model: output shapes and parameters, without computing anything."""

import inspect
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from deepjax.errors import InputError


class Layer(NamedTuple):
    """One row of the table: a module that owns parameters, or that calls no other module."""

    path: str  # "stage1_rest/unit/branch/conv1"
    kind: str  # the class's name
    output: tuple[int, ...]  # shape of one example's output (of the last array, where there are several)
    repeats: int  # how often a scan runs it
    parameters: int  # over all repeats


def summarize(model, input_shape, **call):
    """The layers of a model, in the order in which they are first called.

    Args:
      model: any Linen module whose first argument is a batch of examples.
      input_shape: of one example, such as (32, 32, 3).
      **call: further arguments of the model; a model that takes `train` gets `train=False` unless told otherwise.

    Returns:
      list of `Layer`. The model's parameters are the sum of theirs.

    Raises:
      InputError: an axis below 1, or an input that the model does not take.
    """
    if min(input_shape, default=1) < 1:
        raise InputError(f"input {','.join(map(str, input_shape))}: every axis must be at least 1")
    if "train" in inspect.signature(type(model).__call__).parameters:
        call.setdefault("train", False)
    calls = {}  # path -> (kind, output shape, parameters that the module itself owns, once)

    def note(next_method, args, kwargs, context):
        module = context.module
        first = context.method_name == "__call__" and module.path not in calls
        if first:
            calls[module.path] = None  # a call ends after those that it makes: this keeps their order
        output = next_method(*args, **kwargs)
        if first:
            shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(output) if hasattr(leaf, "shape")]
            own = [leaf for leaf in module.variables.get("params", {}).values() if hasattr(leaf, "size")]
            size = sum(leaf.size for leaf in own)
            calls[module.path] = (type(module).__name__, shapes[-1] if shapes else (), size)
        return output

    def init():
        with nn.intercept_methods(note):
            return model.init(jax.random.key(0), jnp.zeros((1, *input_shape)), **call)

    try:
        variables = jax.eval_shape(init)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"the model does not take an input of shape {tuple(input_shape)}: {reason}") from error
    return _table(calls, variables.get("params", {}))


def _table(calls, params):
    totals = {}  # path -> parameters that the module itself owns, over all repeats
    leaves: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(params)
    for path, leaf in leaves.items():
        totals[path[:-1]] = totals.get(path[:-1], 0) + leaf.size
    callers = {path[:i] for path in calls for i in range(len(path))}
    repeats = {path: totals[path] // own for path, (_, _, own) in calls.items() if own}
    return [
        Layer("/".join(path), kind, tuple(output), _repeats(path, repeats), totals.get(path, 0))
        for path, (kind, output, own) in calls.items()
        if own or path not in callers
    ]


def _repeats(path, known):
    """Repeats of a module; without parameters of its own, those of the modules that stand nearest to it."""
    if path in known:
        return known[path]
    for length in range(len(path) - 1, -1, -1):
        if near := [count for other, count in known.items() if other[:length] == path[:length]]:
            return min(near)
    return 1
