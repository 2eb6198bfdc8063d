"""Kernels, and the perceptron that uses its examples through a kernel only."""

import jax
import jax.numpy as jnp

from deepjax.linear.delta_rule import sign


def polynomial_kernel(x, z, *, degree):
    """Return (1 + <x, z>)^degree of all pairs: x [rows, features], z [columns, features] -> [rows, columns]."""
    return (1 + x @ z.T) ** degree


def gaussian_kernel(x, z, *, width):
    """Return exp(-|x - z|^2 / (2 width^2)) of all pairs.

    Args:
      x: [rows, features].
      z: [columns, features].
      width: standard deviation, a scalar or one per column, [columns].

    Returns:
      [rows, columns].
    """
    distances = jnp.square(x[:, None] - z[None]).sum(-1)
    return jnp.exp(-distances / (2 * jnp.square(jnp.broadcast_to(width, (1, len(z))))))


def kernel_perceptron(gram, y, order):
    """Train a kernel perceptron (Aizerman et al. 1964), whose decision is the sign of

        sum over training examples i of a_i k(x_i, x).

    Each time that example i is classified wrongly, y_i is added to a_i. With k(x, z) = <x, z> this is `perceptron` from
    zero, with w = sum a_i x_i.

    Args:
      gram: kernel of all pairs of training examples, [examples, examples].
      y: classes, [examples], each -1 or 1.
      order: int[updates], the examples in the order in which they are seen.

    Returns:
      (a [examples], mistakes bool[updates]). Decisions on other examples x are `sign(k(x, x_train) @ a)`.
    """
    gram, y = jnp.asarray(gram), jnp.asarray(y, gram.dtype)

    def update(a, i):
        error = (y[i] - sign(gram[i] @ a)) / 2
        return a.at[i].add(error), error != 0

    return jax.lax.scan(update, jnp.zeros(len(gram), gram.dtype), order)
