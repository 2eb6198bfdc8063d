"""DropConnect: its masks at four sigma, values and gradients against float64 NumPy, moments by enumeration."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from deepjax import functional
from helpers import check_bernoulli, random_arrays

KEY = jax.random.key(7)
drop_connect = jax.jit(functional.drop_connect, static_argnames=("rate", "train", "activation", "inference", "samples"))


def decoded_masks(key, batch, inputs, features, rate):
    """bool [batch, inputs, features]: a kernel of powers of two writes the mask of every sum into its binary digits."""
    kernel = np.broadcast_to(2.0 ** np.arange(inputs)[:, None], (inputs, features)).astype(np.float32)
    bias = np.full(features, 2.0**inputs, np.float32)
    sums = drop_connect(key, np.ones((batch, inputs), np.float32), kernel, bias, rate, train=True)
    digits = np.asarray(sums).astype(np.int64)[:, None] >> np.arange(inputs + 1)[None, :, None]
    return digits % 2 == 1  # the last one is the bias's


def test_drop_connect_masks_every_weight_of_every_example_apart():
    masks = decoded_masks(KEY, 30, 19, 40, 0.3)
    check_bernoulli(masks.reshape(30, -1), 0.7)
    check_bernoulli(masks.transpose(1, 0, 2).reshape(20, -1), 0.7)
    assert_array_equal(masks, decoded_masks(KEY, 30, 19, 40, 0.3))
    assert (masks != decoded_masks(jax.random.key(8), 30, 19, 40, 0.3)).any()


@pytest.mark.parametrize("positions", [(), (4,), (2, 3)])
def test_drop_connect_in_training_is_a_masked_product(positions):
    """Values and gradients against NumPy, with the masks that it drew."""
    x, kernel, bias, weight = random_arrays(16, (3, *positions, 5), (5, 4), (4,), (3, *positions, 4))
    layer = partial(functional.drop_connect, KEY, rate=0.4, train=True, activation=jnp.tanh)
    masks = decoded_masks(KEY, 3, 5, 4, 0.4).astype(np.float64)
    ones = np.ones((*x.shape[:-1], 1))
    # As [3, positions, ...], each example's positions under one mask.
    v, masked = np.concatenate([x, ones], -1).reshape(3, -1, 6), masks * np.concatenate([kernel, bias[None]])
    expected = np.tanh(np.einsum("bpi,bio->bpo", v, masked))

    @jax.jit
    def run(*inputs):
        y, gradients = jax.vjp(layer, *inputs)
        return y, gradients(weight)

    y, gradients = run(x, kernel, bias)
    assert_allclose(y, expected.reshape(weight.shape), rtol=1e-4, atol=1e-6)
    by_u = weight.reshape(3, -1, 4) * (1 - expected**2)
    by_weights = np.einsum("bpi,bpo,bio->io", v, by_u, masks)
    by_x = np.einsum("bpo,bio->bpi", by_u, masked)[..., :5]
    assert_allclose(gradients[0], by_x.reshape(x.shape), rtol=1e-4, atol=1e-5)
    assert_allclose(gradients[1], by_weights[:5], rtol=1e-4, atol=1e-5)
    assert_allclose(gradients[2], by_weights[5], rtol=1e-4, atol=1e-5)


def test_drop_connect_of_a_single_example_and_without_bias():
    x, kernel = random_arrays(20, (5,), (5, 4))
    one, several = (drop_connect(KEY, v, kernel, None, 0.4, train=True) for v in (x, x[None]))
    assert_allclose(one, np.asarray(several)[0], rtol=1e-6)

    def shape(x, train):
        return jax.eval_shape(lambda x: functional.drop_connect(KEY, x, kernel, None, 0.4, train=train), x).shape

    assert shape(x, False) == (4,)
    assert shape(np.ones((0, 5), np.float32), True) == (0, 4)


def enumerated(x, kernel, bias, rate, function):
    """The exact mean of function(sums) over all masks of one unit, float64: x [inputs], kernel [inputs], bias."""
    terms = np.append(x * kernel, bias).astype(np.float64)
    masks = np.array(list(itertools.product([0, 1], repeat=terms.size)))
    kept = masks.sum(1)
    return ((1 - rate) ** kept * rate ** (terms.size - kept) * function(masks @ terms)).sum()


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_drop_connect_at_test_has_the_moments_of_all_its_masks(rate):
    (x, kernel, bias), count = random_arrays(22, (2, 7), (7, 3), (3,)), 20_000
    draw = jax.vmap(lambda key: functional.drop_connect(key, x, kernel, bias, rate, train=False, samples=1))
    draws = np.asarray(jax.jit(draw)(jax.random.split(KEY, count)), np.float64)
    for row, unit in itertools.product(range(2), range(3)):
        moment = partial(enumerated, x[row], kernel[:, unit], bias[unit], rate)
        mean = moment(lambda u: u)
        var = moment(np.square) - mean**2
        seen = draws[:, row, unit]
        assert abs(seen.mean() - mean) < 4 * np.sqrt(var / count)
        assert abs(seen.var() - var) < 4 * var * np.sqrt(2 / count)  # of a Gaussian
    # Rows and units are drawn apart.
    flat = (draws - draws.mean(0)).reshape(count, 6) / draws.std(0).reshape(6)
    assert np.abs(flat.T @ flat / count - np.eye(6)).max() < 4 / np.sqrt(count) * 1.5


def test_drop_connect_averages_after_the_activation():
    """The mean of a rectified Gaussian is known; it is not the rectified mean, and near that of all masks."""
    (x, kernel, bias), samples = random_arrays(25, (1, 12), (12, 5), (5,)), 50_000
    infer = partial(drop_connect, KEY, x, kernel, bias, 0.5, train=False, activation=jax.nn.relu)
    y = np.asarray(infer(samples=samples))[0]
    v, w = np.append(x[0], 1).astype(np.float64), np.concatenate([kernel, bias[None]]).astype(np.float64)
    mean, std = 0.5 * v @ w, np.sqrt(0.25 * v**2 @ w**2)
    expected = mean * stats.norm.cdf(mean / std) + std * stats.norm.pdf(mean / std)
    assert (np.abs(y - expected) < 4 * std / np.sqrt(samples)).all()
    assert np.abs(np.maximum(mean, 0) - expected).max() > 0.1
    relu = partial(np.maximum, 0)
    exact = [enumerated(x[0], kernel[:, unit], bias[unit], 0.5, relu) for unit in range(5)]
    assert_allclose(y, exact, atol=0.05 * std.max())
    assert_allclose(np.asarray(infer(inference="mean"))[0], np.maximum(mean, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("inference", "train"), [("moments", True), ("moments", False), ("mean", False)])
def test_drop_connect_at_rates_0_and_1(inference, train):
    x, kernel, bias = random_arrays(28, (3, 5), (5, 4), (4,))
    layer = partial(functional.drop_connect, train=train, inference=inference, activation=jnp.cos, samples=3)

    @jax.jit
    def known():
        return layer(None, x, kernel, bias, 0), layer(KEY, x, kernel, bias, 1)

    at_0, at_1 = known()
    assert_allclose(at_0, np.cos(x @ kernel + bias), rtol=1e-5, atol=1e-6)
    assert_allclose(at_1, np.ones((3, 4)))

    @jax.jit
    def traced(rate):
        inputs = x, kernel, bias, rate
        gradients = jax.grad(lambda *inputs: layer(KEY, *inputs).sum(), (0, 1, 2, 3))(*inputs)
        return layer(KEY, *inputs), gradients

    y, (by_x, by_kernel, by_bias, by_rate) = traced(0.0)
    slope = -np.sin(x @ kernel + bias)
    assert_allclose(y, np.cos(x @ kernel + bias), rtol=1e-5, atol=1e-6)
    assert_allclose(by_x, slope @ kernel.T, rtol=1e-4, atol=1e-5)
    assert_allclose(by_kernel, x.T @ slope, rtol=1e-4, atol=1e-5)
    assert_allclose(by_bias, slope.sum(0), rtol=1e-4, atol=1e-5)
    assert np.isfinite(by_rate)
    y, gradients = traced(1.0)
    assert_allclose(y, np.ones((3, 4)))
    assert all(np.isfinite(g).all() for g in gradients)
    assert all((np.asarray(g) == 0).all() for g in gradients[:3])


def test_drop_connect_gradient_at_test_is_right_where_a_unit_cannot_vary():
    """An input of zeros has variance 0, where the square root has no slope."""
    (kernel,) = random_arrays(31, (5, 4))
    layer = partial(functional.drop_connect, KEY, kernel=kernel, bias=None, rate=0.3, train=False, samples=2)
    gradient = jax.jit(jax.grad(lambda x: layer(x).sum()))(np.zeros((2, 5), np.float32))
    assert_allclose(gradient, np.broadcast_to(0.7 * kernel.sum(1), (2, 5)), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.05), (jnp.float64, 1e-6)])
@pytest.mark.parametrize("train", [True, False])
def test_drop_connect_dtypes(train, dtype, tolerance):
    inputs = random_arrays(32, (3, 5), (5, 4), (4,))
    layer = partial(drop_connect, rate=0.3, train=train, activation=jax.nn.sigmoid, samples=4000)
    expected = layer(KEY, *inputs)
    with jax.enable_x64(True):
        y = layer(KEY, *(i.astype(dtype) for i in inputs))
        assert y.dtype == dtype
        # The samples of float64 are others: 4,000 of them, of a standard deviation below a quarter.
        tolerance = max(tolerance, 0 if train else 4 * np.sqrt(2) * 0.25 / np.sqrt(4000))
        assert_allclose(np.asarray(y, np.float64), expected, atol=tolerance)
