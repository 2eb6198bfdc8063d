"""The signal through a model's layers, and the gradient back: what depth multiplies."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

FREE = nn.DenyList("intermediates")  # collections that a call may change
DRAWS = 8  # random linear functions of the outputs that a gradient is averaged over


def squared_gradients(model, variables, key, x, call, found, *, draws=DRAWS):
    """{layer's path: squared norm of its kernel's gradient}, of the kernel's rank, with the axes of units kept. Pure.

    The gradient is that of a random linear function of the outputs; its square is the mean over examples and functions.
    """

    def random_function(params, key):
        y = model.apply({**variables, "params": params}, x, **call, rngs={"params": key}, mutable=FREE)
        leaves = jax.tree.leaves(y[0])
        keys = jax.random.split(key, len(leaves))
        # drawn apart for each example, so that the square of the sum's gradient is the sum of squares, in the mean
        return sum(
            (jax.random.normal(k, leaf.shape, leaf.dtype) * leaf).sum() for k, leaf in zip(keys, leaves, strict=True)
        )

    def squares(key):
        gradients: Any = flatten_dict(jax.grad(random_function)(variables["params"], key))
        return {layer.path: squared_norm(gradients[*layer.path, "kernel"], layer) for layer in found}

    return jax.tree.map(lambda a: a.mean(0), jax.lax.map(squares, jax.random.split(key, draws)))


def squared_norm(kernel, layer):
    """Of a kernel, or one for each of its units; its own axes are kept as 1."""
    axes = tuple(range(kernel.ndim - len(layer.shape), kernel.ndim))
    return jnp.square(kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))).sum(axes, keepdims=True)
