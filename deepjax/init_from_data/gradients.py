"""Mean squared gradients of a model's kernels, for random linear functions of its outputs."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32

DRAWS = 8  # random linear functions of the outputs that a gradient is averaged over


def squared_gradients(model, variables, key, x, call, layers, *, draws=DRAWS):
    """Return {layer's path: squared norm of its kernel's gradient}, averaged over examples and functions. Pure.

    The gradient is that of a random linear function of the model's outputs. Only collections of state, such as
    "batch_stats", are mutable, so every `remat` of the model stays in force.

    Args:
      model, variables, key, x, call: as for `trace.find_layers`, with the model's variables.
      layers: those whose gradients are returned.
      draws: number of random functions.

    Returns:
      Arrays with the kernel's number of axes, all of size 1 but for the axes of a scan's units.

    Raises:
      InputError: the model returns no array of floats.
    """
    state = [name for name in variables if name not in ("params", "intermediates", "perturbations")]

    def random_function(params, key):
        outputs, _ = model.apply({**variables, "params": params}, x, **call, rngs={"params": key}, mutable=state)
        leaves = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if not leaves:
            raise InputError(
                f"{type(model).__name__} returns no array of floats, so its layers have no gradient; return one, such "
                f"as the logits"
            )
        keys = jax.random.split(key, len(leaves))
        # The weights differ between examples, so the expected square of the summed gradient is the sum of the squares.
        return sum(
            (jax.random.normal(k, leaf.shape, leaf.dtype) * leaf).sum() for k, leaf in zip(keys, leaves, strict=True)
        )

    def squares(key):
        gradients: Any = flatten_dict(jax.grad(random_function)(variables["params"], key))
        return {layer.path: squared_norm(gradients[*layer.path, "kernel"], layer) for layer in layers}

    return jax.tree.map(lambda a: a.mean(0), jax.lax.map(squares, jax.random.split(key, draws)))


def squared_norm(kernel, layer):
    """Return the squared norm of a kernel, or of each unit's kernel; the kernel's own axes become 1."""
    axes = tuple(range(kernel.ndim - len(layer.shape), kernel.ndim))
    return jnp.square(at_least_float32(kernel)).sum(axes, keepdims=True)
