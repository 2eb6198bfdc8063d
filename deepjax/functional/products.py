"""The product of rows with a matrix, with a gradient in the matrix that is fast on CPU."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero


def product(x, kernel):
    """Return x @ kernel.

    The gradient in the kernel is x.T @ dy over all rows. XLA:CPU computes a product whose left operand is stored
    transposed up to twice as slowly, and for more than one axis of rows it also transposes dy, which may be far larger
    than x. So the rows are one axis here, and on CPU the gradient is a product with a transposed copy of x.

    Args:
      x: [..., features_in].
      kernel: [features_in, features].

    Returns:
      [..., features], in the dtype that both promote to.

    >>> product(jnp.ones((2, 7, 3)), jnp.ones((3, 5))).shape
    (2, 7, 5)
    """
    return _on_rows(_product, x, kernel)


def tangent_product(x, dkernel):
    """Return x @ dkernel for a tangent of a kernel, in a form whose transpose is the gradient of `product`.

    Args:
      x: [..., features_in].
      dkernel: [features_in, features].

    Returns:
      [..., features], in the dtype that both promote to.
    """
    return _on_rows(_through_copy, x, dkernel)


def _on_rows(multiply, x, kernel):
    if x.ndim <= 2:
        return multiply(x, kernel)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return multiply(rows, kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_jvp
def _product(x, kernel):
    return x @ kernel


def _tangents(primals, tangents):
    """Leave out the product of an operand that is not differentiated, such as the input of the first layer."""
    (x, kernel), (dx, dkernel) = primals, tangents
    y = x @ kernel
    dy = [] if isinstance(dx, SymbolicZero) else [dx @ kernel]
    dy += [] if isinstance(dkernel, SymbolicZero) else [_through_copy(x, dkernel)]
    return y, sum(dy, jnp.zeros_like(y))


_product.defjvp(_tangents, symbolic_zeros=True)


def _through_copy(x, dkernel):
    if x.ndim < 2 or jax.default_backend() != "cpu":
        return x @ dkernel
    copy = lax.optimization_barrier(x.T)  # else XLA merges the transposition and the product
    return lax.dot_general(copy, dkernel, (((0,), (0,)), ((), ())))
