"""Layer-sequential unit variance: Mishkin & Matas 2016, "All you need is a good init" (arXiv 1511.06422)."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32, per_feature
from deepjax.init_from_data.calibrate import (
    Change,
    Rules,
    calibrate,
    check_outputs,
    settable_layers,
    squeezed,
    variation,
)
from deepjax.trace import find_layers, find_shared, observer
from deepjax.trace.layers import output_of
from deepjax.trace.notes import HostNotes
from deepjax.trace.observe import arrays_of, jit_once, mean_square
from deepjax.trace.observe import variance as variance_of


def lsuv(model, key, x, *, tolerance=0.1, max_iterations=10, variance=1.0, report=None, **call):
    """Initialize any Linen model so that the output of every layer has the same variance, 1 by default.

    Every kernel starts orthonormal (Saxe et al. 2014): its matrix [fan_in, features], of a grouped convolution one
    matrix per group. Then it is divided by the standard deviation of the layer's output on x, layer after layer, in one
    forward pass. Biases keep the model's initial values. The variance is over all numbers of an output together.

    A layer that is called several times is set at its first call. If all steps of a scan or all lanes of a vmap share
    a layer's parameters, the variance is over all calls together, and the kernel is scaled in steps, with one forward
    pass for each. A user-defined layer with an activation inside is scaled `max_iterations` times within its call.

    Args:
      model: any Linen model. Its layers are the modules that own a `kernel`, also inside `nn.scan`, `nn.remat` and
        `nn.vmap`.
      key: PRNG key, for the kernels and for everything else that `model.init` draws.
      x: the model's first argument, a batch of examples.
      tolerance: largest relative difference from `variance` for layers whose kernels are scaled in steps.
      max_iterations: largest number of steps for each of these layers.
      variance: target variance of every layer's output.
      report: function called with {layer's path: variance reached}. The value is an array [units] inside a scan.
      **call: the model's keyword arguments, such as train=True.

    Returns:
      The model's variables, with the structure of `model.init`'s.

    Raises:
      InputError: the model has no layer with a kernel, or a layer's output is constant or not finite, or cannot be
        observed. The layer is named.

    >>> import flax.linen as nn, jax
    >>> x = jax.random.normal(jax.random.key(0), (64, 10))
    >>> model = nn.Sequential([nn.Dense(20), nn.relu, nn.Dense(30)])
    >>> y = model.apply(lsuv(model, jax.random.key(1), x), x)
    >>> print(f"{y.var():.3f}")
    1.000
    """
    if not (0 < tolerance < math.inf and 0 < variance < math.inf) or max_iterations < 1:
        raise InputError(
            f"lsuv: tolerance {tolerance} and variance {variance} must be above 0, max_iterations {max_iterations} at "
            f"least 1"
        )
    layers = settable_layers(model, key, x, call)
    paths = find_shared(model, key, x, call, layers)
    shared = [layer for layer in layers if layer.path in paths]
    run = _compiled_pass(
        model, call, layers, shared, Rules(partial(to_variance, variance), orthonormal, max_iterations)
    )
    searches = {layer.path: Search() for layer in shared}
    for _ in range(max_iterations * len(shared) + 1):
        variables, notes = run(key, x, {path: search.scale for path, search in searches.items()})
        for layer in layers:
            check_outputs(layer, notes)
        ratios = {path: float(notes[path]["variance"]) / variance for path in searches}
        first = next((path for path, ratio in ratios.items() if not abs(ratio - 1) <= tolerance), None)
        if first is None:
            break
        searches[first] = searches[first].after(ratios[first])
    if report is not None:
        report({layer.name: squeezed(notes[layer.path]["variance"]) for layer in layers})
    return variables


def output_variances(model, variables, x, *, key=None, **call):
    """Return {layer's path: variance of its first output}, an array [units] inside a scan.

    Args:
      model, x, **call: as for `lsuv`.
      variables: variables of the model.
      key: PRNG key, for what the model draws, such as dropout; None for key 0.
    """
    key = jax.random.key(0) if key is None else key
    layers = find_layers(model, key, x, call)
    shared = find_shared(model, key, x, call, layers)
    notes = pooled(observer(model, layers, measure_output, call, shared=shared)(variables, key, x), shared)
    return {layer.name: squeezed(notes[layer.path]["variance"]) for layer in layers}


def measure_output(layer, y, args, module):
    """Return what `pooled`, `check_outputs` and `auto` need of a layer's output: a rule of `trace.observer`."""
    y = at_least_float32(y)
    bias = module.variables["params"].get("bias")
    z = y if bias is None or not layer.affine else y - per_feature(bias, y.ndim)
    size = mean_square(args[0]) if args and hasattr(args[0], "dtype") else jnp.ones(())
    return {"mean": y.mean(), "variance": variance_of(y), "variation": variation(layer, z), "input": size}


def pooled(notes, shared):
    """Return notes in which a shared layer has one number for all calls together."""

    def pool(note):
        reached = note["variance"].astype(np.float64).mean() + note["mean"].astype(np.float64).var()
        return {"variance": reached, "variation": note["variation"].max(), "input": note["input"].mean()}

    return notes | {path: pool(notes[path]) for path in shared}


def orthonormal(layer, module, _):
    """Draw a kernel whose matrix [fan_in, features], of each group, has orthonormal rows or columns."""
    keys = jax.random.split(module.make_rng("params"), layer.groups)
    draw = jax.nn.initializers.orthogonal()
    matrices = jax.vmap(lambda key: draw(key, (layer.fan_in, layer.features // layer.groups)))(keys)
    return layer.to_kernel(jnp.moveaxis(matrices, 0, 1))


def to_variance(target, layer, z, bias):
    """Return the Change after which scale * z + bias has the variance `target`."""
    v, shift = variance_of(z), 0.0
    rest = target
    if bias is not None and layer.affine:
        b = per_feature(bias.astype(z.dtype), z.ndim)
        b = b - b.mean()
        shift, rest = jnp.mean((z - z.mean()) * b), target - jnp.mean(b**2)
    # v s^2 + 2 shift s = rest. If the bias alone varies by more than the target, s is NaN, and `check_outputs` raises.
    scale = (jnp.sqrt(shift**2 + v * rest) - shift) / v
    return Change(scale, notes={"variation": variation(layer, z)})


class Search(NamedTuple):
    """Search for the scale of a kernel at which a variance reaches its target, by secants in logarithms.

    The first step takes the variance to be proportional to scale^2. In a recurrent cell the layer is its own input, so
    the power is larger; the later steps take the power between the last two measurements.
    """

    scale: float = 1.0
    step: float = 0.0  # of log(scale), the last one
    log_ratio: float = 0.0  # log(variance / target) before that step

    def after(self, ratio):
        """Return the search after measuring variance / target at `scale`."""
        log_ratio = float(np.log(ratio))
        power = float(np.clip((log_ratio - self.log_ratio) / self.step, 2.0, 100.0)) if self.step else 2.0
        step = -log_ratio / power
        return Search(self.scale * math.exp(step), step, log_ratio)


def _compiled_pass(model, call, layers, shared, rules):
    """Return a function (key, x, {path: scale of a shared layer's kernel}) -> (variables, notes on the host)."""
    host, paths = HostNotes(), {layer.path for layer in shared}

    def init(key, x, scales):
        def observe(layer, module, run, args):
            if not module.has_variable("params", "kernel"):
                kernel = orthonormal(layer, module, None) * scales[layer.path]
                module.put_variable("params", "kernel", kernel.astype(layer.dtype))
            result = run()
            return host.put(layer.path, result, measure_output(layer, output_of(module, args, result), args, module))

        rules_of_all = rules._replace(shared=dict.fromkeys(paths, observe))
        variables, notes, outputs = calibrate(model, None, key, x, call, layers, rules_of_all)
        return variables, notes, arrays_of(outputs) if paths else []

    compiled = jit_once(init)

    def run(key, x, scales):
        variables, notes, outputs = compiled(key, x, scales)
        return variables, pooled(jax.device_get(notes) | host.take(shared, outputs), paths)

    return run
