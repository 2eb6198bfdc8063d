"""Gaussians around centers."""

import jax.numpy as jnp


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
