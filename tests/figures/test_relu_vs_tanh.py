"""ReLU against tanh: the images, the first weights, the steps that are counted, and what the claim needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import data, functional
from deepjax.errors import InputError
from deepjax.figures import Settings, small_runs
from deepjax.figures import relu_vs_tanh as experiment


def test_it_needs_cifar_10(tmp_path):
    with pytest.raises(InputError, match="cifar10"):
        experiment.numbers(Settings(data_dir=str(tmp_path)))


def some_images(count, monkeypatch):
    """Let data.load return an object with `count` training images, which it returns, too."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    found = data.from_arrays(images, np.arange(count, dtype=np.int32) % 10, images[:20], np.arange(20) % 10)
    monkeypatch.setattr(experiment.data, "load", lambda *_: found)
    return images


def test_images_are_centered_and_averaged_but_not_divided(monkeypatch):
    images = some_images(20, monkeypatch)
    inputs, labels = experiment._centered("", experiment.USUAL)
    order = np.argsort(np.random.default_rng(0).permutation(20))
    means = np.array(
        [
            [image[i : i + 2, j : j + 2].mean((0, 1)) for i in range(0, 32, 2) for j in range(0, 32, 2)]
            for image in images
        ]
    )
    found = np.asarray(inputs)[order].reshape(means.shape)
    np.testing.assert_allclose(found, means - means.mean(0), atol=1e-3)
    assert (np.asarray(labels)[order] == np.arange(20) % 10).all()
    few = experiment._centered("", experiment.FULL._replace(images=7)).inputs
    assert few.shape == (7, 32, 32, 3)
    assert abs(few.mean(0)).max() < 1e-3


def test_weights_have_the_papers_deviation_and_the_layers_are_four():
    network = experiment.FourLayers((16, 32, 64), (5, 3, 3), functional.tanh)
    params = jax.jit(network.init)(jax.random.key(0), jnp.ones((1, 16, 16, 3)))["params"]
    shapes = {name: each["kernel"].shape for name, each in params.items()}
    assert shapes == {"conv1": (5, 5, 3, 16), "conv2": (3, 3, 16, 32), "conv3": (3, 3, 32, 64), "head": (256, 10)}
    for each in params.values():
        kernel = np.asarray(each["kernel"], float)
        assert abs(kernel.std() / 0.01 - 1) < 4 / np.sqrt(2 * kernel.size)
    assert [name for name, each in params.items() if "bias" in each] == ["head"]


def test_first_weights_and_order_are_those_of_all_rates(monkeypatch):
    seen = []

    def train(network, variables, examples, counted, order, *, optimizer, **sizes):
        seen.append((jax.random.key_data(order), len(counted.labels), sizes))
        step = optimizer.update(variables["params"], optimizer.init(variables["params"]))[0]["head"]["kernel"]
        rate = -(step / variables["params"]["head"]["kernel"]).mean()
        return small_runs.Curves(jnp.zeros(()), jnp.stack([rate, variables["params"]["head"]["kernel"].sum()]), {})

    monkeypatch.setattr(experiment, "train", train)
    examples = experiment.Examples(jnp.ones((2500, 8, 8, 3)), jnp.zeros(2500, int))
    relu, tanh = (experiment._errors(name, experiment.USUAL, examples, 3) for name in experiment.RATES)
    assert [len(relu), len(tanh)] == [len(rates) for rates in experiment.RATES.values()]
    np.testing.assert_allclose(relu[:, 0], experiment.RATES["relu"], rtol=1e-4)
    np.testing.assert_allclose(tanh[:, 0], experiment.RATES["tanh"], rtol=1e-4)
    assert len({*relu[:, 1], *tanh[:, 1]}) == 1
    assert [(count, sizes["steps"]) for _, count, sizes in seen] == [
        (experiment.COUNTED, experiment.USUAL.steps[name]) for name in experiment.RATES
    ]


def test_steps_are_those_to_the_first_error_of_at_most_25_percent():
    assert experiment.steps_to_target((0.5, 0.25, 0.3, 0.1), 50) == 100
    assert experiment.steps_to_target((0.5, 0.26), 50) is None


NEVER, SLOW = (0.9, 0.8, 0.7, 0.6), (0.9, 0.6, 0.5, 0.25)


def made_up(relu, tanh, place=1):
    """Return numbers with these runs at the rate of a place in both sweeps, and runs at a standstill at all others."""
    errors = {
        name: {str(rate): run if i == place else (0.9,) * 4 for i, rate in enumerate(experiment.RATES[name])}
        for name, run in (("relu", relu), ("tanh", tanh))
    }
    return experiment.Numbers(100, 50, errors)


@pytest.mark.parametrize(
    ("relu", "tanh", "place", "holds"),
    [
        ((0.9, 0.25, 0.2, 0.2), SLOW, 1, True),
        ((0.9, 0.25, 0.2, 0.2), NEVER, 1, True),  # more than 200 steps
        ((0.9, 0.25, 0.2, 0.2), SLOW, 0, False),  # a rate outside of the sweep may be better
        ((0.9, 0.3, 0.2, 0.2), SLOW, 1, False),
        ((0.9, 0.3, 0.2, 0.2), NEVER, 1, False),  # 200 steps are too few to know
        (NEVER, NEVER, 1, False),
    ],
)
def test_the_claim_needs_twice_the_steps_at_the_best_rates(relu, tanh, place, holds):
    numbers = made_up(relu, tanh, place)
    assert experiment.best_rate(numbers, "tanh") == str(experiment.RATES["tanh"][place])
    assert experiment.claim(numbers).holds == holds
    assert len(experiment.draw(numbers).axes[0].lines) == 2 * len(experiment.RATES["relu"]) + 3
    assert len(experiment.table(numbers)[1]) == 2 * len(experiment.RATES["relu"])
