"""The delta rule against scikit-learn and loops in float64, and the perceptron's mistake bound."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import Perceptron, SGDClassifier, SGDRegressor

from deepjax import linear
from deepjax.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 5)).astype(np.float32)
W = RNG.standard_normal(6)
SCORES = np.c_[np.ones(40), X] @ W
Y = np.where(SCORES + RNG.standard_normal(40) < 0, -1, 1)  # not separable
Y[0] = -1  # scikit-learn counts 0 as a mistake for both classes; the first example decides about the start at 0
ORDER = np.tile(np.arange(40, dtype=np.int32), 3)
ONES = np.concatenate([np.ones((40, 1), np.float32), X], 1)


def in_order(model, y, epochs=3):
    """Train a model of scikit-learn on examples in their order; return its bias and weights."""
    model.set_params(shuffle=False, max_iter=epochs, tol=None).fit(X.astype(np.float64), y)
    return np.concatenate([np.ravel(model.intercept_), np.ravel(model.coef_)])


def test_the_perceptron_is_scikit_learns():
    w, mistakes = jax.jit(linear.perceptron)(ONES, Y, ORDER)
    assert_allclose(w, in_order(Perceptron(), Y), rtol=1e-5, atol=1e-5)
    assert mistakes.shape == (120,)
    # the weights are the sum of the examples that were mistaken
    assert_allclose(w, (Y[ORDER] * mistakes) @ ONES[ORDER], rtol=1e-4, atol=1e-5)


def test_adaline_and_logistic_regression_are_scikit_learns_sgd():
    sgd = {"learning_rate": "constant", "eta0": 0.05, "penalty": None}
    w, errors = jax.jit(linear.adaline)(ONES, SCORES, ORDER, rate=0.05)
    assert_allclose(w, in_order(SGDRegressor(**sgd), SCORES), rtol=1e-4, atol=1e-5)
    assert_allclose(errors[0], SCORES[0], rtol=1e-5)
    w, _ = jax.jit(linear.logistic_regression)(ONES, Y > 0, ORDER, rate=0.05)
    assert_allclose(w, in_order(SGDClassifier(loss="log_loss", **sgd), Y), rtol=1e-4, atol=1e-5)


def test_softmax_regression_is_a_loop():
    labels, w = RNG.integers(3, size=40), np.zeros((6, 3))
    for i in ORDER:
        p = np.exp(ONES[i] @ w)
        w += 0.1 * np.outer(ONES[i], np.eye(3)[labels[i]] - p / p.sum())
    ours, errors = jax.jit(lambda x, y, order: linear.softmax_regression(x, y, order, rate=0.1, classes=3))(
        ONES, labels, ORDER
    )
    assert_allclose(ours, w, rtol=1e-4, atol=1e-5)
    assert_allclose(errors.sum(1), 0, atol=1e-6)


def test_mistakes_stay_below_the_bound_and_end():
    """Novikoff's theorem, on 300 problems with margins from 0.02 on and the weights that made them."""

    def count(x, w, key):
        y = linear.sign(x @ w)
        x = x + 0.02 * y[:, None] * (w / jax.numpy.linalg.norm(w))[None]  # away from the boundary
        _, mistakes = linear.perceptron(x, y, linear.shuffled(key, 20, 100))
        return mistakes.sum(), linear.mistake_bound(x, y, w), mistakes[-20:].sum()

    x, w = RNG.standard_normal((300, 20, 3)).astype(np.float32), RNG.standard_normal((300, 3)).astype(np.float32)
    made, bound, last = (
        np.asarray(a) for a in jax.jit(jax.vmap(count))(x, w, jax.random.split(jax.random.key(0), 300))
    )
    assert np.all(made <= bound)
    assert np.isfinite(bound).all()
    assert np.all(last[bound < 100] == 0)  # at least one epoch of the first 100 was without a mistake
    assert made.max() > 50


def test_the_bound_is_the_formula_and_infinite_without_a_margin():
    x, y = np.array([[3.0, 4.0], [-1.0, 0.0]]), np.array([1, -1])
    assert_allclose(linear.mistake_bound(x, y, np.array([2.0, 0.0])), (5 / 1) ** 2, rtol=1e-6)
    assert np.isinf(linear.mistake_bound(x, y, np.array([-1.0, 0.0])))


def test_an_epoch_is_a_permutation():
    order = np.asarray(linear.shuffled(jax.random.key(0), 40, 3)).reshape(3, 40)
    assert (np.sort(order, 1) == np.arange(40)).all()
    assert (order[0] != order[1]).any()


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"x has shape \(40, 5\) and y \(39,\)"):
        linear.adaline(X, Y[1:], ORDER, rate=0.1)
