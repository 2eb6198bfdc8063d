"""Radial basis function networks (Broomhead & Lowe 1988): linear models of Gaussians around centers.

    outputs(x) = w^T phi(x),    phi(x) = (1, exp(-|x - center_j|^2 / (2 width_j^2)), ...)

Learning has up to three phases (Schwenker, Kestler & Palm 2001): place the centers and widths (`rbf_place`), fit the
weights with these fixed, then fit everything by gradients (`rbf_fit`).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from deepjax.linear.delta_rule import with_bias
from deepjax.linear.kernels import gaussian_kernel
from deepjax.linear.kmeans import kmeans
from deepjax.linear.minimize import minimize


class RBF(NamedTuple):
    """Parameters of a network."""

    centers: Any  # [units, features]
    widths: Any  # [units], standard deviations of the Gaussians
    weights: Any  # [1 + units] or [1 + units, outputs]; the first row is the bias


def rbf_features(x, centers, widths):
    """Return phi(x), a 1 and the Gaussians: x [examples, features] -> [examples, 1 + units]."""
    return with_bias(gaussian_kernel(x, centers, width=widths))


def rbf_outputs(network, x):
    """Return w^T phi(x): predictions of a regression, or logits. [examples] or [examples, outputs]."""
    return rbf_features(x, network.centers, network.widths) @ network.weights


def nearest_widths(centers, *, neighbors=2):
    """Return a width for each center: the root mean square of the distances from its nearest other centers.

    Moody & Darken 1989, "Fast learning in networks of locally-tuned processing units", with two neighbors. A center
    that repeats is no neighbor of its copies, whose widths would be 0: two centers count as equal if their distance is
    at most 1e-5 of the largest one.

    Args:
      centers: [units, features]. `kmeans` repeats centers if there are fewer distinct examples than clusters.
      neighbors: number of other centers that count; all of them, if there are fewer.

    Returns:
      [units], or NaN if all centers are equal.
    """
    distances = jnp.square(centers[:, None] - centers[None]).sum(-1)
    others = jnp.where(distances > 1e-10 * distances.max(), distances, jnp.inf)
    nearest = jnp.sort(others, 1)[:, :neighbors]
    return jnp.sqrt(nearest.mean(1, where=jnp.isfinite(nearest)))


def rbf_place(key, x, units, *, outputs=()):
    """Return a network with centers by `kmeans` of x, widths by `nearest_widths`, and weights of 0: the first phase.

    Args:
      key: PRNG key.
      x: training examples, [examples, features].
      units: number of centers, at least 2.
      outputs: shape of one output: () or (classes,).

    Raises:
      InputError: fewer examples than units.
    """
    centers, _ = kmeans(key, x, units)
    return RBF(centers, nearest_widths(centers), jnp.zeros((1 + units, *outputs), x.dtype))


def rbf_fit(network, x, y, loss, *, everything, steps=200):
    """Fit the weights (the second phase), or centers, widths and weights together (the third), to training examples.

    For a regression with the squared error, the weights alone have a closed form too,
    `least_squares(rbf_features(x, centers, widths), y)`.

    Args:
      network: an `RBF` to start from.
      x: training examples, [examples, features].
      y: targets that `loss` takes.
      loss: function (outputs, y) -> one loss per example, such as `functional.mse` for a regression,
        `functional.binary_cross_entropy` and `functional.cross_entropy` for logits.
      everything: False: fit the weights only. True: centers and widths too.
      steps: the most steps of `minimize`.

    Returns:
      (network, mean loss at it).
    """

    def complete(parameters):
        return parameters if everything else network._replace(weights=parameters)

    def mean_loss(parameters):
        return loss(rbf_outputs(complete(parameters), x), y).mean()

    parameters, value = minimize(mean_loss, network if everything else network.weights, steps=steps)
    return complete(parameters), value
