"""Models of unusual forms are examined like all others."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from optax.contrib import reduce_on_plateau

from deepjax.doctor import examine

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)


def cross_entropy(p, t):
    return optax.softmax_cross_entropy_with_integer_labels(p, t).mean()


class Named(nn.Module):
    """A model of a dictionary, with weights that are too large."""

    @nn.compact
    def __call__(self, batch, train: bool):
        x = nn.Dense(16, kernel_init=nn.initializers.normal(40.0))(batch["x"])
        x = nn.BatchNorm(use_running_average=not train, momentum=0.999)(x)
        for _ in range(2):
            x = nn.relu(nn.Dense(16, kernel_init=nn.initializers.normal(40.0))(x))
        return nn.Dense(2)(x)


def layers(params, x):
    """Return the logits of layers that are a list of (kernel, bias)."""
    for kernel, bias in params[:-1]:
        x = jax.nn.sigmoid(x @ kernel + bias[None])
    return x @ params[-1][0] + params[-1][1][None]


WEIGHTS = [(RNG.normal(size=shape).astype(np.float32), np.zeros(shape[1], np.float32)) for shape in [(4, 8), (8, 2)]]


@pytest.mark.parametrize(
    ("model", "inputs", "variables", "optimizer"),
    [
        (Named(), {"x": X}, None, optax.sgd(1e-3)),
        (layers, X, WEIGHTS, optax.chain(optax.adam(1e-5), reduce_on_plateau(patience=2))),
        (lambda w, x: x @ w, X, np.zeros((4, 2), np.float32), optax.sgd(1e-6)),
    ],
    ids=["dictionary", "list of layers", "one array"],
)
def test_a_report(model, inputs, variables, optimizer):
    plan = {"optimizer": optimizer, "batch_size": 16, "epochs": 2}
    report = examine(model, (inputs, Y), cross_entropy, key=jax.random.key(0), variables=variables, budget=1, **plan)
    assert report.verdict
    assert report.rows
