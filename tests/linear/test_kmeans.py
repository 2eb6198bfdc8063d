"""k-means against scikit-learn from the same start; k-means++ by the probabilities of its choices."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.cluster import KMeans

from deepjax import linear
from deepjax.errors import InputError

X = 10 + np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)


@pytest.mark.filterwarnings("ignore:Explicit initial center")
def test_lloyds_algorithm_is_scikit_learns():
    key = jax.random.key(1)
    start, (centers, inertia) = jax.jit(lambda key, x: (linear.kmeans_plus_plus(key, x, 7), linear.kmeans(key, x, 7)))(
        key, X
    )
    reference = KMeans(7, init=np.float64(start), n_init=1, max_iter=1000, tol=0).fit(np.float64(X))
    assert_allclose(centers, reference.cluster_centers_, rtol=1e-4)
    assert_allclose(inertia, reference.inertia_, rtol=1e-4)
    assert np.abs(np.asarray(centers) - start).max() > 0.1


def test_further_centers_are_drawn_by_squared_distance():
    x = np.array([[0.0], [1.0], [3.0]], np.float32)
    keys = jax.random.split(jax.random.key(0), 20_000)
    first, second = np.asarray(jax.jit(jax.vmap(lambda key: linear.kmeans_plus_plus(key, x, 2)))(keys))[..., 0].T
    expected = {(0, 1): 1 / 10, (0, 3): 9 / 10, (1, 0): 1 / 5, (1, 3): 4 / 5, (3, 0): 9 / 13, (3, 1): 4 / 13}
    for (a, b), p in expected.items():
        after = second[first == a]
        assert abs((after == b).mean() - p) < 4 * np.sqrt(p * (1 - p) / len(after))
        assert abs((first == a).mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / len(first))


def test_one_center_is_the_mean_and_equal_points_are_finite():
    assert_allclose(jax.jit(lambda x: linear.kmeans(jax.random.key(0), x, 1)[0])(X), X.mean(0)[None], rtol=1e-5)
    centers, inertia = jax.jit(lambda x: linear.kmeans(jax.random.key(0), x, 3))(np.ones((5, 2), np.float32))
    assert_allclose(centers, 1)
    assert inertia == 0


def test_more_clusters_than_examples_are_refused():
    with pytest.raises(InputError, match="count 6 of clusters must be from 1 to the 5 examples"):
        linear.kmeans(jax.random.key(0), np.ones((5, 2), np.float32), 6)
