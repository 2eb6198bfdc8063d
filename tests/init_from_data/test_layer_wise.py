"""Auto-encoders and restricted Boltzmann machines, against enumeration, and networks that they initialize."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import helpers
from deepjax import zoo
from deepjax.errors import InputError
from deepjax.functional import sigmoid
from deepjax.init_from_data import autoencoder, rbm
from deepjax.init_from_data.boltzmann import contrastive_divergence, free_energy, gibbs
from deepjax.init_from_data.denoising import Pair, reconstruction_error

KEY = jax.random.key(0)
V = np.array([[(i >> j) & 1 for j in range(3)] for i in range(8)], np.float32)  # all states of 3 binary units
H = V[:4, :2]


def pair():
    return Pair(*helpers.random_arrays(0, (3, 2), (2,), (3,)))


def logistic(z):
    return 1 / (1 + np.exp(-z))


def joint(p):
    """Return exp(v'Wh + b'v + c'h) for all 8 x 4 states."""
    return np.exp(V @ p.kernel @ H.T + (V @ p.visible)[:, None] + (H @ p.hidden)[None])


def moments(p, weights, h):
    """Return the mean of -dE/dparameter over visible states with these weights, and E[h | v]."""
    return Pair((V * weights[:, None]).T @ h, weights @ h, weights @ V)


def test_the_free_energy_sums_out_the_hidden_units():
    p = pair()
    assert_allclose(free_energy(p, V, binary=True), -np.log(joint(p).sum(1)), rtol=1e-5)
    v = np.float32([[0.3, -1.0, 2.0]])
    terms = np.exp(-((v - p.visible) ** 2).sum() / 2 + (v @ p.kernel + p.hidden) @ H.T)
    assert_allclose(free_energy(p, v, binary=False), -np.log(terms.sum(1)), rtol=1e-5)


def test_with_samples_of_the_model_the_gradient_is_that_of_the_likelihood():
    """-dlog p/dtheta = mean of dF over the data - mean of dF over the model, by enumeration against autodiff."""
    p, x = pair(), V[[1, 6, 6]]

    def minus_log_likelihood(p):
        return jnp.mean(free_energy(p, x, binary=True)) + jax.nn.logsumexp(-free_energy(p, V, binary=True))

    got = jax.jit(jax.grad(minus_log_likelihood))(p)
    h, states = logistic(V @ p.kernel + p.hidden), joint(p).sum(1)
    of_data = moments(p, np.bincount([1, 6, 6], minlength=8) / 3, h)
    of_model = moments(p, states / states.sum(), h)
    for g, data, model in zip(got, of_data, of_model, strict=True):
        assert_allclose(g, model - data, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_contrastive_divergence_has_the_mean_of_its_chain(steps):
    p, n, x = pair(), 20_000, V[[5]]
    h = logistic(V @ p.kernel + p.hidden)
    up = np.prod(np.where(H[None] == 1, h[:, None], 1 - h[:, None]), 2)  # p(h | v), 8 x 4
    q = logistic(H @ p.kernel.T + p.visible)
    down = np.prod(np.where(V[None] == 1, q[:, None], 1 - q[:, None]), 2)  # p(v | h), 4 x 8
    start = np.eye(8)[5]
    end = start @ np.linalg.matrix_power(up @ down, steps)
    estimate = partial(contrastive_divergence, steps=steps, binary=True)
    draws = jax.jit(jax.vmap(lambda key: estimate(p, x, key)))(jax.random.split(KEY, n))
    for drawn, data, chain in zip(draws, moments(p, start, h), moments(p, end, h), strict=True):
        error = np.asarray(drawn).std(0) / n**0.5
        assert (np.abs(np.asarray(drawn, np.float64).mean(0) - (chain - data)) < 4 * error + 1e-6).all()


def test_gaussian_visible_units_have_their_mean_and_variance_1():
    p, n = pair()._replace(hidden=np.float32([50, -50])), 20_000  # hidden units are 1, 0
    v = np.asarray(jax.jit(partial(gibbs, steps=1, binary=False))(p, np.zeros((n, 3), np.float32), KEY))
    assert (np.abs(v.mean(0) - p.kernel[:, 0] - p.visible) < 4 / n**0.5).all()
    assert (np.abs(v.var(0) - 1) < 4 * (2 / n) ** 0.5).all()


def test_reconstruction_errors_are_the_formulas():
    p, x = pair(), np.float32([[0.1, 0.9, 0.5], [1, 0, 0.2]])
    compute = jax.jit(reconstruction_error, static_argnames=("corruption", "binary"))
    z = logistic(x @ p.kernel + p.hidden) @ p.kernel.T + p.visible
    expected = -(x * np.log(logistic(z)) + (1 - x) * np.log(1 - logistic(z))).sum(1).mean()
    assert_allclose(compute(p, x, KEY, corruption=0.0, binary=True), expected, rtol=1e-5)
    assert_allclose(compute(p, x, KEY, corruption=0.0, binary=False), ((z - x) ** 2).sum(1).mean() / 2, rtol=1e-5)
    nothing = logistic(p.hidden) @ p.kernel.T + p.visible  # of a copy that is all 0
    error = ((nothing - x) ** 2).sum(1).mean() / 2
    assert_allclose(compute(p, x, KEY, corruption=1.0, binary=False), error, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("init", [autoencoder, rbm])
def test_codes_of_a_deep_network_keep_what_distinguishes_examples(init):
    """Two groups of inputs: after pretraining the top layer separates them far more than at random."""
    rng = np.random.default_rng(0)
    groups = np.float32([[0.9] * 4 + [0.1] * 4, [0.1] * 4 + [0.9] * 4])
    x = np.float32(rng.random((64, 8)) < np.repeat(groups, 32, 0))
    model = zoo.create("mlp", depth=4, width=8, num_classes=2, activation="sigmoid", init="xavier")
    random = jax.jit(partial(model.init, train=False))(KEY, x)
    trained = init(model, KEY, x, updates=300, rate=0.02, train=False)
    assert jax.tree.map(np.shape, trained) == jax.tree.map(np.shape, random)
    codes = jax.jit(lambda v: model.clone(features_only=True).apply(v, x, train=False)["hidden"])
    distances = [
        np.linalg.norm(c[:32].mean(0) - c[32:].mean(0)) for c in map(np.asarray, map(codes, (random, trained)))
    ]
    assert distances[1] > 5 * distances[0]


@pytest.mark.slow
def test_scanned_and_unrolled_networks_get_the_same_layers():
    x = np.random.default_rng(0).random((20, 6), np.float32)
    models = [
        zoo.create("mlp", depth=3, width=5, num_classes=2, activation="sigmoid", init="xavier", scan=scan)
        for scan in (True, False)
    ]
    scanned, unrolled = (autoencoder(model, KEY, x, updates=3, train=False)["params"] for model in models)
    assert_allclose(scanned["first"]["bias"], unrolled["first"]["bias"], atol=1e-5)
    assert np.abs(unrolled["hidden"]["unit1"]["dense"]["bias"]).min() > 0
    assert np.abs(scanned["hidden"]["unit"]["dense"]["bias"]).min() > 0
    assert (scanned["head"]["bias"] == 0).all()


def test_other_networks_and_numbers_are_refused():
    x = np.zeros((4, 6), np.float32)
    for options, match in (
        ({"activation": "relu"}, "use mlp with activation=sigmoid"),
        ({"activation": "sigmoid", "norm": "batch"}, "use mlp with activation=sigmoid"),
    ):
        model = zoo.create("mlp", depth=3, width=4, num_classes=2, **options)
        with pytest.raises(InputError, match=match):
            autoencoder(model, KEY, x, train=True)
    model = zoo.create("mlp", depth=2, width=4, num_classes=2, activation="sigmoid")
    assert model.activation is sigmoid
    for init, options, match in (
        (autoencoder, {"corruption": 1.0}, "corruption 1.0"),
        (rbm, {"steps": 0}, "steps 0"),
        (rbm, {"updates": 0}, "updates 0"),
    ):
        with pytest.raises(InputError, match=match):
            init(model, KEY, x, train=True, **options)
