"""Runs side by side are ordinary training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import helpers
from deepjax.doctor.facts import describe_targets, quality
from deepjax.doctor.subject import subject
from deepjax.doctor.trials import Trainer, planned_steps, step_seconds


def loss(p, t):
    return jnp.mean((p - t) ** 2)


def linear(n=20):
    x, w = helpers.random_arrays(0, (n, 3), (3, 1))
    return x, x @ w + 1


def test_runs_are_those_of_a_loop_in_numpy():
    x, y = linear()
    made = subject(nn.Dense(1), (x, y), loss, optimizer=optax.sgd(0.05), batch_size=6, epochs=4)
    trainer = Trainer(made, describe_targets(made.targets), "number", jax.random.key(3), (1.0, 0.5))
    assert planned_steps(made) == 12
    first = jax.tree.map(lambda a: np.asarray(a, np.float64), trainer.variables(0)["params"])
    rows = np.concatenate([trainer.rows(12)])
    run = trainer.advance(7).advance(5).result()
    for i, rate in enumerate((0.05, 0.025)):
        kernel, bias, losses = first["kernel"], first["bias"], []
        for row in rows:
            error = x[row] @ kernel + bias - y[row]
            losses.append((error**2).mean())
            kernel = kernel - rate * 2 * x[row].T @ error / len(row)
            bias = bias - rate * 2 * error.mean(0)
        np.testing.assert_allclose(run.losses[i], losses, rtol=1e-4)
        fit = x @ kernel + bias
        assert abs(run.quality[i] - (1 - ((fit - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())) < 1e-4


def test_every_epoch_shows_each_example_once():
    x, y = linear(13)
    made = subject(nn.Dense(1), (x, y), loss, batch_size=4, epochs=3)
    trainer = Trainer(made, describe_targets(made.targets), "number", jax.random.key(0))
    rows = trainer.rows(6)
    for epoch in (rows[:3], rows[3:]):
        assert len(np.unique(epoch)) == 12
    assert (rows[:3] != rows[3:]).any()


def test_quality():
    labels = np.array([0, 1, 2, 2, 0, 1, 2, 2])
    classes = describe_targets(labels)
    assert (classes.kind, classes.classes, classes.majority) == ("classes", 3, 0.5)
    assert quality(np.eye(3)[[0, 1, 2, 0, 0, 1, 2, 0]], labels, classes, "logit") == 0.75
    numbers = describe_targets(np.array([[0.1], [0.9], [2.5], [4.0]]))
    assert numbers.kind == "numbers"
    t = np.array([[0.1], [0.9], [2.5], [4.0]])
    assert quality(np.full((4, 1), t.mean()), t, numbers, "number") == 0
    assert quality(t, t, numbers, "number") == 1
    binary = describe_targets(np.array([0.0, 1.0, 1.0, 1.0]))
    assert quality(np.array([[-1.0], [2.0], [-3.0], [0.2]]), np.array([0.0, 1, 1, 1]), binary, "logit") == 0.75


def test_the_nominal_time_counts_the_steps_of_loops():
    class Long(nn.Module):
        length: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=self.length)[0])

    x, y = linear()
    short, long = (step_seconds(subject(Long(n), (x, y), loss)) for n in (10, 1000))
    assert 990e-6 < long - short < 5 * 990e-6  # at least 1e-6 for the one equation of a step
