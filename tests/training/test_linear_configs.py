"""The configs of the linear models, each against scikit-learn's or deepjax.linear's model on the same split."""

import dataclasses
import runpy
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier

import helpers
from deepjax import inference, linear
from deepjax.cli.configs import configs
from deepjax.config import Devices


def trained(folder, name, **changes) -> Any:
    config = runpy.run_path(str(configs()[name]))["config"]
    optimizer = dataclasses.replace(config.optimizer, **changes.pop("optimizer", {}))
    helpers.train(config, folder / name, optimizer=optimizer, devices=Devices(count=1), **changes)
    return inference.load_run(folder / name)


def split(run, part="train"):
    """Return (standardized features, labels) of a split of the run's data set."""
    found = getattr(helpers.load_data(run.config.data.name), part)
    return np.asarray(run.inputs(found.images)).reshape(len(found), -1), found.labels


@pytest.mark.parametrize(("name", "decay"), [("linear_regression", 0.0), ("ridge_regression", 1.0)])
def test_closed_forms_are_scikit_learns_and_full_batches_stay_there(tmp_path, name, decay):
    run = trained(tmp_path, name, init="least_squares", batch_size=300, epochs=2)
    assert run.config.optimizer.weight_decay == decay
    (x, y), (x_test, _) = split(run), split(run, "test")
    expected = Ridge(300 * decay / 2).fit(x.astype(float), y).predict(x_test)
    assert_allclose(inference.evaluate_run(run).predictions, expected, rtol=1e-3)


@pytest.mark.slow
def test_sgd_ends_near_the_closed_forms(tmp_path):
    for name, reference in (("linear_regression", LinearRegression()), ("ridge_regression", Ridge(150.0))):
        run = trained(tmp_path, name, epochs=10)
        (x, y), (x_test, y_test) = split(run), split(run, "test")
        found = inference.evaluate_run(run)
        assert abs(found.metrics["r2"] - reference.fit(x, y).score(x_test, y_test)) < 0.05


@pytest.mark.slow
def test_adaline_in_closed_form_is_a_ridge_classifier_without_penalty(tmp_path):
    run = trained(tmp_path, "adaline", init="least_squares", batch_size=1297, epochs=1)
    (x, y), (x_test, y_test) = split(run), split(run, "test")
    reference = RidgeClassifier(1e-6).fit(x.astype(float), y)
    found = inference.evaluate_run(run)
    assert abs(found.error - (1 - reference.score(x_test, y_test))) < 0.01
    signs = 2 * np.eye(10)[y_test] - 1
    squares = np.square(reference.decision_function(x_test) - signs).sum(1)
    assert_allclose(found.loss, squares.mean(), rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logistic_regression", "softmax_regression"])
def test_regressions_of_classes_reach_scikit_learns_errors(tmp_path, name):
    run = trained(tmp_path, name)
    (x, y), (x_test, y_test) = split(run), split(run, "test")
    reference = LogisticRegression(C=1e3 if name == "logistic_regression" else 1.0, max_iter=1000).fit(x, y)
    assert abs(inference.evaluate_run(run).error - (1 - reference.score(x_test, y_test))) < 0.02


@pytest.mark.slow
def test_the_kernel_perceptron_is_as_good_in_its_features(tmp_path):
    run = trained(tmp_path, "kernel_perceptron", epochs=3)
    (x, y), (x_test, y_test) = split(run), split(run, "test")
    gram = linear.polynomial_kernel(x, x, degree=3)
    errors = []
    for seed in range(5):
        order = np.concatenate([np.random.default_rng((seed, epoch)).permutation(1000) for epoch in range(3)])
        a, _ = linear.kernel_perceptron(gram, 1 - 2 * y, order)
        decisions = linear.sign(linear.polynomial_kernel(x_test, x, degree=3) @ a)
        errors.append(np.mean(decisions != 1 - 2 * y_test))
    assert inference.evaluate_run(run).error < max(errors) + 0.02


@pytest.mark.slow
def test_the_rbf_network_learns_xor_and_a_line_does_not(tmp_path):
    assert inference.evaluate_run(trained(tmp_path / "rbf", "rbf_network")).error < 0.06
    line = trained(tmp_path / "line", "rbf_network", model="mlp", model_options={"depth": 1}, init="model", epochs=3)
    assert inference.evaluate_run(line).error > 0.3
