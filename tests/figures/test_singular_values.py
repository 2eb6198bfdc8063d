"""Singular values of products: against diagonal matrices, and what the claim needs."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from deepjax.figures import Settings
from deepjax.figures import singular_values as experiment


@pytest.mark.slow
def test_the_claim_holds_for_another_seed():
    assert experiment.claim(experiment.numbers(Settings(1))).holds


def test_products_of_diagonal_matrices(monkeypatch):
    monkeypatch.setattr(experiment, "SIZE", 2)
    one = np.stack([np.diag([3.0, 1]), np.diag([0.5, 4])])
    found = experiment.products(np.stack([one, 2 * one]))
    np.testing.assert_allclose(found.values, [[4.5, 1.5], [10, 3.75]])  # means of factors 1 and 2, of 1 and 4
    np.testing.assert_allclose(found.squares, [12.5, 9.125 * 17 / 2])
    np.testing.assert_allclose(found.ranks, [10 / 9, 18.25 / 16])
    np.testing.assert_allclose(found.deviations[0], np.std([5, 20], ddof=1) / np.sqrt(2))


def test_small_matrices_are_computed_by_one_thread(monkeypatch):
    def threads(matrices=None):
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    monkeypatch.setattr(experiment, "SIZE", 4)
    monkeypatch.setattr(experiment, "products", threads)
    with threadpool_limits(2, "blas"):  # on one core there would be one thread anyway
        before = threads()
        assert max(before) == 2
        seen = experiment.numbers(Settings()).products
        assert threads() == before
    assert all(set(each) == {1} for each in seen.values())


def made_up(offset=0.0, off=0.0, rank=5.0):
    factors = np.arange(1, 9)
    ones = np.ones((8, 100))
    found = {
        name: experiment.Products(ones, tuple(gain**factors + 0.01 * offset), (0.01,) * 8, (25.0,) * 7 + (rank,))
        for name, gain in experiment.GAINS.items()
    }
    found["orthogonal"] = experiment.Products(ones + off, (1.0,) * 8, (0.0,) * 8, (100.0,) * 8)
    return experiment.Numbers(found)


def test_the_claim_needs_all_three():
    assert experiment.claim(made_up()).holds
    assert not experiment.claim(made_up(offset=-4.1)).holds
    assert not experiment.claim(made_up(off=1e-4)).holds
    assert not experiment.claim(made_up(rank=11)).holds
    assert len(experiment.draw(made_up()).axes) == 4
