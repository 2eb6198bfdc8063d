"""The network that a run has trained, from the folder of the run."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deepjax import data, tasks
from deepjax.config import Config
from deepjax.errors import InputError
from deepjax.runs import workdir
from deepjax.runs.weights import read_weights
from deepjax.trace import call_arguments, input_errors
from deepjax.training.averaging import first_difference
from deepjax.training.model import check_in_zoo, make_model


class Run(NamedTuple):
    """A trained network and its data format, as read from a workdir."""

    config: Config
    model: Any  # Linen module
    members: tuple  # variables whose predictions are averaged: of all snapshots, oldest first; else of one state
    steps: tuple[int, ...]  # of each
    classes: tuple[str, ...]
    shape: tuple[int, ...]  # of one example
    standardizer: data.Standardizer
    fit: str  # how images of another size are brought to `shape`: "whole" or "photograph"
    target: tuple[float, ...] = ()  # mean and standard deviation of the training targets, if they are numbers
    columns: tuple[str, ...] = ()  # names of the features, then of the target, if they are known

    @property
    def variables(self):
        """The variables of the newest member."""
        return self.members[-1]

    @property
    def step(self):
        """The step of the newest member."""
        return self.steps[-1]

    def inputs(self, images):
        """Return examples [B, *shape] as the network gets them: standardized, and the center of images."""
        return data.center_crop(self.standardizer.apply(images), self.config.data.center_crop)

    @property
    def task(self):
        """The task, for evaluation."""
        return tasks.find(self.config.task).of_record(self)

    def check_crops(self, crops):
        """Raise InputError if the run cannot use this many crops of an image file."""
        data.check_crops(crops)
        if crops > 1 and self.fit != "photograph":
            raise InputError(f"crops {crops}: this run resizes whole images and does not crop them; use 1")

    def read(self, path, crops=1):
        """Return an image file as uint8 [crops, *shape], as the run's images were read; see `data.read_crops`."""
        if crops == 1:
            return data.read_image(path, self.shape, self.fit)[None]
        return data.read_crops(path, data.photograph_crops, self.shape, crops)


def load_run(folder, *, model=None, warn=warnings.warn) -> Run:
    """Return the Run in a workdir: the weights that its summary has the test error of.

    These are the state that validated best (the newest, without validation); the averaged weights of SWA; or all
    snapshots. While such a run is unfinished: the snapshots so far; before the first one, and for SWA, the best state.

    Args:
      folder: folder of the run.
      model: the Linen module, if `train` was called with `model=`.
      warn: receives one line for each damaged checkpoint that is skipped.

    Raises:
      InputError: the folder holds no run, or no complete checkpoint; its records are damaged, or describe another
        network than that of the weights; the model is not in the zoo and not given, or is no Linen module.
    """
    config = workdir.read_config(folder)
    record = workdir.read_data(folder)
    if model is None:
        check_in_zoo(f"workdir {folder}", config.model, f"pass load_run(..., model={config.model}())")
    outputs = tasks.find(config.task).outputs(record.classes, record.shape)
    model = make_model(config, outputs, model)
    statistics: Any = workdir.read_statistics(folder)  # not None, since data.json exists
    weights = read_weights(folder, config, warn)
    run = Run(
        config=config,
        model=model,
        members=tuple(each.variables for each in weights),
        steps=tuple(each.step for each in weights),
        classes=record.classes,
        shape=record.shape,
        standardizer=statistics.standardizer,
        fit=record.fit,
        target=record.target,
        columns=record.columns,
    )
    _check_weights(folder, run)
    return run


def _check_weights(folder, run):
    """Raise InputError if the weights are not those of the network that the records describe; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *run.shape), jnp.uint8 if len(run.shape) == 3 else jnp.float32)
    init = partial(run.model.init, **call_arguments(run.model, train=False))
    with input_errors((1, *run.shape)):
        inputs = jax.eval_shape(run.inputs, images)
        variables = jax.eval_shape(lambda x: init(jax.random.key(0), x), inputs)
    for member in run.members:
        if difference := first_difference(variables, member):
            path, wanted, found = difference
            raise InputError(
                f"the weights in {folder} are not of the network of its config.json and data.json: {path} has shape "
                f"{found}, not {wanted}; restore these records"
            )
