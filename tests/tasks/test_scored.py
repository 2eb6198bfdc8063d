"""Classification by scores: the updates of the perceptron and of Adaline, and whole runs without probabilities."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from deepjax import cli, inference, linear, training
from deepjax.config import Augment, Config, Data, Devices, Optimizer
from deepjax.errors import InputError
from deepjax.inference.export import stablehlo
from deepjax.tasks.classification import ScoredClassification

CONFIG = Config(
    loss="perceptron",
    model="mlp",
    model_options={"depth": 1, "init": "zeros"},
    optimizer=Optimizer("sgd", learning_rate=1.0),
    devices=Devices(count=1),
    epochs=3,
    batch_size=1,
    eval_batch_size=30,
    best="error",
)


def points(classes, count=90, seed=0, noise=0.4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    angles = 2 * np.pi * labels / classes
    x = np.stack([np.cos(angles), np.sin(angles)], 1) + rng.normal(scale=noise, size=(count, 2))
    return x.astype(np.float32), labels.astype(np.int32)


def arrays(classes=3):
    (x, y), (x_test, y_test) = points(classes, 150), points(classes, 60, seed=1)
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}


def descend(loss, x, labels, classes, rate):
    """Return the weights after one step of gradient descent from zero on each example in turn."""
    task = ScoredClassification(tuple(map(str, range(classes))), loss=loss)

    def step(w, example):
        x, label = example
        gradient = jax.grad(lambda w: task.measure((x @ w)[None], label[None], jnp.ones(1, bool))["loss"])(w)
        return w - rate * gradient, None

    return jax.jit(lambda x, labels: jax.lax.scan(step, jnp.zeros((x.shape[1], classes)), (x, labels))[0])(x, labels)


def test_gradient_steps_of_two_classes_are_the_perceptrons_and_adalines_updates():
    """The classes' weights are those of the binary model and their negatives; class 0 is y = 1, also at 0."""
    x, labels = points(2, noise=0.8)
    x, y, order = np.asarray(linear.with_bias(x)), 1 - 2 * labels, np.arange(len(labels))
    assert y[0] == -1  # from zero it is on the boundary, decided as class 0: a mistake, and a whole update
    w, mistakes = linear.perceptron(x, y, order)
    assert 3 < np.sum(mistakes) < 60
    np.testing.assert_allclose(descend("perceptron", x, labels, 2, 1.0), np.stack([w, -w], 1), rtol=1e-5, atol=1e-5)
    w, _ = linear.adaline(x, y, order, rate=0.1)
    np.testing.assert_allclose(descend("mse", x, labels, 2, 0.05), np.stack([w, -w], 1), rtol=1e-4, atol=1e-6)


def test_the_perceptron_of_several_classes_adds_to_the_label_and_subtracts_from_the_winner():
    x, labels = points(4)
    w = np.zeros((2, 4))
    for row, label in zip(x, labels):
        winner = np.argmax(row @ w)
        w[:, label] += row
        w[:, winner] -= row
    np.testing.assert_allclose(descend("perceptron", x, labels, 4, 1.0), w, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored") / "run"
    helpers.train(CONFIG, folder, arrays=arrays())
    return folder


def scores(run, x):
    params = jax.device_get(run.variables["params"]["head"])
    return np.asarray(run.inputs(x)) @ params["kernel"] + params["bias"]


def test_a_run_is_evaluated_with_its_own_loss_and_without_probabilities(run):
    given = arrays()
    loaded = inference.load_run(run)
    z = scores(loaded, given["x_test"])
    found = inference.evaluate_run(loaded, data=given)
    labels = given["y_test"]
    assert found.loss == pytest.approx(np.mean(z.max(1) - z[np.arange(60), labels]), rel=1e-5)
    assert found.error == np.mean(z.argmax(1) != labels) < 0.15
    assert found.confidences is None
    assert np.isnan(found.calibration_error)
    assert found.above_chance
    assert json.loads((run / "summary.json").read_text())["test_loss"] == pytest.approx(found.loss, rel=1e-5)
    wrong = found._replace(losses=0 * found.losses, classes=np.roll(found.classes, 1, axis=1))
    assert not wrong.above_chance  # a loss of 0 nats would be


def test_scores_are_predicted_exported_and_averaged(run, tmp_path, capsys):
    given, loaded = arrays(), inference.load_run(run)
    x = given["x_test"][:4]
    path = tmp_path / "new.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b"), *x.tolist()])
    z = scores(loaded, x)
    best = np.argsort(-z, 1)
    for row, line, order in zip(z, inference.predict(loaded, [path], top=2), best):
        assert line.classes == tuple(str(k) for k in order[:2])
        assert line.probabilities == pytest.approx(row[order[:2]], rel=1e-5)
        assert line.record["classes"][0].keys() == {"class", "score"}
    assert cli.main(["predict", str(run), str(path), "--csv"]) == 0
    assert "class_1,score_1" in capsys.readouterr().out
    assert cli.main(["predict", str(run), str(path)]) == 0
    assert "%" not in capsys.readouterr().out
    program = jax.export.deserialize(bytearray(stablehlo(loaded)))
    np.testing.assert_allclose(program.call(x), z, rtol=1e-5)
    twice = inference.evaluate_runs([loaded, loaded], data=given)
    assert twice.together.loss == pytest.approx(twice.alone[0].loss, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing 0.1 needs probabilities, and loss perceptron has none"),
        ({"data": Data(augment=Augment(mixup=0.2))}, "mixup 0.2 needs probabilities"),
        ({"loss": "mse", "data": Data(augment=Augment(mixup=0.2))}, "mixup 0.2 needs probabilities, and loss mse"),
        ({"teacher": "resnet18"}, "teacher resnet18 needs probabilities"),
        ({"loss": "huber"}, "loss huber is for task regression, task is classification; leave it out"),
        (
            {"task": "regression", "arrays": arrays() | {"y_train": np.arange(150.0), "y_test": np.arange(60.0)}},
            "loss perceptron is for task classification, task is regression; leave it out",
        ),
        ({"model_options": {"depth": 2, "init": "zeros"}}, "init zeros of depth 2 gives hidden layers no gradient"),
    ],
)
def test_what_needs_probabilities_is_refused_in_one_line(tmp_path, changes, message):
    changes = {"best": "loss", "arrays": arrays()} | changes
    with pytest.raises(InputError, match=message) as caught:
        helpers.train(CONFIG, tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_of_scores_does_not_teach_and_is_not_averaged_with_probabilities(run, tmp_path):
    with pytest.raises(InputError, match="was trained with loss perceptron and has no probabilities; use another"):
        helpers.train(CONFIG, tmp_path / "run", arrays=arrays(), loss="", teacher=str(run))
    helpers.train(CONFIG, tmp_path / "logits", arrays=arrays(), loss="", epochs=1, batch_size=30)
    both = [inference.load_run(folder) for folder in (run, tmp_path / "logits")]
    with pytest.raises(InputError, match="kind of output is scores in one, log_probabilities in the other"):
        inference.evaluate_runs(both, data=arrays())


def test_a_search_compares_scored_candidates(tmp_path):
    np.savez(tmp_path / "set.npz", **arrays())
    name, path = str(tmp_path / "set.npz"), str(tmp_path / "run")
    config = dataclasses.replace(CONFIG, data=Data(name=name), loss="mse", workdir=path, batch_size=15, epochs=2)
    record = training.search(config, {"optimizer.learning_rate": [1e-9, 0.05, 1e30]}, updates=10, log=print)
    assert record["best"] == {"optimizer.learning_rate": 0.05}
