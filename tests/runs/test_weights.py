"""The weights that a run is used with."""

import numpy as np
import pytest

from deepjax.errors import InputError
from deepjax.runs import weights
from deepjax.runs.checkpoint import Weights


def test_weights_that_are_not_finite_are_named(monkeypatch):
    variables = {"params": {"head": {"bias": np.array([1, np.nan, np.inf])}}, "batch_stats": {}}
    monkeypatch.setattr(weights, "_read", lambda *_: [Weights(3, {"params": {"a": np.ones(2)}}), Weights(7, variables)])
    with pytest.raises(InputError, match=r"^workdir run: step 7, params/head/bias: 2 of 3 values are not finite"):
        weights.read_weights("run", None, print)
