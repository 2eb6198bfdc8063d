"""Finished (or stopped) runs put to use: evaluation on their test set, alone or averaged."""

from typing import NamedTuple

import numpy as np

from deepjax import data
from deepjax.errors import InputError
from deepjax.training import experiment, sharding
from deepjax.training.averaging import mean_parameters
from deepjax.training.evaluate import Evaluation, of_probabilities, together
from deepjax.training.predict import Classifier, Prediction, load_classifier, predict
from deepjax.training.run import Run, load_run

__all__ = [
    "Classifier",
    "Evaluated",
    "Prediction",
    "Run",
    "average_weights",
    "evaluate_run",
    "evaluate_runs",
    "load_classifier",
    "load_run",
    "predict",
]


class Evaluated(NamedTuple):
    """What several runs, or the snapshots of one, say of a set."""

    together: Evaluation
    alone: list[Evaluation]  # of each run; where there is but one run, of each of its members


def evaluate_run(run, *, split="test", data_dir="") -> Evaluation:
    """A Run's Evaluation on a split of its set, read from `data_dir` or from where it was trained.

    Raises InputError where the set is gone, or its classes or shape have changed since.
    """
    return evaluate_runs([run], split=split, data_dir=data_dir).together


def evaluate_runs(runs, *, average="predictions", split="test", data_dir="") -> Evaluated:
    """Evaluations of runs on one split of their set, each alone and all together.

    Args:
      runs: of the same set. A run of snapshots speaks as one, by the mean of its snapshots.
      average: "predictions": the mean of softmax probabilities; each run standardizes images its own way.
        "weights": the mean of parameters, with batch norms' moments estimated anew (see `average_weights`).
      split: "test", "validation" or "train".
      data_dir: where the set is, if not where the first run found it.

    Raises:
      InputError: the set is gone, or its classes or shape have changed since; the runs are of different sets, or of
        different splits of one; for weights, of different networks.
    """
    first, dataset = runs[0], _dataset(runs[0], data_dir)
    rows = getattr(dataset, split)
    if not len(rows):
        raise InputError(f"split {split}: {dataset.name} has none in this run")
    for other in runs[1:]:
        _check_alike(first, other)
        if split != "test" and not _same(rows, getattr(_dataset(other, data_dir), split)):
            raise InputError(
                f"split {split} of {first.config.workdir} differs from that of {other.config.workdir}, as their seeds "
                f"or data.validation do; --split test is the same for both"
            )
    if average == "weights":
        merged = average_weights(runs, dataset.train)
    answers = [_answers(run, rows) for run in runs]
    parts = answers[0] if len(runs) == 1 else [_mean(members) for members in answers]
    mean = _mean(_answers(merged, rows) if average == "weights" else parts)
    return Evaluated(of_probabilities(rows.labels, mean), [of_probabilities(rows.labels, part) for part in parts])


def _dataset(run, data_dir):
    """The set that a Run was trained on."""
    dataset = data.load(run.config.data, data_dir or run.config.data_dir, run.config.seed)
    if dataset.classes != run.classes or dataset.shape != run.shape:
        raise InputError(
            f"data {dataset.name} now has {len(dataset.classes)} classes of shape {dataset.shape}, the run was trained "
            f"on {len(run.classes)} of {run.shape}; use the set it was trained on"
        )
    return dataset


def _check_alike(first, other):
    """Raises InputError naming the first thing that keeps two runs from being averaged."""
    for name, one, two in (
        ("data.name", first.config.data.name, other.config.data.name),
        ("image shape", first.shape, other.shape),
        ("classes", first.classes, other.classes),
    ):
        if one != two:
            raise InputError(
                f"{first.config.workdir} and {other.config.workdir} cannot be averaged: {name} is {one} in one, {two} "
                f"in the other; average runs of one set"
            )


def _same(rows, others):
    """Whether two splits of one set hold the same examples; the seed draws those that the set has not."""
    which = "images" if isinstance(rows, data.Arrays) else "indices"
    return np.array_equal(getattr(rows, which), getattr(others, which))


def _answers(run, rows):
    """Log probabilities [examples, classes] of each member."""
    devices = sharding.select_devices(1)
    evaluator = experiment.make_evaluator(run.config, run.model, rows, devices, run.standardizer)
    return [evaluator.log_probabilities(sharding.replicate(member, devices))[1] for member in run.members]


def _mean(log_probabilities):
    *_, mean = together(log_probabilities)
    return mean


def average_weights(runs, train) -> Run:
    """The Run whose parameters are the mean of several runs' (of each the mean over its members).

    Everything else is the first run's: options, standardization, batch size. Batch norms' moments are estimated by one
    pass over `train`, a training set, as those of no run fit. A single member comes back as it is.

    Raises:
      InputError: parameters differ in name or shape, or the runs standardize images differently.
    """
    first = runs[0]
    for other in runs[1:]:
        _check_standardization(first, other)
    if len(runs) == len(first.members) == 1:
        return first
    names = [run.config.workdir for run in runs]
    own = [mean_parameters([m["params"] for m in run.members], [run.config.workdir] * len(run.members)) for run in runs]
    variables = {"params": mean_parameters(own, names), "batch_stats": first.variables["batch_stats"]}
    devices = sharding.select_devices(1)
    estimate = experiment.make_moment_estimator(first.config, first.model, train, devices, first.standardizer)
    return first._replace(members=(estimate(sharding.replicate(variables, devices)),), steps=(first.step,))


def _check_standardization(first, other):
    """Statistics of training sets drawn by two seeds differ a little; other preprocessing differs by far."""
    one, two = first.standardizer, other.standardizer
    alike = one.kind == two.kind and one.shift.shape == two.shift.shape and one.scale.shape == two.scale.shape
    if alike and one.basis is None:
        alike = bool(
            np.all(np.abs(one.shift - two.shift) <= 0.05 * one.scale) and np.allclose(one.scale, two.scale, 0.05)
        )
    elif alike:  # directions of little variance turn freely
        alike = all(np.array_equal(mine, its) for mine, its in zip(one[1:], two[1:], strict=True))
    if not alike:
        raise InputError(
            f"weights of {first.config.workdir} and {other.config.workdir} cannot be averaged: their standardization "
            f"of images differs ({one.kind} and {two.kind}); average predictions"
        )
