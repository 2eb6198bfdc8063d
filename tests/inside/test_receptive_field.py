"""Influence and spread: against the whole Jacobian, and against the theory of random convolutions."""

import flax.linen as nn
import jax
import numpy as np

import helpers
from deepjax import inside, summary, zoo


def test_influence_is_the_mean_squared_jacobian_of_the_central_unit():
    x, kernel = helpers.random_arrays(0, (1, 7, 7, 2), (3, 3, 2, 3))

    def maps(x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    many = np.repeat(x, 4000, axis=0)  # as many cotangents
    found = jax.jit(lambda x: inside.influence(maps, x, jax.random.key(0)))(many)
    squares = np.float64(kernel) ** 2
    wanted = np.zeros((7, 7))
    wanted[2:5, 2:5] = squares.sum((2, 3))  # the derivative of the unit in the pixel under a tap is the tap
    # The variance of (v^T J)^2 is 2 |J|^4, for each channel of the pixel; channels correlate.
    deviation = np.zeros((7, 7))
    deviation[2:5, 2:5] = np.sqrt(2) * squares.sum(3).sum(2)
    assert np.all(np.abs(found - wanted) <= 4 * deviation / np.sqrt(4000))
    assert not found[wanted == 0].any()


def test_the_spread_is_the_standard_deviation_along_each_axis():
    influence = np.zeros((9, 5))
    influence[2, 1], influence[6, 1] = 1, 3  # along H: 2 with 1/4, 6 with 3/4: deviation 4 sqrt(3/16)
    np.testing.assert_allclose(inside.spread(influence), [np.sqrt(3), 0], atol=1e-6)


def test_the_influence_on_a_dense_layer_of_a_mean_is_the_same_everywhere():
    (x,) = helpers.random_arrays(1, (2, 6, 6, 3))
    dense = nn.Dense(4)
    variables = jax.jit(dense.init)(jax.random.key(0), x)
    mean = jax.jit(
        lambda x: inside.influence(
            lambda x: dense.apply(variables, x).mean((1, 2), keepdims=True), x, jax.random.key(1)
        )
    )(x)
    np.testing.assert_allclose(mean, np.full((6, 6), mean[0, 0]), rtol=1e-4)


def test_the_influence_covers_the_theoretical_field_and_nothing_else():
    model = zoo.create("cifar_resnet", {"depth": 8, "width": 4}, features_only=True)
    (x,) = helpers.random_arrays(2, (4, 33, 33, 3))
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), x, train=False)
    fields = summary.map_fields(model, x.shape[1:])

    @jax.jit
    def influences(x):
        def influence(name):
            return inside.influence(lambda x: model.apply(variables, x, train=False)[name], x, jax.random.key(1))

        return {name: influence(name) for name in fields}

    for name, found in influences(x).items():
        sides = [np.ptp(np.flatnonzero(found.any(axis))) + 1 for axis in (1, 0)]
        assert tuple(sides) == tuple(fields[name].size), name
