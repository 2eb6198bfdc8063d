"""Evaluation of finished or unfinished runs on their own data: one run, or several averaged."""

from typing import Any, NamedTuple

import numpy as np

from deepjax import data
from deepjax.data import sources
from deepjax.data.loading import as_wanted
from deepjax.data.views import COUNTS as VIEWS
from deepjax.errors import InputError, choices
from deepjax.foreign import check_finite
from deepjax.inference.run import Run
from deepjax.parallel import make_mesh
from deepjax.runs import workdir
from deepjax.training import setup
from deepjax.training.averaging import mean_parameters

AVERAGES = ("predictions", "weights")
SPLITS = ("train", "validation", "test")


class Evaluated(NamedTuple):
    """Evaluations of several runs, or of the snapshots of one, on one data set, as their task's `evaluate` returns."""

    together: Any
    alone: list  # of each run; if there is only one run, of each of its members
    examples: Any  # data.Arrays or data.Records, on which they were evaluated


def evaluate_run(run, *, split="test", views=1, data_dir="", data=None) -> Any:
    """Return a Run's evaluation on a split of its data set, read from `data_dir` or from the recorded folder.

    `views`: as in `evaluate_runs`. `data`: the data set, if `train` was called with `data=`.

    Raise InputError if the data set is missing, or its classes or shape have changed since.
    """
    return evaluate_runs([run], split=split, views=views, data_dir=data_dir, data=data).together


def evaluate_runs(runs, *, average="predictions", split="test", views=1, data_dir="", data=None) -> Evaluated:
    """Return Evaluations of runs on one split of their data set, each alone and all together.

    Args:
      runs: of the same data set. A run of snapshots counts as one, by the mean of its snapshots.
      average: "predictions": the mean of softmax probabilities, or of predicted numbers; each run standardizes images
        in its own way.
        "weights": the mean of parameters, with batch norms' moments estimated again (see `average_weights`).
      split: "test", "validation" or "train".
      views: views of each image whose predictions are averaged: 1, 2 (the image and its mirror image), 5 (corners and
        center, enlarged) or 10 (these and their mirror images).
      data_dir: folder of the data set, if other than the folder that the first run has recorded.
      data: the data set, if `train` was called with `data=`.

    Raises:
      InputError: average or split is unknown; the data set is missing, or its classes or shape have changed since; the
        runs are of different data sets, or of different splits of one; for weights, of different networks.
    """
    for name, value, valid in (("average", average, AVERAGES), ("split", split, SPLITS)):
        if value not in valid:
            raise InputError(f"{name} {value!r} is unknown; {choices(str(value), valid)}")
    if views not in VIEWS:
        raise InputError(f"views {views} is unknown; choose from {', '.join(map(str, VIEWS))}")
    if views > 1 and (len(runs[0].shape) != 3 or not hasattr(runs[0].task, "average_views")):
        raise InputError(f"views {views}: needs images, and a task that averages views; leave it 1 for this run")
    first, dataset = runs[0], load_dataset(runs[0], data_dir, data)
    rows = getattr(dataset, split)
    if not len(rows):
        raise InputError(f"split {split}: {dataset.name} has none in this run")
    for other in runs[1:]:
        _check_alike(first, other)
        if not _same(rows, getattr(load_dataset(other, data_dir, data), split)):
            raise InputError(
                f"split {split} of {first.config.workdir} differs from that of {other.config.workdir}: their "
                f"seed, data.validation or data.test differs; evaluate a split that both share, or one run at a time"
            )
    merged = average_weights(runs, dataset.train) if average == "weights" else None
    task, found = first.task, [_rows(run, rows, views) for run in runs]
    parts = found[0] if len(runs) == 1 else [task.average(members) for members in found]
    together = task.average(_rows(merged, rows, views) if merged else parts)
    return Evaluated(task.evaluate(together), [task.evaluate(part) for part in parts], rows)


def load_dataset(run, data_dir="", given=None) -> data.Dataset:
    """Return the data set that a Run was trained on; the arguments are those of `evaluate_runs`."""
    wanted, folder, dataset = run.config.data, data_dir or run.config.data_dir, data.as_dataset(given)
    if dataset is None:
        try:
            sources.find(as_wanted(wanted, folder))
        except InputError as error:
            raise InputError(f"{error}; for a run of train(..., data=...), pass evaluate_run(..., data=...)") from None
    dataset = data.load(wanted, folder, run.config.seed, given=dataset)
    if dataset.classes != run.classes or dataset.shape != run.shape:
        raise InputError(
            f"data {dataset.name} now has {len(dataset.classes)} classes of shape {dataset.shape}, the run was trained "
            f"on {len(run.classes)} of {run.shape}; use the data set it was trained on"
        )
    if dataset.drawn and workdir.has_changed(run.config.workdir, dataset):
        raise InputError(
            f"the examples of {dataset.name} have changed since {run.config.workdir} was trained, so that some of its "
            f"training examples would be drawn for testing; restore them; to test on new images, give a folder "
            f"with train/CLASS and test/CLASS"
        )
    return dataset


def _check_alike(first, other):
    """Raise InputError if two runs cannot be averaged, with the first reason."""
    for name, one, two in (
        ("data.name", first.config.data.name, other.config.data.name),
        ("shape of an example", first.shape, other.shape),
        ("data.center_crop", first.config.data.center_crop, other.config.data.center_crop),
        ("classes", first.classes, other.classes),
        ("kind of output", first.task.averaged[-1], other.task.averaged[-1]),
    ):
        if one != two:
            raise InputError(
                f"{first.config.workdir} and {other.config.workdir} cannot be averaged: {name} is {one} in one, {two} "
                f"in the other; average runs of one data set"
            )


def _same(rows, others):
    """Return whether two splits of a data set hold the same examples; seeds draw splits."""
    if isinstance(rows, data.Arrays):
        return np.array_equal(rows.images, others.images)
    return rows.names() == others.names()


def _rows(run, split, views):
    """Return the rows of each member that averaging needs. Raise InputError if they are not finite."""
    mesh = make_mesh(1)
    evaluator = setup.make_evaluator(run.config, run.model, run.task, split, mesh, views)
    members = [evaluator.rows(mesh.replicate(member), run.task.averaged) for member in run.members]
    for rows in members:
        check_finite(rows, f"{run.config.workdir}: the outputs")
    return members


def average_weights(runs, train) -> Run:
    """Return the Run whose parameters are the mean of several runs' (for each run, the mean over its members).

    Everything else is the first run's: options, standardization, batch size. Batch norms' moments are estimated by one
    pass over `train`, a training set, because no run's moments fit. A single member is returned as it is.

    Raises:
      InputError: parameters differ in name or shape, or the runs standardize examples or targets differently.
    """
    first = runs[0]
    for other in runs[1:]:
        _check_standardization(first, other)
    if len(runs) == len(first.members) == 1:
        return first
    names = [run.config.workdir for run in runs]
    means = [
        mean_parameters([member["params"] for member in run.members], [run.config.workdir] * len(run.members))
        for run in runs
    ]
    variables = {"params": mean_parameters(means, names), "batch_stats": first.variables["batch_stats"]}
    mesh = make_mesh(1)
    estimate = setup.make_moment_estimator(first.config, first.model, first.task, train, mesh)
    return first._replace(members=(estimate(mesh.replicate(variables)),), steps=(first.step,))


def _check_standardization(first, other):
    """Raise InputError if two runs standardize differently; statistics of two seeds' training sets differ a little."""
    one, two = first.standardizer, other.standardizer
    alike = one.kind == two.kind and one.shift.shape == two.shift.shape and one.scale.shape == two.scale.shape
    if alike and one.basis is None:
        alike = bool(
            np.all(np.abs(one.shift - two.shift) <= 0.05 * one.scale) and np.allclose(one.scale, two.scale, 0.05)
        )
    elif alike:  # directions of nearly equal variance are arbitrary
        alike = all(np.array_equal(mine, its) for mine, its in zip(one[1:], two[1:], strict=True))
    mean, deviation = np.reshape(first.target or (0, 1), 2)
    alike = alike and len(first.target) == len(other.target)
    alike = alike and bool(np.allclose(other.target or (0, 1), (mean, deviation), rtol=0, atol=0.05 * deviation))
    if not alike:
        raise InputError(
            f"weights of {first.config.workdir} and {other.config.workdir} cannot be averaged: their standardization "
            f"of examples or targets differs ({one.kind} and {two.kind}); average predictions"
        )
