"""Restricted Boltzmann machines and contrastive divergence (Hinton 2002).

p(v, h) is proportional to exp(v'Wh + b'v + c'h) for binary visible units v in {0, 1}. Gaussian visible units have the
term -|v - b|^2 / 2 in place of b'v. Hidden units h are binary.
"""

import jax
import jax.numpy as jnp

from deepjax.init_from_data.denoising import Pair, decode, encode


def free_energy(pair: Pair, v, *, binary: bool):
    """Return F(v), where p(v) is proportional to exp(-F(v)): the hidden units are summed out. [batch, n] -> [batch]."""
    own = -v @ pair.visible if binary else ((v - pair.visible[None]) ** 2).sum(1) / 2
    return own - jax.nn.softplus(v @ pair.kernel + pair.hidden[None]).sum(1)


def gibbs(pair: Pair, v, key, *, steps: int, binary: bool):
    """Return visible units after `steps` steps of Gibbs sampling from v: hidden units given v, then v given these."""

    def step(v, key):
        up, down = jax.random.split(key)
        h = jax.random.bernoulli(up, encode(pair, v)).astype(v.dtype)
        mean = decode(pair, h)
        if binary:
            return jax.random.bernoulli(down, jax.nn.sigmoid(mean)).astype(v.dtype), None
        return mean + jax.random.normal(down, v.shape, v.dtype), None

    return jax.lax.scan(step, v, jax.random.split(key, steps))[0]


def contrastive_divergence(pair: Pair, v, key, *, steps: int, binary: bool) -> Pair:
    """Return the estimate CD-k of the gradient of -log p(v), mean over the batch.

    The gradient is that of F(v), minus its mean over the model's own samples. The samples are replaced by what `steps`
    steps of Gibbs sampling make of v.
    """
    samples = gibbs(pair, v, key, steps=steps, binary=binary)

    def difference(pair):
        return jnp.mean(free_energy(pair, v, binary=binary)) - jnp.mean(free_energy(pair, samples, binary=binary))

    return jax.grad(difference)(pair)
