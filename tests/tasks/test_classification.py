"""Classification: losses, metrics and averages, held against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from deepjax import data
from deepjax.errors import InputError
from deepjax.tasks import Classification, Evaluation

KEY = jax.random.key(0)


def batch_of(size, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 2, (size, classes)).astype(np.float32), rng.integers(0, classes, size)
    return logits, labels, rng.random(size) < 0.7


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_error_are_sums_over_real_rows_of_all_heads(smoothing):
    logits, labels, mask = batch_of(20)
    task = Classification(tuple("abcd"), smoothing=smoothing, auxiliary_weight=0.3)
    sums = task.measure((logits, 2 * logits, -logits), labels, mask)
    targets = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    losses = [-(targets * log_softmax(k * logits.astype(np.float64), -1)).sum(-1)[mask].sum() for k in (1, 2, -1)]
    np.testing.assert_allclose(sums["loss"], losses[0] + 0.3 * (losses[1] + losses[2]), rtol=1e-5)
    assert float(sums["error"]) == (logits.argmax(-1) != labels)[mask].sum()
    assert float(sums["count"]) == mask.sum()
    with pytest.raises(InputError, match="returns 2 auxiliary outputs"):
        dataclasses.replace(task, auxiliary_weight=0.0).measure((logits, logits, logits), labels, mask)


def test_a_mixed_target_counts_its_largest_share():
    logits, labels, mask = batch_of(20)
    targets = 0.6 * np.eye(4)[labels] + 0.4 * np.eye(4)[labels[::-1]]
    sums = Classification(tuple("abcd")).measure(logits, jnp.asarray(targets), mask)
    assert float(sums["error"]) == (logits.argmax(-1) != targets.argmax(-1))[mask].sum()
    np.testing.assert_allclose(sums["loss"], -(targets * log_softmax(logits, -1)).sum(-1)[mask].sum(), rtol=1e-5)


def test_inputs_are_augmented_and_mixed_in_training_only():
    task = Classification(
        ("a", "b"),
        standardize=lambda image: image / 2,
        augment=lambda key, image: image + jax.random.uniform(key),
        mix=lambda key, x, label, mask: (x, jax.random.uniform(key)),
    )
    batch = {"image": jnp.ones((2, 3)), "label": jnp.array([0, 1]), "mask": jnp.ones(2, bool)}
    image, label = task.prepare(batch)
    np.testing.assert_array_equal(image, 0.5 * np.ones((2, 3)))
    assert label is batch["label"]
    image, target = task.prepare(batch, KEY)
    # The constants are part of a run's numbers: 0 augments, 2 mixes.
    np.testing.assert_array_equal(image, 1 + jax.random.uniform(jax.random.fold_in(KEY, 0)) * jnp.ones((2, 3)))
    assert target == jax.random.uniform(jax.random.fold_in(KEY, 2))


def test_an_evaluation_is_above_chance_if_its_errors_or_its_losses_are():
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(4), [600, 200, 100, 100])
    shares = np.tile(np.log([0.6, 0.2, 0.1, 0.1]), (1000, 1))
    right = np.eye(4)[labels]

    def above(logs):
        return Classification.evaluate({"label": labels, "log_probabilities": log_softmax(logs, -1)}).above_chance

    assert not above(shares)  # the best that is possible without looking
    assert not above(0 * shares)
    assert not any(above(shares + rng.normal(size=shares.shape)) for _ in range(20))
    assert above(shares + right)  # fewer errors
    assert above(shares + 0.1 * right)  # the same errors, but lower losses
    assert above(np.where(rng.random((1000, 1)) < 0.7, 30 * right, 30 * np.eye(4)[0]))  # fewer errors, high losses


def test_an_evaluation_counts_errors_and_confusion():
    logits, labels, _ = batch_of(50, classes=7)
    task = Classification(tuple("abcdefg"))
    rows = jax.device_get(task.rows(logits, {"label": labels}))
    found, again = (task.evaluate({name: rows[name] for name in names}) for names in (task.evaluated, task.averaged))
    order = np.argsort(-logits, -1)
    assert found.error == again.error == np.mean(order[:, 0] != labels)
    assert found.top5_error == np.mean((order[:, :5] != labels[:, None]).all(-1))
    expected = -log_softmax(logits.astype(np.float64), -1)[np.arange(50), labels]
    np.testing.assert_allclose([found.loss, again.loss], expected.mean(), rtol=1e-5)
    counts = found.confusion(8)
    assert counts.sum() == 50
    np.testing.assert_allclose(1 - np.trace(counts) / 50, found.error)
    errors = found.class_errors(8)
    np.testing.assert_allclose(errors[2], np.mean(order[labels == 2, 0] != 2))
    assert np.isnan(errors[7])


def test_errors_of_very_many_classes_need_no_matrix():
    """Of their square, 200,000 classes would need 320 GB."""
    rng, classes = np.random.default_rng(0), 200_000
    labels, predicted = rng.integers(0, 50, 300), rng.integers(0, 50, (300, 5)).astype(np.int32)
    found = Evaluation(labels, np.zeros(300, np.float32), predicted)
    errors = found.class_errors(classes)
    expected = [np.mean(predicted[labels == k, 0] != k) for k in range(50)]
    np.testing.assert_allclose(errors[:50], expected)
    assert np.isnan(errors[50:]).all()
    shown = [7, 3, 40]
    whole = found.confusion(50)
    np.testing.assert_array_equal(found.confusion(classes, shown), whole[np.ix_(shown, shown)])
    points = data.Arrays(np.zeros((300, 2), np.float32), labels)  # no images, so nothing else is drawn
    axes = Classification(tuple(map(str, range(classes)))).figures(found, "title", points)["confusion.png"].axes[0]
    names = [int(label.get_text()) for label in axes.get_yticklabels()]
    wrong = whole.sum(1) - np.diag(whole)
    assert names == sorted(range(50), key=lambda k: -wrong[k])[:30]
    assert axes.figure.get_suptitle() == "title\nthe 30 of 200,000 classes with the most wrong predictions"
    whole = Classification(tuple(map(str, range(100)))).figures(found, "", points)["confusion.png"]
    assert len(whole.axes[0].images[0].get_array()) == 100


def test_predictions_together_are_the_mean_of_probabilities_without_underflow():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (4, 50, 7)), rng.integers(0, 7, 50)
    logits[:, 0] *= 300  # probabilities of e**-900 in every model
    logs = logits - logsumexp(logits, -1, keepdims=True)
    rows = [{"label": labels, "log_probabilities": each} for each in logs.astype(np.float32)]
    for count in range(1, 5):
        averaged = Classification.average(rows[:count])
        mean, result = averaged["log_probabilities"], Classification.evaluate(averaged)
        exact = logsumexp(logs[:count], 0) - np.log(count)
        np.testing.assert_allclose(mean, exact, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(result.loss, -np.mean(exact[np.arange(50), labels]), rtol=1e-5)
        likely = softmax(logits[:count], -1).mean(0)
        assert result.error == np.mean(likely.argmax(-1) != labels)
        assert result.top5_error == np.mean([label not in np.argsort(-p)[:5] for p, label in zip(likely, labels)])
