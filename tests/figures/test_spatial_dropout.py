"""The hidden share of dropped units, against a regression on a sample."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from deepjax.figures import Settings
from deepjax.figures import spatial_dropout as experiment


def test_the_hidden_share_is_what_a_regression_leaves():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 6)) @ rng.normal(size=(6, 6))
    kept = np.array([True, False, True, True, False, True])
    rest = x[:, ~kept] - LinearRegression().fit(x[:, kept], x[:, ~kept]).predict(x[:, kept])
    share = rest.var(0).sum() / x[:, ~kept].var(0).sum()
    np.testing.assert_allclose(experiment.hidden_share(np.cov(x, rowvar=False), kept), share, rtol=1e-3)
    assert experiment.hidden_share(np.eye(6), kept) == 1
    assert experiment.hidden_share(np.ones((6, 6)), kept) < 1e-5
    assert experiment.hidden_share(np.ones((6, 6)), np.zeros(6, bool)) == 1


@pytest.mark.slow
def test_the_claim_holds_and_fails_without_correlation():
    numbers = experiment.numbers(Settings(1))
    assert experiment.claim(numbers).holds
    assert np.asarray(numbers.example)[0, 2].tolist() == [[2, 2], [2, 2]]
    assert not np.asarray(numbers.example)[0, :2].any()
    shuffled = numbers.hidden[experiment.WAYS[2]]
    assert not experiment.claim(
        dataclasses.replace(numbers, hidden=numbers.hidden | {experiment.WAYS[0]: shuffled})
    ).holds
    assert not experiment.claim(dataclasses.replace(numbers, example=numbers.example[::-1])).holds
