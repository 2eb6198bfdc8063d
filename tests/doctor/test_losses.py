"""A loss is recognized by its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax import functional
from deepjax.doctor.losses import recognize

N, CLASSES = 24, 3
LABELS = (np.arange(N) % CLASSES).astype(np.int32)
ONE_HOT = np.eye(CLASSES, dtype=np.float32)[LABELS]
BINARY = (np.arange(N) % 2).astype(np.float32)[:, None]
NUMBERS = np.linspace(-2, 5, N, dtype=np.float32)[:, None]


def likelihood(p, t):
    return -jnp.mean(jnp.log(jnp.clip(jnp.take_along_axis(p, t[:, None], 1), 1e-7, 1)))


CASES = {
    "cross entropy of logits": (
        lambda p, t: optax.softmax_cross_entropy_with_integer_labels(p, t).mean(), (N, CLASSES), LABELS, "index"),
    "cross entropy of logits (one-hot)": (
        lambda p, t: optax.softmax_cross_entropy(p, t).mean(), (N, CLASSES), ONE_HOT, "dense"),
    "cross entropy of logits (deepjax)": (
        lambda p, t: functional.cross_entropy(p, t).mean(), (N, CLASSES), LABELS, "index"),
    "cross entropy without normalization": (likelihood, (N, CLASSES), LABELS, "index"),
    "binary cross entropy of logits": (
        lambda p, t: optax.sigmoid_binary_cross_entropy(p, t).mean(), (N, 1), BINARY, "dense"),
    "mean squared error": (lambda p, t: 7 * jnp.mean((p - t) ** 2), (N, 1), NUMBERS, "dense"),
    "mean absolute error": (lambda p, t: jnp.mean(jnp.abs(p - t)), (N, 1), NUMBERS, "dense"),
    "Huber loss": (lambda p, t: optax.huber_loss(p, t).mean(), (N, 1), NUMBERS, "dense"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_known_losses_are_recognized(name):
    loss, shape, targets, form = CASES[name]
    found = recognize(loss, shape, targets, jax.random.key(0))
    assert (found.kind, found.form, found.sums, found.outer) == (name.partition(" (")[0], form, False, False)


def test_a_loss_that_no_prediction_changes_is_constant():
    found = recognize(
        lambda p, t: -jnp.mean(t * jnp.log(p / p.sum(-1, keepdims=True))), (N, 1), BINARY, jax.random.key(0)
    )
    assert found.kind == "constant"


def test_an_unknown_loss_of_logits_is_seen_to_be_one_of_logits():
    def focal(p, t):
        q = jax.nn.softmax(p)
        right = jnp.take_along_axis(q, t[:, None], 1)
        return jnp.mean(-((1 - right) ** 2) * jnp.log(right))

    found = recognize(focal, (N, CLASSES), LABELS, jax.random.key(0))
    assert (found.kind, found.expects) == ("other", "logit")


@pytest.mark.parametrize(
    ("loss", "expects"),
    [
        (lambda p, t: jnp.mean(jnp.log(p) + t / p), "rate"),  # gamma deviance
        (lambda p, t: jnp.mean((jnp.sqrt(p) - t) ** 2), "rate"),
        (lambda p, t: jnp.mean(-t * (1 - p) ** 2 * jnp.log(p) - (1 - t) * p**2 * jnp.log(1 - p)), ""),  # focal
        (lambda p, t: jnp.mean((p - t) ** 4), ""),
    ],
)
def test_a_loss_of_positive_numbers_is_seen_to_be_one(loss, expects):
    found = recognize(loss, (N, 1), NUMBERS, jax.random.key(0))
    assert (found.kind, found.expects) == ("other", expects)


def test_a_focal_loss_of_probabilities_is_not_one_of_numbers():
    def focal(p, t):
        q = jnp.take_along_axis(p, t[:, None], 1)
        return -jnp.mean((1 - q) ** 2 * jnp.log(q))

    def focal_of_one_hot(p, t):
        return -jnp.mean(t * (1 - p) ** 2 * jnp.log(p))

    for loss, targets in ((focal, LABELS), (focal_of_one_hot, ONE_HOT)):
        found = recognize(loss, (N, CLASSES), targets, jax.random.key(0))
        assert (found.kind, found.expects) == ("other", "")


def test_a_sum_over_the_examples_is_told_from_a_mean():
    assert recognize(lambda p, t: jnp.sum((p - t) ** 2), (N, 1), NUMBERS, jax.random.key(0)).sums
    per_example = recognize(lambda p, t: jnp.sum((p - t) ** 2, -1).mean(), (N, CLASSES), ONE_HOT, jax.random.key(0))
    assert not per_example.sums
    assert per_example.per_output == pytest.approx(CLASSES, rel=1e-4)


def test_shapes_that_broadcast_to_all_pairs_are_seen():
    def loss(p, t):
        return jnp.mean((p - t) ** 2)

    with jax.numpy_rank_promotion("allow"):  # the tests forbid what is tested here
        assert recognize(loss, (N, 1), NUMBERS[:, 0], jax.random.key(0)).outer
    assert not recognize(loss, (N, 1), NUMBERS, jax.random.key(0)).outer
