"""Several faults at once, of which none is the cause alone."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from deepjax.doctor import examine


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
