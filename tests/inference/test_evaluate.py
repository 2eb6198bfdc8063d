"""Evaluation of runs."""

from types import SimpleNamespace

import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.inference import evaluate


def test_outputs_that_are_not_finite_are_no_evaluation(monkeypatch):
    rows = {"label": np.array([0, 1]), "log_probabilities": np.array([[-0.1, -2.0], [np.nan, np.nan]])}
    monkeypatch.setattr(evaluate.setup, "make_evaluator", lambda *_: SimpleNamespace(rows=lambda *_: rows))
    config, task = SimpleNamespace(workdir="runs/a"), SimpleNamespace(averaged=tuple(rows))
    run = SimpleNamespace(config=config, model=None, task=task, members=({},))
    with pytest.raises(InputError, match="^runs/a: the outputs log_probabilities: 2 of 4 values are not finite"):
        evaluate._rows(run, None, 1)
