"""Kernels, and the perceptron that uses its examples through a kernel only."""

import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError
from deepjax.functional import gaussian_kernel
from deepjax.functional.arrays import per_feature
from deepjax.linear.delta_rule import sign, with_bias

__all__ = ["gaussian_kernel", "kernel_perceptron", "polynomial_features", "polynomial_kernel"]

MONOMIALS = 100_000  # limit of the number of features


def polynomial_kernel(x, z, *, degree):
    """Return (1 + <x, z>)^degree of all pairs: x [rows, features], z [columns, features] -> [rows, columns]."""
    return (1 + x @ z.T) ** degree


def polynomial_features(x, *, degree):
    """Return phi(x) with phi(x)^T phi(z) = (1 + <x, z>)^degree, the features of `polynomial_kernel`.

    They are all monomials of x up to the degree, each times the root of the number of times that it is in the expanded
    kernel.

    Args:
      x: [..., features].
      degree: at least 1.

    Returns:
      [..., C(features + degree, degree)], a binomial coefficient; a 1 comes first.

    Raises:
      InputError: more than 100,000 monomials.

    >>> polynomial_features(jnp.array([2.0, 3.0]), degree=2).round(3).tolist()
    [1.0, 2.828..., 4.243..., 4.0, 8.485..., 9.0]
    """
    count = math.comb(x.shape[-1] + degree, degree)
    if count > MONOMIALS:
        raise InputError(
            f"{x.shape[-1]} features have {count:,} monomials up to degree {degree}, above the limit of {MONOMIALS:,}; "
            f"use fewer features, a lower degree, or kernel_perceptron, which needs none of them"
        )
    factors = np.array(list(itertools.combinations_with_replacement(range(x.shape[-1] + 1), degree)))
    repeats = [math.prod(map(math.factorial, Counter(row).values())) for row in factors.tolist()]
    scale = jnp.asarray(np.sqrt(math.factorial(degree) / np.array(repeats)), x.dtype)
    return per_feature(scale, x.ndim) * jnp.prod(with_bias(x)[..., factors], -1)


def kernel_perceptron(gram, y, order):
    """Train a kernel perceptron (Aizerman et al. 1964). Its decision for an example x is

        sign(sum over training examples i of a_i k(x_i, x)).

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
