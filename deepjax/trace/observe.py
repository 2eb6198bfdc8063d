"""Measure numbers at every layer in one forward pass: per unit inside scans, per call where parameters are shared."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from deepjax.functional.arrays import at_least_float32
from deepjax.trace.layers import output_of, run_model
from deepjax.trace.notes import HostNotes, has_notes, put_notes, take_notes


def observer(model, layers, measure, call, *, shared: Collection[tuple[str, ...]] = ()) -> Callable[..., dict]:
    """Return a compiled function (variables, key, x) -> {layer's path: {name: array}}, on the host.

    The pass is forward only, so a stack with remat "sqrt" or "reversible" stores nothing for it. A layer that is called
    several times is measured at its first call. An array has the kernel's number of axes, all of size 1 but for the
    axes of a scan's units. Layers in `shared` have one value for each call instead: arrays [calls].

    Args:
      model: any Linen model.
      layers: those to measure, from `find_layers`.
      measure: function (layer, output, args, module) -> {name: scalar}, where args are the positional arguments of the
        call.
      call: dictionary of the model's keyword arguments.
      shared: paths of the layers that `find_shared` returns.

    >>> import flax.linen as nn
    >>> from deepjax.trace import find_layers
    >>> model, key, x = nn.Dense(3, name="head"), jax.random.key(0), jnp.ones((2, 4))
    >>> layers = find_layers(model, key, x, {})
    >>> largest = observer(model, layers, lambda layer, y, *_: {"largest": jnp.abs(y).max()}, {})
    >>> notes = largest(model.init(key, x), key, x)
    >>> notes[layers[0].path]["largest"].shape
    (1, 1)
    """
    by_path, host = {layer.path: layer for layer in layers}, HostNotes()

    def rule(module, run, args, kwargs):
        result = run(*args, **kwargs)
        layer = by_path.get(module.path)
        if layer is None or has_notes(module):
            return result
        values = measure(layer, output_of(module, args, result), args, module)
        if layer.path in shared:
            return host.put(layer.path, result, values)
        put_notes(module, len(layer.shape), **values)
        return result

    def run(variables, key, x):
        outputs, variables = run_model(rule, model, variables, key, x, call)
        return take_notes(variables)[1], arrays_of(outputs) if shared else []

    run = jit_once(run)

    def observe(variables, key, x):
        notes, outputs = run(variables, key, x)
        return jax.device_get(notes) | host.take([by_path[path] for path in shared], outputs)

    return observe


def arrays_of(outputs) -> list[Any]:
    """Return the arrays among a model's outputs: what a jitted function can return."""
    return [leaf for leaf in jax.tree.leaves(outputs) if hasattr(leaf, "dtype")]


def variance(y):
    """Return the variance of all numbers in y together, in at least float32."""
    return jnp.var(at_least_float32(y))


def mean_square(x):
    """Return the mean square of all numbers in x together, in at least float32."""
    return jnp.mean(jnp.square(at_least_float32(x)))


def jit_once(function: Callable):
    """Jit a function that runs only a few times.

    On CPU it is compiled without optimization: random numbers and decompositions compile slowly there.
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)
