"""Activations: elementwise functions of any shape. What `jax.nn` has is taken from there."""

from jax.nn import relu

__all__ = ["relu"]
