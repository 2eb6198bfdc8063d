"""Kernels against scikit-learn, the kernel perceptron against perceptrons in the kernel's own features."""

import jax
import numpy as np
from numpy.testing import assert_allclose
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import Perceptron
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.preprocessing import PolynomialFeatures

from deepjax import linear

RNG = np.random.default_rng(0)
X, Z = RNG.standard_normal((30, 2)).astype(np.float32), RNG.standard_normal((10, 2)).astype(np.float32)
Y = np.where(X[:, 0] * X[:, 1] + 0.2 * RNG.standard_normal(30) < 0, -1, 1)
Y[0] = -1
ORDER = np.tile(np.arange(30, dtype=np.int32), 4)


def cubic_features(x):
    """phi(x) with <phi(x), phi(z)> = (1 + <x, z>)^3 in two dimensions, by the multinomial theorem."""
    cubic = PolynomialFeatures(3)
    phi = cubic.fit_transform(np.float64(x))
    factorial = np.array([1, 1, 2, 6])
    powers = np.concatenate([cubic.powers_, 3 - cubic.powers_.sum(1, keepdims=True)], 1)
    return phi * np.sqrt(6 / factorial[powers].prod(1))


def test_monomials_are_the_features_of_the_kernel():
    ours = jax.jit(lambda x: linear.polynomial_features(x, degree=3))(X)
    assert_allclose(np.sort(ours, 1), np.sort(cubic_features(X), 1), rtol=1e-4, atol=1e-4)
    assert_allclose(ours @ ours.T, polynomial_kernel(X, degree=3, gamma=1, coef0=1), rtol=1e-3, atol=1e-3)


def test_kernels_are_scikit_learns():
    ours = jax.jit(lambda x, z: linear.polynomial_kernel(x, z, degree=3))(X, Z)
    assert_allclose(ours, polynomial_kernel(X, Z, degree=3, gamma=1, coef0=1), rtol=1e-4, atol=1e-4)
    ours = jax.jit(lambda x, z: linear.gaussian_kernel(x, z, width=0.7))(X, Z)
    assert_allclose(ours, RBF(0.7)(X, Z), rtol=1e-4, atol=1e-7)


def test_a_width_belongs_to_its_column():
    widths = np.linspace(0.5, 2, 10, dtype=np.float32)
    ours = jax.jit(linear.gaussian_kernel)(X, Z, width=widths)
    expected = np.concatenate([RBF(width)(X, Z[j : j + 1]) for j, width in enumerate(widths)], 1)
    assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)


@jax.jit
def train(x, z):
    gram = linear.polynomial_kernel(x, x, degree=3)
    a, mistakes = linear.kernel_perceptron(gram, Y, ORDER)
    return a, mistakes, linear.polynomial_kernel(z, x, degree=3) @ a


def test_the_cubic_kernel_perceptron_is_scikit_learns_perceptron_of_cubic_features():
    phi = cubic_features(X)
    assert_allclose(phi @ phi.T, (1 + np.float64(X) @ X.T) ** 3, rtol=1e-6, atol=1e-6)
    reference = Perceptron(shuffle=False, max_iter=4, tol=None, fit_intercept=False).fit(phi, Y)
    a, mistakes, decisions = train(X, Z)
    assert_allclose(np.asarray(a) @ phi, reference.coef_[0], rtol=1e-4, atol=1e-4)
    assert_allclose(decisions, reference.decision_function(cubic_features(Z)), rtol=1e-3, atol=1e-2)
    assert_allclose(a, np.bincount(ORDER, Y[ORDER] * mistakes, 30))
