"""What a workdir holds, put to use: the network of a config, the weights of a run."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from deepjax import data, files, zoo
from deepjax.config import Config
from deepjax.errors import InputError
from deepjax.optimizers import make_optimizer
from deepjax.runs import workdir
from deepjax.runs.checkpoint import Checkpoints
from deepjax.training import averaging
from deepjax.training.freezing import frozen_optimizer
from deepjax.training.state import init_state


def make_model(config, num_classes):
    """The network of a config for a set of `num_classes`. Raises InputError where they do not go together."""
    options = dict(config.model_options)
    if "dtype" in options:
        raise InputError("model_options dtype is set by --dtype")
    wanted = options.pop("num_classes", num_classes)
    if wanted != num_classes:
        raise InputError(
            f"model_options num_classes {wanted} differs from the {num_classes} classes of {config.data.name}; "
            f"leave it out"
        )
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    return zoo.create(config.model, num_classes=num_classes, dtype=dtype, **options)


class Run(NamedTuple):
    """What a workdir holds."""

    config: Config
    model: Any  # Linen module
    members: tuple  # variables whose predictions are averaged: of all snapshots, oldest first; else of one state
    steps: tuple[int, ...]  # of each
    classes: tuple[str, ...]
    shape: tuple[int, ...]  # of one example
    standardizer: data.Standardizer
    fit: str  # how images of another size are brought to `shape`: "whole" or "photograph"

    @property
    def variables(self):
        """Of the newest member."""
        return self.members[-1]

    @property
    def step(self):
        """Of the newest member."""
        return self.steps[-1]

    def check_crops(self, crops):
        """Raises InputError where the run cannot look at so many crops of an image file."""
        if len(self.shape) != 3:
            raise InputError(
                f"the run was trained on {self.shape[0]} features, not on images; it cannot read image files"
            )
        data.check_crops(crops)
        if crops > 1 and self.fit != "photograph":
            raise InputError(f"crops {crops}: this run takes images whole, there is nothing to crop; use 1")

    def read(self, path, crops=1):
        """An image file as uint8 [crops, *shape], brought to it as the run's images were; see `data.read_crops`."""
        if crops == 1:
            return data.read_image(path, self.shape, self.fit)[None]
        return data.read_crops(path, data.photograph_crops, self.shape, crops)


def load_run(folder, warn=print):
    """The Run in a workdir: what its summary has the test error of.

    That is the state that validated best (the newest, without validation); the averaged weights of SWA; or all
    snapshots. While such a run goes on: the snapshots so far, and before the first, or for SWA, the best state.

    `warn` is told, a line each, of damaged checkpoints that were passed over.

    Raises InputError where the folder holds no run, or no whole checkpoint.
    """
    config = workdir.read_config(folder)
    record = files.read_json(Path(folder) / "data.json")
    statistics: Any = workdir.read_statistics(folder)  # there, since data.json is
    model = make_model(config, len(record["classes"]))
    if not (Path(folder) / "checkpoints").exists():
        raise InputError(f"workdir {folder} has no checkpoint yet; `deepjax train` with --workdir {folder} makes one")
    fresh = init_state(
        model,
        make_optimizer(  # only the shape of its state matters
            frozen_optimizer(config),
            optax.constant_schedule(0.0),
            config.schedule,
            epochs=config.epochs,
            steps_per_epoch=1,
        ),
        workdir.key_of(config),
        statistics.standardizer.output_shape(record["shape"]),
        ema=config.ema > 0,
        swa=config.swa_start > 0,
    )
    states = _states(Path(folder), config, fresh, warn)
    if not states:
        raise InputError(f"workdir {folder} has no checkpoint yet; `deepjax train` with --workdir {folder} makes one")
    return Run(
        config=config,
        model=model,
        members=tuple(state.eval_variables for state in states),
        steps=tuple(int(state.step) for state in states),
        classes=tuple(record["classes"]),
        shape=tuple(record["shape"]),
        standardizer=statistics.standardizer,
        fit=record["fit"],
    )


def _states(folder, config, fresh, warn):
    """The states to use, oldest first; [] where there is none yet."""
    with contextlib.ExitStack() as stack:
        if finals := averaging.finals(config, folder, make=False):
            stack.callback(finals.close)
            if states := finals.whole(averaging.final_state(fresh, fresh.eval_variables), warn):
                return states
        checkpoints = Checkpoints(folder / "checkpoints", config.keep)
        stack.callback(checkpoints.close)
        best = checkpoints.best_or_newest(fresh, warn)
        return [] if best is None else [best]
