"""The delta rule: one update for the perceptron, Adaline, and logistic and softmax regression.

With weights w, an example x with target y, and the output function g of the model,

    prediction = g(w^T x),    w <- w + rate (y - prediction) x.

For all but the perceptron this is stochastic gradient descent, one example at a time: of half the squared error if g is
the identity, of the cross entropy if g is the sigmoid or softmax. The perceptron follows a subgradient of
max(0, -y w^T x).
"""

import jax
import jax.numpy as jnp

from deepjax.errors import InputError


def with_bias(x):
    """Return x [..., features] with a 1 before the features, whose weight is the bias: [..., 1 + features].

    >>> with_bias(jnp.array([[2.0, 3.0]])).tolist()
    [[1.0, 2.0, 3.0]]
    """
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x], -1)


def sign(z):
    """Return -1 where z is negative, and 1 elsewhere, also at 0."""
    return jnp.where(z < 0, -1.0, 1.0).astype(z.dtype)


def shuffled(key, count, epochs):
    """Return the order of an online training: int32[epochs * count], in which each epoch is a random permutation.

    Args:
      key: PRNG key.
      count: number of examples.
      epochs: passes over the examples.
    """
    orders = jax.vmap(lambda key: jax.random.permutation(key, count))(jax.random.split(key, epochs))
    return orders.reshape(-1).astype(jnp.int32)


def delta_rule(output, x, y, order, *, rate, w=None):
    """Train by the delta rule, one example after the other.

    Args:
      output: g, a function of w^T x: [] -> [], or [outputs] -> [outputs].
      x: examples, [examples, features].
      y: targets, [examples] or [examples, outputs].
      order: int[updates], the examples in the order in which they are seen, such as `shuffled` returns.
      rate: step size, a scalar, which may be traced.
      w: weights at the start, [features] or [features, outputs]. None: zeros.

    Returns:
      (weights, errors): the weights at the end, and the error y - g(w^T x) of each update before it is made, [updates]
      or [updates, outputs].

    Raises:
      InputError: x that is not a matrix, or not as many targets as examples.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim != 2 or y.shape[:1] != x.shape[:1]:
        raise InputError(f"x has shape {x.shape} and y {y.shape}; give x [examples, features] and a target per example")
    start = jnp.zeros((x.shape[1], *y.shape[1:]), x.dtype) if w is None else jnp.asarray(w, x.dtype)

    def update(w, i):
        error = y[i].astype(x.dtype) - output(x[i] @ w)
        return w + rate * jnp.multiply.outer(x[i], error), error

    return jax.lax.scan(update, start, order)


def perceptron(x, y, order, *, w=None):
    """Train a perceptron (Rosenblatt 1958): w <- w + y x for each example that sign(w^T x) gets wrong.

    This is the delta rule with g = sign and rate 1/2. An example on the boundary counts as of class 1.

    Args:
      x: examples, [examples, features]. A bias is the first feature of `with_bias`.
      y: classes, [examples], each -1 or 1.
      order: int[updates], the examples in the order in which they are seen.
      w: weights at the start, [features]. None: zeros.

    Returns:
      (weights [features], mistakes bool[updates]).

    >>> x, y = jnp.array([[1.0, -1.0], [1.0, 2.0]]), jnp.array([-1, 1])
    >>> w, mistakes = perceptron(x, y, jnp.array([0, 1, 0, 1]))
    >>> w.tolist(), mistakes.tolist()
    ([-1.0, 1.0], [True, False, False, False])
    """
    w, errors = delta_rule(sign, x, y, order, rate=0.5, w=w)
    return w, errors != 0


def mistake_bound(x, y, w):
    """Return (R / margin)^2, the most mistakes that a perceptron from zero makes on these examples in any order.

    R is the largest norm of an example, and margin the smallest y w^T x / |w|, for any w that separates the classes
    (Novikoff 1962). The w with the largest margin gives the best bound.

    Args:
      x: examples, [examples, features].
      y: classes, [examples], each -1 or 1.
      w: weights, [features].

    Returns:
      A scalar; infinity if w does not separate the classes.
    """
    margin = jnp.min(y * (x @ w)) / jnp.linalg.norm(w)
    radius = jnp.max(jnp.linalg.norm(x, axis=1))
    return jnp.where(margin > 0, (radius / margin) ** 2, jnp.inf)


def adaline(x, y, order, *, rate, w=None):
    """Train an Adaline (Widrow & Hoff 1962), that is linear regression by SGD: w <- w + rate (y - w^T x) x.

    Arguments are those of `delta_rule`, with g = identity; targets are any numbers.

    Returns:
      (weights, errors).
    """
    return delta_rule(lambda z: z, x, y, order, rate=rate, w=w)


def logistic_regression(x, y, order, *, rate, w=None):
    """Train logistic regression by SGD on its cross entropy: w <- w + rate (y - sigmoid(w^T x)) x.

    Arguments are those of `delta_rule`, with g = sigmoid; targets are 0 or 1.

    Returns:
      (weights, errors).
    """
    return delta_rule(jax.nn.sigmoid, x, y, order, rate=rate, w=w)


def softmax_regression(x, labels, order, *, rate, classes, w=None):
    """Train softmax regression by SGD on its cross entropy: w_j <- w_j + rate ([label = j] - softmax(w^T x)_j) x.

    Arguments are those of `delta_rule`, with g = softmax, except

      labels: int[examples], from 0 to classes - 1.
      classes: number of classes.
      w: weights at the start, [features, classes]. None: zeros.

    Returns:
      (weights [features, classes], errors [updates, classes]).
    """
    return delta_rule(jax.nn.softmax, x, jax.nn.one_hot(labels, classes), order, rate=rate, w=w)
