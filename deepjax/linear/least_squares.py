"""Linear regression in closed form, with an L2 or L1 penalty."""

from typing import Any

import jax
import jax.numpy as jnp


def least_squares(x, y, *, ridge: Any = 0.0):
    """Return the weights w that minimize sum over examples |y - w^T x|^2 + sum over weights ridge |w|^2.

    They solve the normal equations (X^T X + ridge I) w = X^T y, with one example a row of X. They are computed from the
    singular values of [X; sqrt(ridge) I], because X^T X has the square of X's condition number. If X has dependent
    columns and ridge is 0, there are many solutions; this is the shortest one, the limit of those for ridge -> 0.

    Args:
      x: [examples, features]. A bias is the first feature of `with_bias`.
      y: targets, [examples] or [examples, outputs].
      ridge: L2 penalty, at least 0: a scalar, or one per weight, [features], such as 0 for the bias.

    Returns:
      [features] or [features, outputs].

    >>> from deepjax.linear import with_bias
    >>> least_squares(with_bias(jnp.array([[0.0], [1.0], [2.0]])), jnp.array([1.0, 3.0, 5.0])).round(4).tolist()
    [1.0, 2.0]
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    roots = jnp.sqrt(jnp.broadcast_to(jnp.asarray(ridge, x.dtype), x.shape[1]))
    rows = jnp.concatenate([x, jnp.diag(roots)])
    targets = jnp.concatenate([y, jnp.zeros((x.shape[1], *y.shape[1:]), y.dtype)])
    return jnp.linalg.lstsq(rows, targets)[0]


def lasso(x, y, *, penalty, sweeps=1000):
    """Return the weights w that minimize (1 / 2 examples) |y - X w|^2 + sum over weights penalty |w|.

    Coordinate descent: each sweep sets one weight after the other to its minimum with the others fixed, which is a soft
    threshold and makes many weights exactly 0 (Friedman, Hastie & Tibshirani 2010).

    Args:
      x: [examples, features].
      y: targets, [examples].
      penalty: L1 penalty, at least 0: a scalar, or one per weight, [features], such as 0 for the bias.
      sweeps: passes over the weights.

    Returns:
      [features].
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    count, features = x.shape
    gram, products = x.T @ x / count, x.T @ y / count
    thresholds = jnp.broadcast_to(jnp.asarray(penalty, x.dtype), features)

    def coordinate(j, w):
        slope = products[j] - gram[j] @ w + gram[j, j] * w[j]
        shrunk = jnp.sign(slope) * jnp.maximum(jnp.abs(slope) - thresholds[j], 0)
        return w.at[j].set(jnp.where(gram[j, j] > 0, shrunk / gram[j, j], 0))

    def sweep(_, w):
        return jax.lax.fori_loop(0, features, coordinate, w)

    return jax.lax.fori_loop(0, sweeps, sweep, jnp.zeros(features, x.dtype))
