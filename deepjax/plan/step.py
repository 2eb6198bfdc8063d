"""The training step of a config on abstract arrays: everything that compilation needs, without data."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import data, tasks
from deepjax.errors import InputError
from deepjax.parallel import make_mesh
from deepjax.runs.workdir import Statistics
from deepjax.summary.costs import multiply_adds
from deepjax.training import setup


class AbstractStep(NamedTuple):
    """The training step of one device on its share of the batch, and the shapes of its arguments."""

    experiment: setup.Experiment
    batch: Any  # shapes of a batch
    shape: tuple[int, ...]  # of one example as the network gets it
    devices: int

    @property
    def state(self):
        """Shapes of the TrainState."""
        return self.experiment.abstract_state

    def trace(self):
        """Return the jax.stages.Traced of the whole step, of (state, data, rows, key)."""
        return self.experiment.step.trace(self.state, self.experiment.data, self.batch, _abstract_key())

    def macs(self):
        """Return the multiply-adds of the gradient of the loss, or of SAM's two.

        A line search, which computes it again, is left out.
        """

        def gradient(state, batch, key):
            return jax.grad(self.experiment.first_loss(state, batch, key), has_aux=True)(state.params)

        gradients = 2 if self.experiment.config.optimizer.sam else 1
        return gradients * multiply_adds(jax.make_jaxpr(gradient)(self.state, self.batch, _abstract_key()).jaxpr)


def check(config):
    """Return the network of a config. Raise InputError for values that training would refuse, and for a teacher."""
    if config.teacher:
        raise InputError(f"teacher {config.teacher}: plan does not measure a teacher; leave it out, and add its memory")
    make_mesh(config.devices.count, config.devices.strategy, config.batch_size)
    return setup.check(config)


def with_remat(config, remat):
    """Return the config with this value of its network's option `remat`."""
    return dataclasses.replace(config, model_options=config.model_options | {"remat": remat})


def outputs(config, found):
    """Return how many outputs the network has for these `inputs.Inputs`."""
    return tasks.find(config.task).outputs(range(found.classes), found.shape)


def make(config, found, model):
    """Return the AbstractStep of a config with this model and these `inputs.Inputs`.

    Raises:
      InputError: the model, the optimizer and the data do not fit each other.
    """
    if found.examples is not None and config.batch_size > found.examples:
        raise InputError(
            f"batch_size {config.batch_size} is larger than the training set of {found.examples} examples; use a "
            f"smaller one"
        )
    devices = len(make_mesh(config.devices.count, config.devices.strategy, config.batch_size))
    share = config.batch_size // devices
    augment = dataclasses.replace(config.data.augment, area=None)  # crops by area are made on the host
    config = dataclasses.replace(
        config,
        batch_size=share,
        data=dataclasses.replace(config.data, placement="host", augment=augment),
        devices=dataclasses.replace(config.devices, strategy="jit"),
    )
    dataset = _blank(found, share * devices, without_validation=config.data.validation == 0)
    lighting, target = np.zeros((3, 3)) if augment.lighting else None, () if found.classes else (0.0, 1.0)
    statistics = Statistics(_standardizer(config.data, found.shape), lighting, target)
    exp = setup.assemble(config, make_mesh(1), dataset, statistics, model)
    batch = exp.task.abstract_batch(dataset, share)
    inputs, _ = jax.eval_shape(exp.task.prepare, batch)
    return AbstractStep(exp, batch, inputs.shape[1:], devices)


def _abstract_key():
    return jax.eval_shape(lambda: jax.random.key(0))


def _blank(found, min_examples, without_validation):
    """Return a Dataset with the shapes of these Inputs that takes no memory."""
    examples = found.examples or min_examples
    images = np.broadcast_to(_dtype(found.shape)(0), (examples, *found.shape))
    label = np.int32(0) if found.classes else np.float32(0)
    split = data.Arrays(images, np.broadcast_to(label, (examples,)))
    validation = split.take(np.arange(0)) if without_validation else split
    return data.Dataset("", tuple(map(str, range(found.classes))), found.shape, split, validation, split)


def _dtype(shape):
    return np.uint8 if len(shape) == 3 else np.float32  # images are bytes, feature vectors are floats


def _standardizer(wanted, shape):
    """Return a Standardizer of the right shapes that is fitted to no data."""
    features = math.prod(shape)
    if wanted.standardize in ("pca", "zca"):
        basis = np.broadcast_to(np.float32(0), (features, features))
        return data.Standardizer(wanted.standardize, np.zeros(shape, np.float32), np.ones(features, np.float32), basis)
    each = shape if wanted.standardize in ("mean_image", "z_score") else shape[-1:]
    return data.Standardizer(wanted.standardize, np.zeros(each, np.float32), np.ones(each, np.float32))


def size(tree):
    """Return the bytes of a tree of shapes; a PRNG key counts as its two 32-bit words."""
    return sum(
        math.prod(leaf.shape) * (8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize)
        for leaf in jax.tree.leaves(tree)
    )
