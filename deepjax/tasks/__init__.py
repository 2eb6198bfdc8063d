"""Tasks: what a model learns. A task holds everything that depends on the kind of examples; the step does not.

A task is an object with these functions. Those up to `average_views` are pure:

- prepare(batch, key) -> (inputs, targets): what the model is called with, and what it is compared with. `key` is None
  in evaluation, where nothing is random.
- measure(outputs, targets, mask) -> sums over the real examples: "loss", "count" (the number of predictions), and
  other metrics. The step divides by the count over all devices.
- numbers(targets, outputs) -> f32[batch, outputs], what init least_squares fits the last layer to. A task may lack it.
- rows(outputs, batch) -> arrays with one row per example, for evaluation.
- average_views(outputs) -> outputs [batch, ...] of the mean over several views, [views, batch, ...]. A task may lack
  it: then evaluation refuses more than one view.

Those that follow receive rows of a whole data set as NumPy arrays:

- evaluated, averaged: names of the rows that `evaluate`, and `average`, need.
- evaluate(rows) -> an evaluation, with `loss` and `metrics` ({"loss": ..., ...}). If it has
  `above_chance`, a search leaves out candidates for which that is False.
- average(members) -> one set of rows, of the averaged predictions of several models.
- abstract_batch(dataset, size) -> shapes and dtypes of a batch.
- check_outputs(outputs): raise InputError if the outputs of a user's model, as shapes, do not fit.
- describe(dataset), text(metrics) -> a line for the log.
- figures(evaluation, title, split) -> {file name: matplotlib figure}; `split` holds the examples.

Image files and rows of CSV files are predicted, networks are exported, and runs are drawn, by

- predicted(outputs) -> what is averaged over networks and crops; pure.
- exported(outputs) -> what an exported program returns, from the outputs of its networks [networks, batch, ...]; pure.
- predictions(paths, values, top, problems) -> for each path a prediction with `problem`, `path`, `texts`, `record` and
  `row`.
- curves: {metric: plots.Curve}: how metrics are drawn over epochs. "loss" must be among them,
  and "error" if `config.best` may be error.

A task is a module with

- outputs(classes, shape) -> the number of outputs of a network from the zoo.
- fit_statistics(config, dataset, source) -> the Statistics of the training set; that of `tasks.inputs` suits all.
- of_config(config, dataset, statistics, model) -> the task of a new run. Raises InputError for fields that it does not
  use.
- of_record(run) -> the task of a finished run, from its config, classes, shape and standardizer. `run.inputs` turns
  examples into what the network gets, data.center_crop included.

and one line in TASKS. `tasks/regression.py` is the example to follow.
"""

from typing import Any

from deepjax.errors import InputError, choices
from deepjax.tasks import classification, regression
from deepjax.tasks.classification import Classification
from deepjax.tasks.evaluation import Evaluation
from deepjax.tasks.regression import Regression

__all__ = ["TASKS", "Classification", "Evaluation", "Regression", "find", "rank"]

TASKS: dict[str, Any] = {"classification": classification, "regression": regression}
"""Modules by the names that config.task takes."""


def rank(metrics, best):
    """Return a list of numbers: of two sets of metrics, the one with the lower list is better.

    Args:
      metrics: of an evaluation, with "loss".
      best: name of the metric that counts, as of config.best. The loss decides between equal ones.

    >>> rank({"error": 0.1, "loss": 2.0}, "error") < rank({"error": 0.1, "loss": 3.0}, "error")
    True
    """
    return [metrics[name] for name in dict.fromkeys((best, "loss"))]


def find(name):
    """Return the module of a task. Raises InputError if there is none of that name."""
    if name not in TASKS:
        raise InputError(f"task {name!r} is unknown; {choices(name, TASKS)}")
    return TASKS[name]
