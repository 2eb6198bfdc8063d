"""Greedy layer-wise pretraining without labels (Hinton et al. 2006; Bengio et al. 2006)."""

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax import functional
from deepjax.errors import InputError
from deepjax.init_from_data.boltzmann import contrastive_divergence
from deepjax.init_from_data.calibrate import settable_layers
from deepjax.init_from_data.denoising import Pair, encode, reconstruction_error

BATCH = 64  # examples of an update


def autoencoder(model, key, x, *, corruption=0.25, updates=2000, rate=2e-3, **call):
    """Initialize a sigmoid network so that each layer is the encoder of a denoising auto-encoder of the layer below.

    Layer after layer, an auto-encoder with tied weights learns to reconstruct its inputs from a corrupted copy (Vincent
    et al. 2008). Its codes are the inputs of the next layer. The last layer, which gives the logits, stays as the model
    draws it. The model's own kernels are where the first auto-encoder starts; biases start at 0.

    Inputs of the first layer are reconstructed by a sigmoid and compared by the cross entropy if all of x is in [0, 1]
    (standardize min_max), else linearly and by the squared error.

    Args:
      model: network whose layers are a chain of Dense layers with biases, with the attribute `activation`
        functional.sigmoid, such as zoo.mlp(5, activation="sigmoid").
      key: PRNG key.
      x: the model's first argument, a batch of examples; thousands are better than a few.
      corruption: probability that an input is set to 0, at least 0 and below 1.
      updates: of each layer by Adam, with 64 examples drawn with replacement.
      rate: Adam's learning rate.
      **call: the model's keyword arguments, such as train=True.

    Returns:
      The model's variables, with the structure of `model.init`'s.

    Raises:
      InputError: another kind of model, or a number that is out of range.
    """
    if not 0 <= corruption < 1:
        raise InputError(f"corruption {corruption} must be at least 0 and below 1")

    def gradient(binary, pair, rows, key):
        return jax.grad(reconstruction_error)(pair, rows, key, corruption=corruption, binary=binary)

    return _pretrained(model, key, x, gradient, updates, rate, call)


def rbm(model, key, x, *, steps=1, updates=2000, rate=2e-3, **call):
    """Initialize a sigmoid network so that each layer is the hidden layer of a restricted Boltzmann machine.

    As `autoencoder`, with machines that learn by contrastive divergence (Hinton et al. 2006). Visible units of the
    first machine are binary if all of x is in [0, 1], else Gaussian with variance 1. Those of the others are the
    probabilities of the hidden units below.

    Arguments, result and errors are those of `autoencoder`, without corruption, and:
      steps: of Gibbs sampling, k of CD-k.
    """
    if steps < 1:
        raise InputError(f"steps {steps} must be at least 1")

    def gradient(binary, pair, rows, key):
        return contrastive_divergence(pair, rows, key, steps=steps, binary=binary)

    return _pretrained(model, key, x, gradient, updates, rate, call)


def _pretrained(model, key, x, gradient, updates, rate, call):
    """Return the model's variables, all layers but the last trained by `gradient`(binary, pair, examples, key)."""
    if updates < 1 or rate <= 0:
        raise InputError(f"updates {updates} must be at least 1, and rate {rate} positive")
    layers = _chain(model, key, x, call)
    drawn, *keys = jax.random.split(key, len(layers) + 1)
    variables = jax.jit(lambda key, x: model.init(key, x, **call))(drawn, x)
    params: Any = flatten_dict(variables["params"])
    inputs = jnp.asarray(x, jnp.float32).reshape(len(x), -1)
    binary = bool(jnp.all((inputs >= 0) & (inputs <= 1)))
    train = jax.jit(partial(_train_stack, gradient, updates, rate), static_argnums=3)
    for i, (layer, key) in enumerate(zip(layers[:-1], keys)):
        kernel, bias = ((*layer.path, name) for name in ("kernel", "bias"))
        units = params[kernel].reshape(-1, *layer.shape)  # a scan's, or one
        inputs, pairs = train(units, inputs, jax.random.split(key, len(units)), binary or i > 0)
        params[kernel] = pairs.kernel.reshape(params[kernel].shape).astype(layer.dtype)
        params[bias] = pairs.hidden.reshape(params[bias].shape).astype(layer.dtype)
    return {**variables, "params": unflatten_dict(params)}


def _chain(model, key, x, call):
    """Return the layers of a model. Raise InputError if they are not a chain of Dense layers with sigmoids between."""
    layers = settable_layers(model, key, x, call)
    shapes: Any = flatten_dict(jax.eval_shape(lambda key, x: model.init(key, x, **call), key, x)["params"])
    dense = all(len(layer.shape) == 2 and (*layer.path, "bias") in shapes for layer in layers)
    chained = dense and all(a.shape[1] == b.shape[0] for a, b in pairwise(layers))
    if not chained or len(shapes) > 2 * len(layers) or getattr(model, "activation", None) is not functional.sigmoid:
        raise InputError(
            f"{type(model).__name__}: layer-wise pretraining needs a chain of Dense layers with biases, and sigmoids "
            f"between them; use mlp with activation=sigmoid and without norm"
        )
    if len(layers) < 2:
        raise InputError(f"{type(model).__name__} has no hidden layer to pretrain; use a depth of at least 2")
    return layers


def _train_stack(gradient, updates, rate, kernels, x, keys, binary):
    """Train one layer after another, each on the codes of the layer before: kernels [layers, visible, hidden].

    Returns:
      (codes of the last layer, Pair with a leading axis of layers).
    """

    def train(x, layer):
        pair: Any = _train(gradient, updates, rate, layer[0], x, layer[1], binary)
        return encode(pair, x), pair

    if len(kernels) > 1:  # the layers of a scan have as many outputs as inputs
        return jax.lax.scan(train, x, (kernels, keys))
    codes, pair = train(x, (kernels[0], keys[0]))
    return codes, jax.tree.map(lambda leaf: leaf[None], pair)


def _train(gradient, updates, rate, kernel, x, key, binary):
    """Return the Pair that `updates` updates of Adam make of a kernel and biases of 0."""
    optimizer = optax.adam(rate)
    pair = Pair(kernel.astype(x.dtype), jnp.zeros(kernel.shape[1], x.dtype), jnp.zeros(kernel.shape[0], x.dtype))

    def update(carry, key):
        pair, state = carry
        rows, noise = jax.random.split(key)
        batch = x[jax.random.randint(rows, (BATCH,), 0, len(x))]
        changes, state = optimizer.update(gradient(binary, pair, batch, noise), state)
        return (optax.apply_updates(pair, changes), state), None

    return jax.lax.scan(update, (pair, optimizer.init(pair)), jax.random.split(key, updates))[0][0]
