"""Denoising auto-encoders (Vincent, Larochelle, Bengio & Manzagol 2008) of one layer, with tied weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepjax.functional.losses import binary_cross_entropy


class Pair(NamedTuple):
    """Parameters of an auto-encoder or of a restricted Boltzmann machine: visible units below, hidden units above."""

    kernel: jax.Array  # [visible, hidden]
    hidden: jax.Array  # [hidden], biases
    visible: jax.Array  # [visible], biases


def encode(pair: Pair, x):
    """Return sigmoid(x W + c): codes, or probabilities of the hidden units. [batch, visible] -> [batch, hidden]."""
    return jax.nn.sigmoid(x @ pair.kernel + pair.hidden[None])


def decode(pair: Pair, h):
    """Return h W' + b, whose sigmoid is the mean of binary visible units. [batch, hidden] -> [batch, visible]."""
    return h @ pair.kernel.T + pair.visible[None]


def reconstruction_error(pair: Pair, x, key, *, corruption: float, binary: bool):
    """Return the error of the input that an auto-encoder reconstructs from a corrupted copy.

    Args:
      pair: parameters.
      x: [batch, visible], numbers in [0, 1] if binary.
      key: PRNG key of the corruption.
      corruption: probability that a number of the copy is set to 0.
      binary: compare by the cross entropy, else by half of the squared error.

    Returns:
      f[]: sum over the visible units, mean over the batch.
    """
    kept = jax.random.bernoulli(key, 1 - corruption, x.shape)
    z = decode(pair, encode(pair, jnp.where(kept, x, 0)))
    errors = binary_cross_entropy(z, x) if binary else (z - x) ** 2 / 2
    return errors.sum(1).mean()
