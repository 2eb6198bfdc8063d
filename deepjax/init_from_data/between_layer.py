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
from deepjax.init_from_data import walk
from deepjax.init_from_data.measure import squared_gradients, squared_norm
from deepjax.init_from_data.walk import Change
from deepjax.init_from_data.within_layer import find_unshared, within_layer


def between_layer(model, key, x, *, variables=None, iterations=10, damping=0.5, tolerance=0.05, report=None, **call):
    """Variables in which every layer changes at the same relative rate under gradient descent.

    A layer's rate C is the norm of its kernel's gradient over the norm of its kernel; the gradient is that of a random
    linear function of the outputs, and C^2 its mean over examples and functions. Each iteration multiplies every kernel
    by (C / geometric mean of all C) ** (damping / 2), which for a chain of layers with a homogeneous activation divides
    its rate by (C / mean) ** damping, and leaves the outputs as they are, as these factors' product is one. Biases are
    scaled like what they are added to. Every unit of a scan counts as a layer. In other networks (with
    normalization, or activations that bend otherwise at another scale) rates come closer, and need not become equal.

    Args:
      model, key, x: as for `within_layer`.
      variables: to begin with; None: those of `within_layer`, as in the paper.
      iterations: at most this many.
      damping: in (0, 1]; 1 for whole steps. (The paper's alpha.)
      tolerance: stop when every rate is within this fraction of the mean.
      report: called with {layer's path: rate}, an array inside a scan; rates are relative to their geometric mean.
      **call: the model's other arguments, such as train=True.

    Returns:
      The variables.

    Raises:
      InputError: what `within_layer` refuses, a layer without gradient, which is named, or arguments out of range.

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
    found = find_unshared(model, key, x, call)
    if variables is None:
        variables = within_layer(model, key, x, **call)

    def spreads(layer, z, bias):
        return Change(notes={"spread": jnp.std(z)})

    def biased_alike(layer, z, bias):
        spread = jnp.std(z)
        return Change(bias=None if bias is None else bias * spread, notes={"spread": spread})

    def begin(variables, key, x):
        return walk.settle(model, variables, key, x, call, found, spreads)

    def change(variables, scales, key, x):
        return walk.settle(model, walk.scaled(variables, scales), key, x, call, found, biased_alike)

    measure = walk.compiled(lambda variables, key, x: _squared_rates(model, variables, key, x, call, found))
    change = walk.compiled(change)
    variables, notes = walk.compiled(begin)(variables, key, x)
    rates = _relative(found, measure(variables, key, x))
    for _ in range(iterations):
        if all(np.all(np.abs(rate - 1) <= tolerance) for rate in rates.values()):
            break
        scales = {path: rate ** (damping / 2) for path, rate in rates.items()}
        variables, notes = change(_with_bias_per_spread(variables, notes, found), scales, key, x)
        rates = _relative(found, measure(variables, key, x))
    if report is not None:
        report({layer.name: walk.squeezed(rates[layer.path]) for layer in found})
    return variables


def _squared_rates(model, variables, key, x, call, found):
    """{path: mean squared gradient over squared kernel, of the kernel's rank, the axes of units kept}."""
    params: Any = flatten_dict(variables["params"])
    total = squared_gradients(model, variables, key, x, call, found)
    return {layer.path: total[layer.path] / squared_norm(params[*layer.path, "kernel"], layer) for layer in found}


def _relative(found, squared):
    """Rates over their geometric mean. Raises InputError for a layer whose gradient is zero or not finite."""
    squared = jax.device_get(squared)
    for layer in found:
        if not np.all(np.isfinite(squared[layer.path]) & (squared[layer.path] > 0)):
            raise InputError(
                f"layer {layer.name}: its gradient is zero or not finite, so that it has no rate; check x and what "
                f"follows the layer"
            )
    mean = np.mean(np.concatenate([np.log(value).ravel() for value in squared.values()]))
    return {path: np.exp((np.log(value) - mean) / 2) for path, value in squared.items()}


def _with_bias_per_spread(variables, notes, found):
    """Variables with each bias divided by the standard deviation of what it was added to."""
    params: Any = flatten_dict(variables["params"])
    for layer in found:
        if (bias := params.get((*layer.path, "bias"))) is not None:
            spread = notes[layer.path]["spread"]
            units = spread.shape[: spread.ndim - len(layer.shape)]
            params[*layer.path, "bias"] = bias / spread.reshape(units + (1,) * (bias.ndim - len(units)))
    return {**variables, "params": unflatten_dict(params)}
