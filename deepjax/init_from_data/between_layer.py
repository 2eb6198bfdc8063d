"""Between-layer normalization: all layers learn at the same rate.

Kraehenbuehl, Doersch, Donahue & Darrell 2016, "Data-dependent initializations of convolutional neural networks" (arXiv
1511.06856), section 3.2 and algorithm 2.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax.errors import InputError
from deepjax.init_from_data.calibrate import Change, Rules, calibrate, scaled, squeezed
from deepjax.init_from_data.gradients import squared_gradients, squared_norm
from deepjax.init_from_data.within_layer import unshared_layers, within_layer
from deepjax.trace.observe import jit_once


def between_layer(model, key, x, *, variables=None, iterations=10, damping=0.5, tolerance=0.05, report=None, **call):
    """Initialize a model so that gradient descent changes every layer at the same relative rate.

    The rate C of a layer is the norm of its kernel's gradient divided by the norm of its kernel. The gradient is that
    of a random linear function of the outputs; C^2 is a mean over examples and functions. Each iteration multiplies
    every kernel by (C / geometric mean of all C) ** (damping / 2). In a chain of layers with a homogeneous activation,
    such as ReLU, this divides the layer's rate by (C / mean) ** damping. The outputs stay the same, because the product
    of the factors is 1 and each bias is scaled like the output that it is added to. Every unit of a scan counts as a
    layer. In other networks (with normalization, or with activations whose shape depends on the scale) the rates come
    closer to each other but may not become equal.

    Args:
      model, key, x: as for `within_layer`.
      variables: to start from; None for those of `within_layer`, as in the paper.
      iterations: largest number of iterations.
      damping: in (0, 1]; 1 for full steps. The paper calls it alpha.
      tolerance: iterations stop when every rate is within this fraction of the mean.
      report: function called with {layer's path: rate / geometric mean of all rates}. The value is an array [units]
        inside a scan.
      **call: the model's keyword arguments, such as train=True.

    Returns:
      The model's variables, with the structure of `model.init`'s.

    Raises:
      InputError: as for `within_layer`; a layer's gradient is zero or not finite (the layer is named); an argument is
        out of range.

    >>> import flax.linen as nn, jax
    >>> x = jax.random.normal(jax.random.key(0), (64, 10))
    >>> model, rates = nn.Sequential([nn.Dense(50), nn.relu, nn.Dense(5)]), {}
    >>> variables = between_layer(model, jax.random.key(1), x, report=rates.update)
    >>> print([round(float(rate)) for rate in rates.values()])
    [1, 1]
    """
    if not 0 < damping <= 1 or not tolerance > 0 or iterations < 1:
        raise InputError(
            f"between_layer: damping {damping} must be in (0, 1], tolerance {tolerance} above 0, iterations "
            f"{iterations} at least 1"
        )
    layers = unshared_layers(model, key, x, call)
    if variables is None:
        variables = within_layer(model, key, x, **call)

    def start(variables, key, x):
        return calibrate(model, variables, key, x, call, layers, Rules(_unchanged))[:2]

    def rescale(variables, scales, key, x):
        return calibrate(model, scaled(variables, scales), key, x, call, layers, Rules(_bias_times_deviation))[:2]

    measure = jit_once(lambda variables, key, x: _squared_rates(model, variables, key, x, call, layers))
    rescale = jit_once(rescale)
    variables, notes = jit_once(start)(variables, key, x)
    rates = _relative(layers, measure(variables, key, x))
    for _ in range(iterations):
        if all(np.all(np.abs(rate - 1) <= tolerance) for rate in rates.values()):
            break
        scales = {path: rate ** (damping / 2) for path, rate in rates.items()}
        variables, notes = rescale(_bias_per_deviation(variables, notes, layers), scales, key, x)
        rates = _relative(layers, measure(variables, key, x))
    if report is not None:
        report({layer.name: squeezed(rates[layer.path]) for layer in layers})
    return variables


def _unchanged(layer, z, bias):
    return Change(notes={"deviation": jnp.std(z)})


def _bias_times_deviation(layer, z, bias):
    deviation = jnp.std(z)
    return Change(bias=None if bias is None else bias * deviation, notes={"deviation": deviation})


def _squared_rates(model, variables, key, x, call, layers):
    """Return {path: mean squared gradient / squared kernel}, of the kernel's rank, one value for each unit."""
    params: Any = flatten_dict(variables["params"])
    total = squared_gradients(model, variables, key, x, call, layers)
    return {layer.path: total[layer.path] / squared_norm(params[*layer.path, "kernel"], layer) for layer in layers}


def _relative(layers, squared):
    """Return rates divided by their geometric mean. Raise InputError for a gradient that is zero or not finite."""
    squared = jax.device_get(squared)
    for layer in layers:
        if not np.all(np.isfinite(squared[layer.path]) & (squared[layer.path] > 0)):
            raise InputError(
                f"layer {layer.name}: its gradient is zero or not finite, so its rate is undefined; check x, and the "
                f"layers after it"
            )
    mean = np.mean(np.concatenate([np.log(value).ravel() for value in squared.values()]))
    return {path: np.exp((np.log(value) - mean) / 2) for path, value in squared.items()}


def _bias_per_deviation(variables, notes, layers):
    """Return variables with each bias divided by the standard deviation of the output that it was added to."""
    params: Any = flatten_dict(variables["params"])
    for layer in layers:
        if (bias := params.get((*layer.path, "bias"))) is not None:
            deviation = notes[layer.path]["deviation"]
            units = deviation.shape[: deviation.ndim - len(layer.shape)]
            params[*layer.path, "bias"] = bias / deviation.reshape(units + (1,) * (bias.ndim - len(units)))
    return {**variables, "params": unflatten_dict(params)}
