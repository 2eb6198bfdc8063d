"""The training step of a config, traced on shapes: what `experiment.build` makes, without the data."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax import data
from deepjax.errors import InputError
from deepjax.plan import graph
from deepjax.runs.workdir import Statistics
from deepjax.summary.walk import Walk
from deepjax.training import experiment, sharding


class Traced(NamedTuple):
    """A step as one device runs it, on its share of the batch."""

    jaxpr: Any
    state: Any  # shapes of the TrainState
    shape: tuple[int, ...]  # of one standardized example
    devices: int
    arguments: int  # bytes of the state, of the data on the device, and of what travels there for each step
    metrics: int  # bytes

    @property
    def donated(self):
        """How many inputs, the first ones, give their memory to outputs."""
        return len(jax.tree.leaves(self.state))


def check(config):
    """Raises InputError for numbers that cannot work."""
    experiment.check(config)
    sharding.select_devices(config.devices.count, config.batch_size)


def with_remat(config, remat):
    """The config with this option of its network."""
    return dataclasses.replace(config, model_options=config.model_options | {"remat": remat})


def trace(config, found, model):
    """The Traced step of a config with this model and these `inputs.Inputs`.

    Raises InputError where the model, the optimizer and the data do not go together.
    """
    if found.examples is not None and config.batch_size > found.examples:
        raise InputError(f"batch_size {config.batch_size} is larger than the training set of {found.examples} examples")
    devices = len(sharding.select_devices(config.devices.count, config.batch_size))
    share = config.batch_size // devices
    augment = dataclasses.replace(config.data.augment, area=None)  # which is done where images are read
    config = dataclasses.replace(
        config,
        batch_size=share,
        data=dataclasses.replace(config.data, placement="host", augment=augment),
        devices=dataclasses.replace(config.devices, strategy="jit"),
    )
    dataset = _blank(found, share * devices, without_validation=config.data.validation == 0)
    statistics = Statistics(_standardizer(config.data, found.shape), np.zeros((3, 3)) if augment.lighting else None)
    exp = experiment.build(config, dataset, model, jax.local_devices()[:1], statistics)
    batch = jax.ShapeDtypeStruct((share, *found.shape), _kind(found.shape))
    label, mask = (jax.ShapeDtypeStruct((share,), dtype) for dtype in (jnp.int32, bool))
    rows = {"image": batch, "label": label, "mask": mask}
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = exp.step.trace(exp.shapes, (), rows, key)
    chosen = (label, mask) if found.resident else rows  # images that are there are chosen by number
    return Traced(
        jaxpr=traced.jaxpr.jaxpr,
        state=exp.shapes,
        shape=statistics.standardizer.output_shape(found.shape),
        devices=devices,
        arguments=size(exp.shapes) + found.resident + size(chosen),
        metrics=size(traced.out_info) - size(exp.shapes),
    )


def _blank(found, least, without_validation):
    """A Dataset of these Inputs that takes no memory."""
    examples = found.examples or least
    images = np.broadcast_to(_kind(found.shape)(0), (examples, *found.shape))
    split = data.Arrays(images, np.broadcast_to(np.int32(0), (examples,)))
    validation = split.take(np.arange(0)) if without_validation else split
    return data.Dataset("", tuple(map(str, range(found.classes))), found.shape, split, validation, split)


def _kind(shape):
    return np.uint8 if len(shape) == 3 else np.float32  # points in the plane are not images


def _standardizer(wanted, shape):
    """One that is fitted to nothing, of the right shapes."""
    features = math.prod(shape)
    if wanted.standardize in ("pca", "zca"):
        basis = np.broadcast_to(np.float32(0), (features, features))
        return data.Standardizer(wanted.standardize, np.zeros(shape, np.float32), np.ones(features, np.float32), basis)
    each = shape if wanted.standardize in ("mean_image", "z_score") else shape[-1:]
    return data.Standardizer(wanted.standardize, np.zeros(each, np.float32), np.ones(each, np.float32))


def size(tree):
    """Bytes of a tree of shapes."""
    return sum(math.prod(leaf.shape) * graph.itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def macs(jaxpr):
    """Multiply-adds of the convolutions and matrix products of a jaxpr."""
    walk = Walk()
    walk.run(jaxpr, [None] * len(jaxpr.invars), cost=walk.cost)
    return walk.cost.macs.total()
