"""Several faults at once, of which none is the cause alone."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from deepjax.doctor import examine
from deepjax.doctor.evidence import Evidence, Remedy, Suspicion
from deepjax.doctor.examine import _tried
from deepjax.doctor.report import Finding
from deepjax.doctor.subject import subject


def _cross_entropy(p, t):
    return optax.softmax_cross_entropy_with_integer_labels(p, t).mean()


def _net(depth, activation, init):
    hidden = [layer for _ in range(depth) for layer in (nn.Dense(32, kernel_init=init), activation)]
    return nn.Sequential([*hidden, nn.Dense(4)])


def _data():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(512, 10)).astype(np.float32), rng.normal(size=(10, 4))
    return x, (x @ w + 0.5 * np.sin(3 * x[:, :4])).argmax(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "init", "optimizer", "codes"),
    [
        (
            nn.relu,
            nn.initializers.normal(0.01),
            optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1)),
            {"vanishing_activations", "regularization_too_strong"},
        ),
        (
            nn.sigmoid,
            nn.initializers.lecun_normal(),
            optax.sgd(0.001),
            {"wrong_hidden_activation", "wrong_optimizer"},
        ),
    ],
)
def test_two_faults_are_named_and_mended_together(activation, init, optimizer, codes):
    report = examine(
        _net(5, activation, init),
        _data(),
        _cross_entropy,
        key=jax.random.key(0),
        optimizer=optimizer,
        batch_size=32,
        epochs=20,
        budget=20,
    )
    joint = [f for f in report.findings if "Without this one" in f.evidence]
    assert {f.code for f in joint} == codes
    assert all(f.severity == "serious" and f.outcome.learns for f in joint)
    assert report.cure.learns
    assert report.cure.quality_after > 0.9


@pytest.mark.parametrize("late", [3.0, 0.3])
def test_a_remedy_that_diverges_late_is_tried_with_a_lower_rate(late):
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)

    def squared(p, t):
        return ((p - t) ** 2).mean()

    # The Hessian is about 2, so that gradient descent diverges at rates above 1.
    schedule = optax.piecewise_constant_schedule(0.3, {20: late / 0.3})
    plan = {"optimizer": optax.sgd(1e-9), "batch_size": 32, "epochs": 100}
    start = Evidence(subject(nn.Dense(1), (x, x[:, :1]), squared, **plan), jax.random.key(0), 20)
    remedy = Remedy("a schedule", lambda made: made.with_(optimizer=optax.sgd(schedule)))
    suspicion = Suspicion(Finding("a_cause", "serious", "A title.", "Evidence.", "Advice."), remedy, certain=False)
    found = _tried(start, start, suspicion, [])
    assert [each.finding.code for each in found] == ["a_cause", "learning_rate_too_high"][: 2 if late > 1 else 1]
    assert start.with_remedies(found).healthy
