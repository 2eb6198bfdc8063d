"""Dtypes and ranks that many functions share: widen to float32, and align a vector with an array's axes."""

import jax.numpy as jnp


def float32_or_wider(dtype):
    """Return the dtype in which sums and statistics of `dtype` are computed: float32, or float64 for float64.

    >>> float32_or_wider(jnp.bfloat16), float32_or_wider(jnp.int32)
    (dtype('float32'), dtype('float32'))
    """
    return jnp.promote_types(dtype, jnp.float32)


def at_least_float32(x):
    """Cast x to float32 if its dtype is narrower, or an integer or bool. A float64 array stays float64.

    Args:
      x: array or number of any shape.

    Returns:
      An array with x's shape.

    >>> at_least_float32(jnp.ones(2, jnp.float16)).dtype
    dtype('float32')
    """
    x = jnp.asarray(x)
    return x.astype(float32_or_wider(x.dtype))


def per_feature(values, rank):
    """Prepend axes of length 1, so that a value per feature broadcasts against [..., features].

    Args:
      values: [*last], for example [features].
      rank: number of axes of the result, at least `values.ndim`.

    Returns:
      [1, ..., 1, *last], with `rank` axes.

    >>> per_feature(jnp.ones(3), 4).shape
    (1, 1, 1, 3)
    """
    return jnp.reshape(values, (1,) * (rank - jnp.ndim(values)) + jnp.shape(values))


def per_example(values, rank):
    """Append axes of length 1, so that a value per example broadcasts against [batch, ...].

    Args:
      values: [*first], for example [batch].
      rank: number of axes of the result, at least `values.ndim`.

    Returns:
      [*first, 1, ..., 1], with `rank` axes.

    >>> per_example(jnp.ones(3), 4).shape
    (3, 1, 1, 1)
    """
    return jnp.reshape(values, jnp.shape(values) + (1,) * (rank - jnp.ndim(values)))


def spread(values, x):
    """Broadcast values, such as one per feature, to the shape and dtype of x.

    The gradient in `values` is a sum over all pixels of all examples. It is taken in at least float32, because in
    bfloat16 a sum stops growing when it is a few hundred times as large as one summand.

    Args:
      values: [*last], which broadcasts against the last axes of x; for example [features].
      x: [..., *last].

    Returns:
      An array like x.

    >>> spread(jnp.array([1.0, 2.0]), jnp.ones((2, 2), jnp.bfloat16)).astype(int).tolist()
    [[1, 2], [1, 2]]
    """
    return jnp.broadcast_to(per_feature(at_least_float32(values), x.ndim), x.shape).astype(x.dtype)
