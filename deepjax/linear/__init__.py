"""Linear models, and models that are linear in fixed features, as pure functions of arrays.

Examples are rows: x [examples, features]. `with_bias` puts a 1 before the features, so that the first weight is the
bias. All functions can be jitted, and compute in the dtype of x.
"""

from deepjax.linear.delta_rule import (
    adaline,
    delta_rule,
    logistic_regression,
    mistake_bound,
    perceptron,
    shuffled,
    sign,
    softmax_regression,
    with_bias,
)
from deepjax.linear.kernels import gaussian_kernel, kernel_perceptron, polynomial_features, polynomial_kernel
from deepjax.linear.kmeans import kmeans, kmeans_plus_plus
from deepjax.linear.least_squares import lasso, least_squares
from deepjax.linear.minimize import minimize
from deepjax.linear.rbf import RBF, nearest_widths, rbf_features, rbf_fit, rbf_outputs, rbf_place

__all__ = [
    "RBF",
    "adaline",
    "delta_rule",
    "gaussian_kernel",
    "kernel_perceptron",
    "kmeans",
    "kmeans_plus_plus",
    "lasso",
    "least_squares",
    "logistic_regression",
    "minimize",
    "mistake_bound",
    "nearest_widths",
    "perceptron",
    "polynomial_features",
    "polynomial_kernel",
    "rbf_features",
    "rbf_fit",
    "rbf_outputs",
    "rbf_place",
    "shuffled",
    "sign",
    "softmax_regression",
    "with_bias",
]
