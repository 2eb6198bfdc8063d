"""Telgarsky's network, against the folded tent function; distances against a fine grid."""

import dataclasses

import jax
import numpy as np
import pytest

from deepjax.figures import Settings, linear_pieces
from deepjax.figures import sawtooth as experiment


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_depth_d_is_the_tent_applied_d_times(depth):
    x = np.random.default_rng(0).uniform(size=1000)
    y = x
    for _ in range(depth):
        y = 1 - np.abs(2 * y - 1)
    net = experiment.sawtooth(depth)
    np.testing.assert_allclose(linear_pieces.evaluate(net, x)[0], y, atol=1e-12)
    np.testing.assert_array_equal(linear_pieces.kinks(net), np.arange(2**depth + 1) / 2**depth)
    assert sum(kernel.shape[1] for kernel, _ in net[:-1]) == 2 * depth
    np.testing.assert_allclose(linear_pieces.evaluate(experiment.one_hidden_layer(depth, 2**depth), x)[0], y)


def test_the_distance_is_the_integral_and_never_below_the_bound():
    deep = experiment.sawtooth(5)
    x = np.linspace(0, 1, 200_001)
    for i, sizes in enumerate([(3,), (9,), (3, 3)]):
        net = linear_pieces.random_mlp(np.random.default_rng(i), sizes[0], len(sizes))
        far = experiment.distance(deep, net)
        gap = np.abs(linear_pieces.evaluate(deep, x)[0] - linear_pieces.evaluate(net, x)[0])
        np.testing.assert_allclose(far, np.trapezoid(gap, x), rtol=1e-7)
        assert far >= (1 - (2 ** len(sizes)) * np.prod(sizes) / 32) / 16
    few = experiment.one_hidden_layer(5, 8)  # 1/4 is the mean distance of 1/2 from the sawtooth
    np.testing.assert_allclose(experiment.distance(deep, few), (1 - 6.5 / 32) / 4, rtol=1e-12)


@pytest.mark.slow
def test_a_fit_improves_and_the_claim_fails_below_a_bound():
    numbers = experiment.numbers(Settings(1))
    assert experiment.claim(numbers).holds
    assert max(map(min, numbers.distances)) < 4.01  # the constant 1/2 is at 16 / 4
    too_near = tuple(tuple(far / 100 for far in each) for each in numbers.distances)
    assert not experiment.claim(dataclasses.replace(numbers, distances=too_near)).holds
    assert not experiment.claim(dataclasses.replace(numbers, pieces=numbers.pieces[::-1])).holds
    x = np.linspace(0, 1, 33, dtype=np.float32)
    line = jax.device_get(jax.jit(lambda key: experiment.fit(key, (4,), x, 3 * x + 1, 500))(jax.random.key(0)))
    np.testing.assert_allclose(linear_pieces.evaluate(line, x)[0], 3 * x + 1, atol=0.05)
