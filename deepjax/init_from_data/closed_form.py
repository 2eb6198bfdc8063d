"""Initialize the last layer in closed form, and a layer of radial basis functions by clusters of its inputs."""

from typing import Any

import jax
import jax.numpy as jnp

from deepjax import layers, linear
from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32
from deepjax.init_from_data.calibrate import Change, Rules, calibrate, settable_layers
from deepjax.trace.layers import run_model
from deepjax.trace.observe import jit_once


def least_squares(model, key, x, numbers, *, ridge: Any = 0.0, variables=None, **call):
    """Initialize the last layer of a model so that the squared error of the model's outputs is the smallest.

    The other layers stay as the model initializes them. For a model of one layer this is linear regression in closed
    form; with a penalty it is ridge regression, whose penalty does not count the bias (see `linear.least_squares`).

    Args:
      model: any Linen model whose last layer is a dense one, which returns the outputs.
      key: PRNG key, for everything that `model.init` draws.
      x: the model's first argument, examples.
      numbers: what the outputs should be, [examples, outputs].
      ridge: penalty of the sum of squares of the last layer's kernel, at least 0.
      variables: the model's variables, which determine the other layers. None: `model.init`'s.
      **call: the model's keyword arguments, such as train=True.

    Returns:
      The model's variables, with the structure of `model.init`'s.

    Raises:
      InputError: the last layer is no dense one, or has another number of outputs.

    >>> import flax.linen as nn, jax
    >>> x = jnp.array([[0.0], [1.0], [2.0]])
    >>> y = nn.Dense(1).apply(least_squares(nn.Dense(1), jax.random.key(0), x, 1 + 2 * x), jnp.array([[5.0]]))
    >>> print(f"{y.item():.3f}")
    11.000
    """
    last, outputs = settable_layers(model, key, x, call)[-1], numbers.shape[-1]
    if len(last.shape) != 2 or not last.affine or last.shape[1] != outputs:
        raise InputError(
            f"layer {last.name}: init least_squares needs a dense layer of {outputs} outputs at the end; its kernel "
            f"has shape {last.shape}"
        )

    def draw(layer, module, inputs):
        """Return the best kernel. With a bias, that of inputs and numbers without their means."""
        inputs, wanted = at_least_float32(inputs), jnp.asarray(numbers)
        if "bias" in module.variables["params"]:
            inputs, wanted = (each - each.mean(0, keepdims=True) for each in (inputs, wanted))
        return linear.least_squares(inputs, wanted, ridge=ridge).astype(layer.dtype)

    def change(layer, z, bias):
        return Change(bias=None if bias is None else (numbers - z).mean(0))

    @jit_once
    def run(key, x, variables):
        variables = model.init(key, x, **call) if variables is None else variables
        return calibrate(model, variables, key, x, call, [last], Rules(change, draw))[0]

    return run(key, x, variables)


def rbf(model, key, x, numbers, *, ridge: Any = 0.0, **call):
    """Initialize a network of radial basis functions in the first two phases of Schwenker, Kestler & Palm 2001.

    The first phase sets the centers of each `layers.RadialBasis` to the `linear.kmeans` of its inputs, from
    k-means++, and the widths by `linear.nearest_widths`. The second is `least_squares`.

    Arguments, result and errors are those of `least_squares`. In addition:

    Raises:
      InputError: the model has no `RadialBasis`, there are fewer examples than units, or all centers are equal.
    """
    placed = []

    def place(module, run, args, kwargs):
        if isinstance(module, layers.RadialBasis):
            centers, _ = linear.kmeans(module.make_rng("params"), at_least_float32(args[0]), module.units)
            module.put_variable("params", "centers", centers)
            module.put_variable("params", "widths", linear.nearest_widths(centers))
            placed.append(module.path)
        return run(*args, **kwargs)

    @jit_once
    def run(key, x):
        return run_model(place, model, model.init(key, x, **call), key, x, call)[1]

    variables = run(key, x)
    if not placed:
        raise InputError(f"{type(model).__name__} has no layer of radial basis functions; set model rbf")
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(variables["params"])):
        raise InputError("init rbf: all centers are equal, so they have no widths; use more units or other examples")
    return least_squares(model, key, x, numbers, ridge=ridge, variables=variables, **call)
