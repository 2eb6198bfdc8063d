"""Carry numbers out of module calls, also out of the bodies of `nn.scan`, `nn.remat` and `nn.vmap`.

A number is written as an additional parameter of the module, so every lifted transformation stacks it like the
module's own parameters. `take_notes` separates these notes from the parameters again.

Parameters that all steps of a scan (or all lanes of a vmap) share cannot hold a value that depends on the step.
`HostNotes` collects the numbers of such modules on the host, call by call.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import InputError

PREFIX = "deepjax_note_"  # begins the names of the parameters that are notes


def put_notes(module, rank, **values):
    """Write scalars as additional parameters of a module that is being called. The parameters must be mutable.

    Args:
      module: a bound Linen module.
      rank: number of axes of each note, all of size 1, so that a scan can stack along any axis.
      **values: scalars by name.
    """
    for name, value in values.items():
        module.put_variable("params", PREFIX + name, jnp.reshape(value, (1,) * rank))


def has_notes(module) -> bool:
    """Return whether this call, or an earlier call of the same module, has written notes."""
    return any(name.startswith(PREFIX) for name in module.variables.get("params", {}))


def take_notes(variables) -> tuple[dict, dict]:
    """Return (the variables without notes, {path of the module: {name: note}})."""
    params, notes = {}, {}
    leaves: Any = flatten_dict(variables["params"])
    for path, value in leaves.items():
        if path[-1].startswith(PREFIX):
            notes.setdefault(path[:-1], {})[path[-1].removeprefix(PREFIX)] = value
        else:
            params[path] = value
    return {**variables, "params": unflatten_dict(params)}, notes


class HostNotes:
    """Numbers of modules whose parameters are shared by a scan's steps or a vmap's lanes, one set for each call."""

    def __init__(self):
        self.calls: dict[tuple[str, ...], list[dict[str, np.ndarray]]] = {}

    def put(self, path, output, values):
        """Return `output` unchanged, made to depend on a callback that records the scalars `values`.

        The model's output must be a result of the jitted function; otherwise XLA removes the callback as dead code.
        """

        def record(values):
            self.calls.setdefault(path, []).append(jax.tree.map(np.asarray, values))
            return np.True_

        # Not jax.debug.callback: newer Flax takes its effect for a value that the steps of a scan share.
        done = jax.pure_callback(record, jax.ShapeDtypeStruct((), bool), values, vmap_method="sequential")
        return jax.tree.map(partial(_depend, done), output)

    def take(self, layers, results) -> dict[tuple[str, ...], dict[str, np.ndarray]]:
        """Return {path: {name: values [calls]}} of the layers, after `results` are computed, and forget them.

        Raises:
          InputError: a layer was not called, because the model's outputs do not depend on it.
        """
        jax.block_until_ready(results)
        calls, self.calls = self.calls, {}
        for layer in layers:
            if layer.path not in calls:
                raise InputError(
                    f"layer {layer.name}: the model's outputs do not depend on it, so it cannot be observed; return "
                    f"its output from the model, or remove the layer"
                )
        return {
            layer.path: {name: np.stack([call[name] for call in calls[layer.path]]) for name in calls[layer.path][0]}
            for layer in layers
        }


def _depend(done, leaf):
    return jnp.where(done, leaf, jnp.nan)
