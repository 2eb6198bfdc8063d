"""What does not fit between targets, outputs and loss is named before anything is trained for long."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepjax.doctor.causes import data, output
from deepjax.doctor.changes import fitting_loss
from deepjax.doctor.evidence import Evidence
from deepjax.doctor.facts import describe_targets, quality
from deepjax.doctor.losses import recognize
from deepjax.doctor.subject import subject

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 5)).astype(np.float32)
SIGNS = np.where(X[:, :1] > 0, 1, -1).astype(np.float32)
LABELS = (X[:, :3] > 0).astype(np.float32)
NUMBERS = (X @ RNG.normal(size=(5, 3))).astype(np.float32)
SHARES = np.exp(NUMBERS) / np.exp(NUMBERS).sum(1, keepdims=True)
CLASSES = NUMBERS.argmax(1).astype(np.int32)


def squared(p, t):
    return jnp.mean((p - t) ** 2)


def binary_of_logits(p, t):
    return optax.sigmoid_binary_cross_entropy(p, t).mean()


def binary(p, t):
    p = jnp.clip(p, 1e-7, 1 - 1e-7)
    return -jnp.mean(t * jnp.log(p) + (1 - t) * jnp.log(1 - p))


def rewarded(p, t):
    return -optax.softmax_cross_entropy_with_integer_labels(p, t).mean()


def poisson(p, t):
    return jnp.mean(p - t * jnp.log(p + 1e-8))


def poisson_of_logs(p, t):
    return jnp.mean(jnp.exp(p) - t * p)


def net(outputs, last=lambda x: x):
    return nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(outputs), last])


def codes(model, targets, loss):
    with jax.numpy_rank_promotion("allow"):
        made = subject(model, (X, targets), loss, optimizer=optax.sgd(1e-4), batch_size=32, epochs=1)
        evidence = Evidence(made, jax.random.key(0), 1.0)
        return [each.finding.code for cause in (*data.CAUSES, *output.CAUSES) for each in cause(evidence)]


@pytest.mark.parametrize(
    ("model", "targets", "loss", "expected"),
    [
        (net(1), SIGNS, binary_of_logits, ["wrong_label_encoding"]),
        (net(1), SIGNS + 1, binary_of_logits, ["wrong_label_encoding"]),
        (net(3, nn.softmax), LABELS, binary, ["wrong_output_activation"]),
        (net(3), CLASSES, rewarded, ["wrong_loss"]),
        (net(3), RNG.poisson(np.exp(NUMBERS)), poisson, ["missing_output_activation"]),
        (net(1), RNG.poisson(np.exp(NUMBERS[:, :1])), poisson, ["missing_output_activation"]),
        (net(1), RNG.poisson(np.exp(NUMBERS[:, :1])), poisson_of_logs, []),
        (net(3, nn.softplus), RNG.poisson(np.exp(NUMBERS)), poisson, []),
        (net(3, jnp.exp), RNG.poisson(np.exp(NUMBERS)), poisson, []),
        (net(3), CLASSES + 1, lambda p, t: -rewarded(p, t), ["wrong_label_encoding"]),
        (net(2), CLASSES, lambda p, t: -rewarded(p, t), ["wrong_output_units"]),
        (net(1), NUMBERS, squared, ["wrong_output_units"]),
        (net(3, nn.sigmoid), SHARES, squared, ["wrong_output_activation", "wrong_loss"]),
        (net(3, nn.sigmoid), NUMBERS, squared, ["wrong_output_activation", "targets_not_scaled"]),
        (net(1, nn.tanh), LABELS[:, :1], squared, ["wrong_output_activation", "wrong_loss"]),
        (net(1), LABELS[:, :1], binary_of_logits, []),
        (net(3), LABELS, binary_of_logits, []),
        (net(3), LABELS, lambda p, t: optax.softmax_cross_entropy(p, t).mean(), ["wrong_loss"]),
        (net(3), NUMBERS, squared, []),
        (net(3), SHARES, lambda p, t: optax.softmax_cross_entropy(p, t).mean(), []),
    ],
)
def test_codes(model, targets, loss, expected):
    assert codes(model, targets, loss) == expected


def test_shares_are_scored_as_probabilities():
    facts = describe_targets(SHARES)
    assert facts.kind == "shares"
    logits = np.log(SHARES) + 5
    assert quality(logits, SHARES, facts, "logit") == pytest.approx(1, abs=1e-5)
    assert quality(SHARES, SHARES, facts, "probability") == pytest.approx(1, abs=1e-5)
    assert quality(logits, SHARES, facts, "number") == 0


def test_logarithms_of_rates_are_scored_as_rates():
    counts = np.array([0, 3, 1, 7, 120])
    facts = describe_targets(counts)
    logs = np.log(counts + 1e-9)
    assert quality(logs, counts, dataclasses.replace(facts, kind="numbers"), "log rate") == pytest.approx(1)
    assert quality(logs, counts, dataclasses.replace(facts, kind="numbers"), "number") < 0.1


def test_signs_are_scored_by_their_sign():
    facts = describe_targets(SIGNS)
    assert (facts.kind, facts.classes) == ("signs", 2)
    assert quality(SIGNS * [[3.0]], SIGNS, facts, "number") == 1
    assert quality(-SIGNS, SIGNS, facts, "number") == 0


def test_labels_that_are_ignored_do_not_count():
    labels = np.array([[0, 2, -1, -1], [1, 1, 2, -1]])
    facts = describe_targets(labels)
    assert (facts.kind, facts.classes, facts.ignored) == ("classes", 3, -1)
    assert facts.majority == pytest.approx(2 / 5)
    assert quality(np.eye(3)[[[0, 2, 0, 0], [1, 0, 2, 2]]], labels, facts, "logit") == pytest.approx(4 / 5)
    assert describe_targets(np.array([-1, 0, 1, 1])).ignored is None


def masked(z, t):
    losses = optax.softmax_cross_entropy_with_integer_labels(z, jnp.maximum(t, 0))
    return jnp.sum(losses * (t >= 0)) / jnp.sum(t >= 0)


def unmasked(z, t):
    return optax.softmax_cross_entropy_with_integer_labels(z, t).mean()


def test_a_masked_cross_entropy_is_recognized():
    labels = np.array([[0, 2, -1, -1], [1, 1, 2, -1]])
    found = recognize(masked, (2, 4, 3), labels, jax.random.key(0))
    assert (found.kind, found.expects, found.form) == ("cross entropy of logits", "logit", "index")


@pytest.mark.parametrize(("loss", "expected"), [(masked, []), (unmasked, ["wrong_label_encoding"])])
def test_negative_labels_must_be_left_out(loss, expected):
    x = RNG.integers(1, 5, size=(32, 4))
    targets = np.where(np.arange(4) < 3, x - 1, -1)
    model = nn.Sequential([nn.Embed(5, 8), nn.Dense(5)])
    made = subject(model, (x, targets), loss, optimizer=optax.sgd(1e-4), batch_size=16, epochs=1)
    found = [each.finding.code for each in data.negative_labels(Evidence(made, jax.random.key(0), 1.0))]
    assert found == expected


def test_the_quality_of_moments_is_not_known():
    assert np.isnan(quality(NUMBERS, NUMBERS[:, :1], describe_targets(NUMBERS[:, :1]), ""))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_labels_of_any_type_are_indices(dtype):
    found = recognize(lambda p, t: -rewarded(p, t), (8, 3), CLASSES[:8].astype(dtype), jax.random.key(0))
    assert (found.kind, found.form) == ("cross entropy of logits", "index")


def weighted(p, t):
    return jnp.mean(t[:, 1] * (p[:, 0] - t[:, 0]) ** 2)


@pytest.mark.parametrize(
    ("model", "targets", "loss"),
    [
        (net(1), np.abs(NUMBERS[:, :2]), weighted),  # the second column is a weight
        (net(1), np.where(LABELS[:, :1] > 0, 0.95, 0.05).astype(np.float32), binary_of_logits),  # smoothed labels
        (net(1), SIGNS, lambda p, t: -jnp.mean(p * t)),  # the critic of a Wasserstein loss
        (net(2), CLASSES, lambda p, t: jnp.mean(p[:, 1] + (p[:, 0] - t) ** 2 * jnp.exp(-p[:, 1]))),  # mean and variance
        (net(3), LABELS[:, :2], lambda p, t: jnp.mean((p[:, :2] - t) ** 2) + jnp.mean(p[:, 2] ** 2)),  # parts
    ],
)
def test_losses_of_their_own_kind_are_left_alone(model, targets, loss):
    assert codes(model, targets, loss) == []


def test_shares_get_a_cross_entropy():
    units, loss, expects = fitting_loss(describe_targets(SHARES), SHARES)
    assert (units, expects) == (3, "logit")
    assert loss(np.log(SHARES), SHARES) == pytest.approx(-(SHARES * np.log(SHARES)).sum(1).mean(), rel=1e-5)


def test_signs_and_zeros_of_a_regression_are_numbers():
    targets = RNG.integers(-1, 2, size=(96, 3))
    made = subject(net(3, jnp.tanh), (X, targets), squared, optimizer=optax.sgd(1e-4), batch_size=32, epochs=1)
    assert Evidence(made, jax.random.key(0), 1.0).targets.kind == "numbers"


class Cosines(nn.Module):
    scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (8, 3))
        x = nn.relu(nn.Dense(8)(x))
        x, kernel = (a / jnp.linalg.norm(a + 1e-6, axis=i, keepdims=True) for a, i in ((x, -1), (kernel, 0)))
        return self.scale * (x @ kernel)


DEEP = nn.Sequential([*(layer for _ in range(24) for layer in (nn.Dense(64), nn.relu)), nn.Dense(3)])  # may overflow


@pytest.mark.parametrize(
    ("model", "bounded"), [(Cosines(), True), (Cosines(scale=10.0), False), (nn.Dense(3), False), (DEEP, False)]
)
def test_logits_that_are_cosines(model, bounded):
    def loss(p, t):
        return optax.softmax_cross_entropy_with_integer_labels(p, t).mean()

    slow = subject(model, (X, CLASSES), loss, optimizer=optax.sgd(1e-4), batch_size=32, epochs=2)
    found = list(output.bounded_logits(Evidence(slow, jax.random.key(0), 5)))
    assert [each.finding.code for each in found] == ["wrong_output_activation"] * bounded
    if bounded:  # the smallest possible cross entropy goes from log(1 + 2 / e ** 2) to nearly 0
        changed = found[0].remedy.change(slow)
        variables = changed.init(jax.random.key(0))
        largest = float(jnp.abs(changed.apply(variables, X, False, jax.random.key(0))[0]).max())
        assert 1 < largest <= 10
