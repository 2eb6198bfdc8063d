"""A config in the form that the doctor examines: its network, its training set, its loss and its optimizer."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from deepjax.config import Config
from deepjax.doctor.subject import Subject
from deepjax.training import setup
from deepjax.training.step import apply_model

EXAMPLES = 4096  # of the training set that are examined, at most


def examined(config: Config, log: Any) -> Subject:
    """Return the subject of a config. Reads the data; writes nothing.

    The examples are those of the first batches of the first epoch, without augmentation and mixing.

    Args:
      config: the experiment.
      log: receives what initialization from data chose.

    Raises:
      InputError: something in the config cannot work.
    """
    one = dataclasses.replace(config.devices, count=1)
    config = setup.with_absolute_paths(dataclasses.replace(config, devices=one))
    exp = setup.setup(config, setup.check(config), None)
    inputs, targets = _examples(exp)
    first = exp.initial_state(log)
    variables = jax.device_get({"params": first.params, "batch_stats": first.batch_stats})
    variables = {name: tree for name, tree in variables.items() if name == "params" or tree}
    return subject_of(exp, variables, inputs, targets)


def subject_of(exp: setup.Experiment, variables: dict, inputs: Any, targets: Any) -> Subject:
    """Return the subject of an experiment with these variables and examples."""
    config = exp.config

    def apply(variables, inputs, train, key):
        rngs = {"dropout": key}
        mutable = ["batch_stats"] if train else False
        mask = np.ones(len(inputs), bool)
        out = apply_model(exp.model, variables, inputs, mask, train=train, rngs=rngs, mutable=mutable)
        return (out[0], dict(out[1])) if train else (out, {})

    def loss(predictions, targets):
        sums = exp.task.measure(predictions, targets, np.ones(len(targets), bool))
        return sums["loss"] / sums["count"]

    return Subject(
        init=lambda key: variables,
        apply=apply,
        inputs=inputs,
        targets=targets,
        loss=loss,
        optimizer=exp.optimizer,
        batch_size=min(config.batch_size, len(inputs)),
        epochs=config.epochs,
        planned=True,
        module=exp.model,
        call=(("train", True),),
    )


def _examples(exp):
    """Return (inputs, targets) of at most EXAMPLES examples, as the task prepares them for evaluation."""
    count = -(-EXAMPLES // exp.config.batch_size)
    batches = itertools.islice(exp.loader.epoch(0), count)
    taken = [jax.device_get(exp.loader.fetch(exp.loader.data, rows)) for rows in batches]
    parts = [exp.task.prepare(jax.tree.map(lambda a, b=b: a[b["mask"]], b)) for b in taken]
    inputs, targets = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
    return inputs[:EXAMPLES], targets[:EXAMPLES]
