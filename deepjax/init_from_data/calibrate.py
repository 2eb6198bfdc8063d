"""Set the kernels of every layer of a Linen model in one forward pass.

In Flax, a rule can intercept every module call, also in the traced body of a scan, and write parameters there. So each
layer gets its kernel from the output of the layers before it, which are already set. One pass is enough at any depth.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32, per_feature
from deepjax.trace import Layer, find_layers
from deepjax.trace.layers import output_of, run_model
from deepjax.trace.notes import has_notes, put_notes, take_notes
from deepjax.trace.observe import mean_square, variance

MIN_VARIATION = 1e-10  # below this, the variation of a float32 output may be rounding errors alone


class Change(NamedTuple):
    """How to change a layer whose first output has been computed."""

    scale: Any = 1.0  # factor of the kernel: a scalar, or shaped like the output features
    bias: Any = None  # the new bias; None: unchanged
    notes: Any = {}  # noqa: RUF012  scalars to return, by name


class Rules(NamedTuple):
    """What `calibrate` does at each layer."""

    change: Callable[..., Change]  # (layer, z, bias), where z is the output without its bias, in at least float32
    draw: Callable[..., Any] | None = None  # (layer, module, x) -> the initial kernel; None: the module's own kernel
    repeats: int = 1  # changes of a layer that is not affine: its output is not proportional to its kernel
    shared: dict[tuple[str, ...], Callable[..., Any]] = {}  # noqa: RUF012  path -> rule (layer, module, run, args)


def settable_layers(model, key, x, call) -> list[Layer]:
    """Return the layers of a model.

    Raises:
      InputError: the model has no layer, a layer's kernel is computed from other parameters, or a kernel is not that of
        a layer.
    """
    layers = find_layers(model, key, x, call)
    params: Any = flatten_dict(jax.eval_shape(lambda key, x: model.init(key, x, **call), key, x).get("params", {}))
    others = {path[:-1] for path in params if path[-1] == "kernel"} - {layer.path for layer in layers}
    for path in sorted(others):
        raise InputError(
            f"layer {'/'.join(path) or 'the model itself'}: its kernel has fewer than two axes, or is used outside of "
            f"the module's __call__, so its output cannot be observed; multiply by a matrix in __call__"
        )
    if not layers:
        raise InputError(f"{type(model).__name__} has no layer with a kernel; there is nothing to initialize from data")
    for layer in layers:
        if not layer.writable:
            raise InputError(
                f"layer {layer.name}: its kernel is computed from other parameters (as by nn.WeightNorm and "
                f"nn.SpectralNorm) and cannot be set; initialize the model without that wrapper"
            )
    return layers


def calibrate(model, variables, key, x, call, layers, rules: Rules):
    """Run the model once, and set each layer's kernel and bias as soon as the layer's input is known. Pure.

    Args:
      model, x, call: the model, its first argument and its keyword arguments.
      variables: to start from; None to start from `model.init`.
      key: PRNG key, for `init` and for whatever the model draws.
      layers: the layers to set.
      rules: what to do at each layer.

    Returns:
      (variables, {path: {name: note}}, outputs). Each layer has the notes "variance" (variance of its output), "input"
      (mean square of its input) and those of its `Change`. A note has the kernel's number of axes, all of size 1 but
      for the axes of a scan's units. Layers in `rules.shared` have no notes.
    """
    by_path = {layer.path: layer for layer in layers}
    apart = []  # not empty while a layer is called apart from its model

    def rule(module, run, args, kwargs):
        layer = by_path.get(module.path)
        if layer is None or apart or has_notes(module):
            return run(*args, **kwargs)
        if layer.path in rules.shared:
            return rules.shared[layer.path](layer, module, partial(run, *args, **kwargs), args)
        if rules.draw is not None:
            apart.append(layer)
            module.put_variable("params", "kernel", rules.draw(layer, module, *args[:1]))
            apart.pop()
        result = run(*args, **kwargs)
        # A subclass that calls its parent's __call__ has been set there.
        if has_notes(module):
            return result
        again = _repeatable(module, args, kwargs, apart)
        result, notes = _set(module, layer, rules, result, args, again)
        size = mean_square(args[0]) if args and hasattr(args[0], "dtype") else jnp.ones(())
        notes = {"variance": variance(output_of(module, args, result)), "input": size} | notes
        put_notes(module, len(layer.shape), **notes)
        return result

    outputs, variables = run_model(rule, model, variables, key, x, call)
    return *take_notes(variables), outputs


def _repeatable(module, args, kwargs, apart):
    """Return a function of kernel and bias that gives the result of a module's call.

    It calls a copy of the module: Flax does not allow a call to define its parameters twice.
    """

    def again(kernel, bias, key):
        variables = dict(module.variables)
        new = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
        variables["params"] = {**variables["params"], **new}
        apart.append(module)
        probe = module.clone(parent=None, name=None)
        result, _ = probe.apply(variables, *args, **kwargs, rngs={"params": key}, mutable=nn.DenyList("params"))
        apart.pop()
        return result

    return again


def _set(module, layer, rules, result, args, again):
    """Change the kernel and bias of a layer that has been called. Return (result with these, notes)."""
    params = module.variables["params"]
    kernel, bias = params["kernel"], params.get("bias")
    output = output_of(module, args, result)
    y = at_least_float32(output)
    z = y if bias is None or not layer.affine else y - per_feature(bias, y.ndim)
    change = rules.change(layer, z, bias)
    scale = jnp.asarray(change.scale)
    kernel = _scaled_kernel(layer, kernel, scale)
    if bias is not None and change.bias is not None:
        bias = jnp.broadcast_to(change.bias, bias.shape).astype(bias.dtype)
    if layer.affine and result is output:
        y = z * (per_feature(scale, z.ndim) if scale.ndim else scale)
        result = (y if bias is None else y + per_feature(bias, y.ndim)).astype(result.dtype)
    else:
        key = module.make_rng("params")

        def step(_, kernel):
            y = at_least_float32(output_of(module, args, again(kernel, bias, key)))
            return _scaled_kernel(layer, kernel, jnp.asarray(rules.change(layer, y, bias).scale))

        if not layer.affine:
            kernel = jax.lax.fori_loop(1, rules.repeats, step, kernel)
        result = again(kernel, bias, key)
    module.put_variable("params", "kernel", kernel)
    if change.bias is not None:
        module.put_variable("params", "bias", bias)
    return result, change.notes


def _scaled_kernel(layer, kernel, scale):
    return (kernel * (layer.per_feature(scale) if scale.ndim else scale)).astype(layer.dtype)


def variation(layer, z):
    """Return the largest variance over examples of any output feature, as a fraction of z's mean square."""
    rows = z.reshape(-1, math.prod(z.shape[z.ndim - len(layer.outputs) :]))
    if len(rows) == 1:
        return jnp.ones(())
    return jnp.max(jnp.var(rows, 0)) / jnp.maximum(jnp.mean(jnp.square(rows)), jnp.finfo(rows.dtype).tiny)


def check_outputs(layer, notes):
    """Check a layer's notes "variation" and "variance", on the host.

    Raises:
      InputError: the output of the layer (of one of its units) is not finite, or does not vary over the examples.
    """
    variations, variances = (np.ravel(notes[layer.path][name]) for name in ("variation", "variance"))
    for unit, (varying, value) in enumerate(zip(variations, variances, strict=True)):
        name = f"{layer.name}, unit {unit + 1} of {len(variances)}" if len(variances) > 1 else layer.name
        if varying <= MIN_VARIATION:
            raise InputError(
                f"layer {name}: its output has zero variance over the examples (it is dead, or its input is constant); "
                f"check x, and the activations and biases before it"
            )
        if not np.isfinite(varying + value):
            raise InputError(f"layer {name}: its output is not finite; check x, and the layers before it")


def scaled(variables, scales):
    """Return variables whose kernels are multiplied by {path: scale}, each of the kernel's rank."""
    params: Any = flatten_dict(variables["params"])
    for path, scale in scales.items():
        kernel = params[*path, "kernel"]
        params[*path, "kernel"] = (kernel * scale).astype(kernel.dtype)
    return {**variables, "params": unflatten_dict(params)}


def squeezed(note):
    """Return a note as a number, or as an array [units] inside a scan."""
    return float(note.item()) if note.size == 1 else np.ravel(note)
