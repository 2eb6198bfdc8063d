"""Least squares of the last layer against scikit-learn, and radial basis functions placed by clusters."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import LinearRegression, Ridge

from deepjax import init_from_data, layers, linear, zoo
from deepjax.errors import InputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(1, 2, (60, 4)).astype(np.float32)
Y = (X @ RNG.normal(size=(4, 2)) + 3 + RNG.normal(size=(60, 2))).astype(np.float32)


def outputs(model, variables):
    return np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False))(X))


def test_one_layer_is_linear_and_ridge_regression():
    model = zoo.create("mlp", depth=1, num_classes=2)
    for ridge, reference in ((0.0, LinearRegression()), (20.0, Ridge(20.0))):
        variables = init_from_data.least_squares(model, KEY, X, Y, ridge=ridge, train=True)
        assert jax.tree.structure(variables["params"]) == jax.tree.structure({"head": {"bias": 0, "kernel": 0}})
        assert_allclose(outputs(model, variables), reference.fit(X, Y).predict(X), rtol=1e-4, atol=1e-4)


def test_the_last_layer_fits_what_the_others_make_of_x():
    model = zoo.create("mlp", depth=3, width=8, num_classes=2)
    drawn = jax.jit(lambda x: model.init(KEY, x, train=True))(X)
    variables = init_from_data.least_squares(model, KEY, X, Y, train=True)
    for name in ("first", "hidden"):
        assert all(map(np.array_equal, *map(jax.tree.leaves, (variables["params"][name], drawn["params"][name]))))
    features = outputs(model.clone(return_logits=False), variables)
    assert_allclose(outputs(model, variables), LinearRegression().fit(features, Y).predict(features), atol=1e-3)


def test_without_a_bias_the_line_goes_through_the_origin():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return layers.Dense(2, use_bias=False)(x)

    variables = init_from_data.least_squares(Model(), KEY, X, Y, train=True)
    assert_allclose(outputs(Model(), variables), LinearRegression(fit_intercept=False).fit(X, Y).predict(X), atol=1e-3)


def test_radial_basis_functions_are_placed_and_fitted():
    model = zoo.create("rbf", units=6, num_classes=2)
    variables = init_from_data.rbf(model, KEY, X, Y, ridge=0.5, train=True)
    basis = jax.device_get(variables["params"]["basis"])
    distances = ((X[:, None] - basis["centers"][None]) ** 2).sum(-1)
    for k in range(6):  # a fixed point of Lloyd's algorithm
        assert_allclose(basis["centers"][k], X[distances.argmin(1) == k].mean(0), rtol=1e-4, atol=1e-4)
    assert_allclose(basis["widths"], linear.nearest_widths(basis["centers"]), rtol=1e-5)
    gaussians = np.exp(-distances / (2 * basis["widths"] ** 2))
    assert_allclose(outputs(model, variables), Ridge(0.5).fit(gaussians, Y).predict(gaussians), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("init", "model", "x", "message"),
    [
        ("least_squares", zoo.create("mlp", depth=2, width=3, num_classes=5), X, "layer head: .* 2 outputs at the end"),
        ("rbf", zoo.create("mlp", depth=1, num_classes=2), X, "MLP has no layer of radial basis functions; set model"),
        ("rbf", zoo.create("rbf", units=61, num_classes=2), X, "count 61 of clusters must be from 1 to the 60"),
        ("rbf", zoo.create("rbf", units=3, num_classes=2), 0 * X + 1, "all centers are equal"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(init, model, x, message):
    with pytest.raises(InputError, match=message) as caught:
        getattr(init_from_data, init)(model, KEY, x, Y, train=True)
    assert "\n" not in str(caught.value)
