"""Tasks: what a model learns. A task holds everything that depends on the kind of examples; the step does not.

A task is an object with these functions. The first three are pure and run inside the compiled step:

  prepare(batch, key) -> (inputs, targets): what the model is called with, and what it is compared with. `key` is None
    in evaluation, where nothing is random.
  measure(outputs, targets, mask) -> sums over the real examples: "loss", "count" (the number of predictions), and
    other metrics. The step divides by the count over all devices.
  rows(outputs, batch) -> arrays with one row per example, for evaluation.

Those that follow receive rows of a whole data set as NumPy arrays:

  evaluated, averaged: names of the rows that `evaluate`, and `average`, need.
  evaluate(rows) -> an evaluation, with `loss`, `metrics` ({"loss": ..., ...}) and `rank` (the lowest is the best).
  average(members) -> one set of rows, of the averaged predictions of several models.
  abstract_batch(dataset, size) -> shapes and dtypes of a batch.
  check_outputs(outputs): raise InputError if the outputs of a user's model, as shapes, do not fit.
  describe(dataset), text(metrics) -> a line for the log.
  figures(evaluation, title) -> {file name: matplotlib figure}.

`tasks/classification.py` is the example to follow.
"""

from deepjax.tasks.classification import Classification, Evaluation

__all__ = ["Classification", "Evaluation"]
