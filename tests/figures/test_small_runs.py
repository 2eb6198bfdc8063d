"""Small trainings in memory, against gradient descent in NumPy."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.figures import small_runs
from deepjax.figures.small_runs import Examples, SmallCNN
from helpers import random_arrays


def softmax_regression(kernel, x, labels, rate, steps):
    """Gradient descent on all examples: losses before each update, and the kernel."""
    losses = []
    for _ in range(steps):
        p = np.exp(x @ kernel)
        p /= p.sum(1, keepdims=True)
        losses.append(-np.log(p[np.arange(len(x)), labels]).mean())
        kernel = kernel - rate * x.T @ (p - np.eye(3)[labels]) / len(x)
    return losses, kernel


def test_full_batches_are_gradient_descent_for_each_rate():
    x, kernel, held = random_arrays(0, (12, 4), (4, 3), (7, 4))
    labels, held_labels = np.arange(12) % 3, np.arange(7) % 3
    rates = np.array([0.1, 0.5], np.float32)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def run(rate, key):
        return small_runs.train(
            nn.Dense(3, use_bias=False),
            {"params": {"kernel": kernel}},
            Examples(jnp.asarray(x), jnp.asarray(labels)),
            Examples(jnp.asarray(held), jnp.asarray(held_labels)),
            key,
            optimizer=optax.sgd(rate),
            steps=6,
            batch_size=12,
            every=3,
        )

    curves = run(rates, jax.random.key(0))
    for i, rate in enumerate(rates):
        losses, wanted = softmax_regression(kernel.astype(float), x.astype(float), labels, rate, 6)
        np.testing.assert_allclose(curves.losses[i], losses, rtol=1e-5)
        np.testing.assert_allclose(curves.variables["params"]["kernel"][i], wanted, rtol=1e-4, atol=1e-5)
        _, halfway = softmax_regression(kernel.astype(float), x.astype(float), labels, rate, 3)
        errors = [np.mean((held @ each).argmax(1) != held_labels) for each in (halfway, wanted)]
        np.testing.assert_allclose(curves.errors[i], errors, rtol=1e-6)


def test_an_epoch_has_every_example_at_most_once_and_a_new_order():
    batches = np.asarray(small_runs._batches(jax.random.key(0), 10, 3, 7))
    assert batches.shape == (7, 3)
    assert all(len(set(epoch.ravel())) == 9 for epoch in (batches[:3], batches[3:6]))
    assert not np.array_equal(batches[:3], batches[3:6])


def test_the_small_network_normalizes_before_its_activation():
    network = SmallCNN((2, 3), nn.sigmoid, norm="batch", num_classes=5)
    variables = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    kernels = {path: each["conv"]["kernel"].shape for path, each in variables["params"].items() if "conv" in each}
    assert kernels == {
        "stage1_conv1": (3, 3, 1, 2),
        "stage1_conv2": (3, 3, 2, 2),
        "stage2_conv1": (3, 3, 2, 3),
        "stage2_conv2": (3, 3, 3, 3),
    }
    assert len(variables["batch_stats"]) == 4
