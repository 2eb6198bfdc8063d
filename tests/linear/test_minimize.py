"""The optimum of logistic and softmax regression against scikit-learn in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression

from deepjax import functional, linear

RNG = np.random.default_rng(0)
X = RNG.standard_normal((80, 3)).astype(np.float32)
LABELS = (X @ RNG.standard_normal((3, 3)) + RNG.gumbel(size=(80, 3))).argmax(1)
PENALTY = 0.02


def test_the_optimum_is_scikit_learns():
    def fit(loss, labels, shape):
        def total(w):
            return loss(linear.with_bias(X) @ w, labels).mean() + PENALTY / 2 * jnp.sum(w[1:] ** 2)

        return linear.minimize(total, jnp.zeros((4, *shape)))[0]

    softmax, logistic = jax.jit(
        lambda: (
            fit(functional.cross_entropy, LABELS, (3,)),
            fit(functional.binary_cross_entropy, (LABELS == 1).astype(np.float32), ()),
        )
    )()
    reference = LogisticRegression(C=1 / (80 * PENALTY), tol=1e-12, max_iter=10_000)
    for ours, labels in ((softmax, LABELS), (logistic[:, None], LABELS == 1)):
        reference.fit(X.astype(np.float64), labels)
        assert_allclose(ours[1:].T, reference.coef_, rtol=1e-3, atol=1e-4)
        assert_allclose(ours[0], reference.intercept_, rtol=1e-3, atol=1e-4)
