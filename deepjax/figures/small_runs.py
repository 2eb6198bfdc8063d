"""Trainings of small networks on arrays in memory, as a pure function: vmap `train` over seeds, rates and variables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import config, data, functional
from deepjax.functional import losses
from deepjax.trace import call_arguments
from deepjax.units import ConvNorm
from deepjax.zoo.network import Network

CHUNK = 500  # test examples at once


class Examples(NamedTuple):
    """Standardized inputs and their classes."""

    inputs: jax.Array  # float32 [N, ...]
    labels: jax.Array  # int32 [N]


class Curves(NamedTuple):
    """What `train` returns of one training."""

    losses: jax.Array  # [steps]: mean loss of each batch, before its update
    errors: jax.Array  # [steps / every]: fraction of wrong test examples, after each `every` updates
    variables: dict[str, Any]  # after the last update


def load(name: str, data_dir: str = "", size: int | None = None) -> tuple[Examples, Examples]:
    """Return training and test examples of a data set, each channel standardized. Validation images are left out.

    Args:
      name: as `data.name` of a config.
      data_dir: folder of the data set.
      size: number of training examples, which do not depend on any seed; None: all.

    Raises:
      InputError: the data set cannot be found or read.
    """
    found = data.load(config.Data(name, placement="device"), data_dir, 0)
    chosen = found.train.take(np.random.default_rng(0).permutation(len(found.train))[:size])
    standardizer = data.Standardizer.fit("channel", chosen)
    return _standardized(chosen, standardizer), _standardized(found.test, standardizer)


def _standardized(split, standardizer):
    return Examples(standardizer.apply(split.images), jnp.asarray(split.labels))


def cifar(data_dir: str) -> str:
    """Return the name of CIFAR-10 in a folder: cifar10_jpeg if TFDS prepared that, else cifar10."""
    return "cifar10_jpeg" if data_dir and (Path(data_dir) / "cifar10_jpeg").is_dir() else "cifar10"


def train(
    network: nn.Module,
    variables: dict[str, Any],
    examples: Examples,
    test: Examples,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int,
    every: int,
) -> Curves:
    """Minimize the cross entropy of batches in a new random order each epoch, and count errors on the way.

    The optimizer may have traced numbers, such as a learning rate over which this function is vmapped. On CPU, several
    kernels at once make convolutions slow: there, use `jax.lax.map` for convolutional networks.

    Args:
      network: a Linen module, called with those of `train` and `mask` that it takes.
      variables: its variables before the first update.
      examples: for training, at least `batch_size`. What is left of an epoch after its last whole batch is not used.
      test: the examples of which errors are counted.
      key: of the order of the examples, and of dropout.
      optimizer: an Optax transformation.
      steps: updates, a multiple of `every`.
      batch_size: examples of an update.
      every: updates between two counts of errors.
    """
    order_key, dropout_key = jax.random.split(key)
    batches = _batches(order_key, len(examples.labels), batch_size, steps)
    arguments = call_arguments(network, train=True, mask=None)

    def update(carry, batch):
        variables, state = carry
        step, rows = batch
        params, rest = variables["params"], {name: each for name, each in variables.items() if name != "params"}

        def loss_of(params):
            rngs = {"dropout": jax.random.fold_in(dropout_key, step)}
            inputs, labels = (each[rows] for each in examples)
            logits, new = network.apply({"params": params, **rest}, inputs, **arguments, rngs=rngs, mutable=list(rest))
            return losses.cross_entropy(logits, labels).mean(), new

        (loss, new), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return ({"params": optax.apply_updates(params, updates), **new}, state), loss

    def several(carry, batches):
        carry, losses_of = jax.lax.scan(update, carry, batches)
        return carry, (losses_of, test_error(network, carry[0], test))

    blocks = jax.tree.map(lambda each: each.reshape(-1, every, *each.shape[1:]), (jnp.arange(steps), batches))
    carry = variables, optimizer.init(variables["params"])
    (variables, _), (losses_of, errors) = jax.lax.scan(several, carry, blocks)
    return Curves(losses_of.ravel(), errors, variables)


def _batches(key, count, batch_size, steps):
    """Return the examples of each update, int [steps, batch_size]."""
    per_epoch = count // batch_size
    keys = jax.random.split(key, -(-steps // per_epoch))
    orders = jax.vmap(lambda key: jax.random.permutation(key, count))(keys)
    return orders[:, : per_epoch * batch_size].reshape(-1, batch_size)[:steps]


def test_error(network: nn.Module, variables: dict[str, Any], test: Examples) -> jax.Array:
    """Return the fraction of examples whose largest logit is not their class. NaN logits are wrong."""
    arguments = call_arguments(network, train=False, mask=None)

    def wrong(example):
        logits = network.apply(variables, example.inputs[None], **arguments)[0]
        return ~(jnp.argmax(logits) == example.labels) | ~jnp.isfinite(logits).all()

    return jax.lax.map(wrong, test, batch_size=CHUNK).mean()


class SmallCNN(Network):
    """Two 3x3 convolutions per stage, 2x2 max pools between stages, the mean over the image, and the logits."""

    widths: Sequence[int]  # features of each stage
    activation: Any = functional.relu

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> logits [batch, num_classes]."""
        for stage, width in enumerate(self.widths, 1):
            x = functional.max_pool(x, 2) if stage > 1 else x
            for i in (1, 2):
                conv = ConvNorm(width, norm=self.norm, activation=self.activation, name=f"stage{stage}_conv{i}")
                x = conv(x, train=train, mask=mask)
        return self.classify(functional.global_avg_pool(x), train=train)
