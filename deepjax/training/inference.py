"""A finished (or stopped) run put to use: evaluation on its test set, predictions for image files."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import data
from deepjax.config import Config
from deepjax.errors import InputError
from deepjax.optimizers import make_optimizer
from deepjax.training import experiment, sharding, workdir
from deepjax.training.checkpoint import Checkpoints
from deepjax.training.evaluate import Evaluation
from deepjax.training.state import init_state
from deepjax.training.step import apply_model

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


class Run(NamedTuple):
    """What a workdir holds."""

    config: Config
    model: Any  # Linen module
    variables: Any  # of the best checkpoint by validation, or of the newest where there was no validation
    step: int  # of that checkpoint
    classes: tuple[str, ...]
    shape: tuple[int, ...]  # of one example
    mean: np.ndarray  # f32[channels]
    std: np.ndarray
    fit: str  # how images of another size are brought to `shape`: "whole" or "photograph"


def load_run(folder, warn=print):
    """The Run in a workdir. `warn` is told, a line each, of damaged checkpoints that were passed over.

    Raises InputError where the folder holds no run, or no whole checkpoint.
    """
    config = workdir.read_config(folder)
    record = workdir.read_json(Path(folder) / "data.json")
    model = experiment.make_model(config, len(record["classes"]))
    if not (Path(folder) / "checkpoints").exists():
        raise InputError(f"workdir {folder} has no checkpoint yet; `deepjax train` with --workdir {folder} makes one")
    state = init_state(
        model,
        make_optimizer(config.optimizer, optax.constant_schedule(0.0)),  # only the shape of its state matters
        workdir.key_of(config),
        record["shape"],
        ema=config.ema > 0,
    )
    checkpoints = Checkpoints(Path(folder) / "checkpoints", config.keep)
    try:
        restored = checkpoints.best_or_newest(state, warn)
    finally:
        checkpoints.close()
    if restored is None:
        raise InputError(f"workdir {folder} has no checkpoint yet; `deepjax train` with --workdir {folder} makes one")
    return Run(
        config=config,
        model=model,
        variables=restored.eval_variables,
        step=int(restored.step),
        classes=tuple(record["classes"]),
        shape=tuple(record["shape"]),
        mean=np.asarray(record["mean"], np.float32),
        std=np.asarray(record["std"], np.float32),
        fit=record["fit"],
    )


def evaluate_run(run, *, split="test", data_dir="") -> Evaluation:
    """A Run's Evaluation on a split of its set, read from `data_dir` or from where it was trained.

    Raises InputError where the set is gone, or its classes or shape have changed since.
    """
    config = dataclasses.replace(run.config, data_dir=data_dir or run.config.data_dir)
    dataset = data.load(config.data, config.data_dir, config.seed)
    if dataset.classes != run.classes or dataset.shape != run.shape:
        raise InputError(
            f"data {dataset.name} now has {len(dataset.classes)} classes of shape {dataset.shape}, the run was trained "
            f"on {len(run.classes)} of {run.shape}; use the set it was trained on"
        )
    rows = getattr(dataset, split)
    if not len(rows):
        raise InputError(f"split {split}: {dataset.name} has none in this run")
    devices = sharding.select_devices(1)
    evaluator = experiment.make_evaluator(config, run.model, rows, devices, run.mean, run.std)
    return evaluator(sharding.replicate(run.variables, devices))


class Prediction(NamedTuple):
    """The likeliest classes of one image file, or why it could not be read."""

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""


def predict(run, paths, *, top=5, batch_size=64):
    """Predictions for image files and for the images in folders (not in their subfolders), in order.

    An image that cannot be read gives a Prediction with `problem`; the others are predicted all the same.

    Raises InputError for a folder without images, or a run that was not trained on images.
    """
    if len(run.shape) != 3:
        raise InputError(f"the run was trained on {run.shape[0]} features, not on images; it cannot read image files")
    if top < 1:
        raise InputError(f"top {top} must be at least 1")
    files = [file for path in paths for file in _image_files(Path(path))]

    @jax.jit
    def probabilities(variables, images):
        x = data.standardize(images, run.mean, run.std)
        logits = apply_model(run.model, variables, x, jnp.ones(len(images), bool), train=False)
        return jax.nn.softmax(logits.astype(jnp.float32))

    predictions = []
    for start in range(0, len(files), batch_size):
        images, problems = np.zeros((batch_size, *run.shape), np.uint8), {}
        chunk = files[start : start + batch_size]
        for i, file in enumerate(chunk):
            try:
                images[i] = data.read_image(file, run.shape, run.fit)
            except InputError as error:
                problems[i] = str(error)
        rows = np.asarray(probabilities(run.variables, images))
        for i, file in enumerate(chunk):
            best = np.argsort(-rows[i], kind="stable")[:top]
            predictions.append(
                Prediction(str(file), problem=problems[i])
                if i in problems
                else Prediction(str(file), tuple(run.classes[c] for c in best), tuple(rows[i, best].tolist()))
            )
    return predictions


def _image_files(path):
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise InputError(f"folder {path} has no images ({', '.join(SUFFIXES)})")
        return files
    return [path]
