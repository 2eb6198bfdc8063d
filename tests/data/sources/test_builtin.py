"""Built-in data sets: digits and toys."""

import numpy as np
import pytest

from helpers import load_data as load


def test_digits_are_fixed_and_stratified():
    digits = load("digits")
    splits = digits.train, digits.validation, digits.test
    assert [len(split) for split in splits] == [1297, 200, 300]
    assert digits.shape == (8, 8, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.images.max() == 255  # 16 of the stored 0..16
    for split in splits:
        counts = np.bincount(split.labels, minlength=10) / len(split)
        np.testing.assert_allclose(counts, 0.1, atol=0.01)
    everything = np.concatenate([split.images for split in splits]).reshape(1797, -1)
    sklearn_sum = 561718  # of load_digits().data
    assert np.rint(everything * (16 / 255)).sum() == sklearn_sum
    np.testing.assert_array_equal(load("digits", seed=7).train.images, digits.train.images)


@pytest.mark.parametrize("name", ["spirals", "disc", "xor"])
def test_toys(name):
    toy = load(name)
    assert toy.shape == (2,)
    assert toy.train.images.dtype == np.float32
    assert [len(toy.train), len(toy.validation), len(toy.test)] == [1000, 200, 200]
    assert abs(toy.train.labels.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)
    assert np.abs(toy.train.images).max() < 1.3
    # A nearest neighbour finds the classes, a linear rule does not.
    distances = ((toy.test.images[:, None] - toy.train.images[None]) ** 2).sum(-1)
    assert (toy.train.labels[distances.argmin(1)] == toy.test.labels).mean() > 0.85
    inputs = np.c_[toy.train.images, np.ones(1000)]
    weights = np.linalg.lstsq(inputs, toy.train.labels - 0.5)[0]
    assert ((inputs @ weights > 0) == toy.train.labels).mean() < 0.8


def test_moons_have_the_moments_of_scikit_learns():
    from sklearn.datasets import make_moons

    toy = load("moons")
    assert [len(toy.train), len(toy.validation), len(toy.test)] == [1000, 200, 200]
    theirs, classes = make_moons(20_000, noise=0.2, random_state=0)
    for k in (0, 1):
        ours, wanted = toy.train.images[toy.train.labels == k], theirs[classes == k]
        for power in (1, 2):
            a, b = ours.astype(float) ** power, wanted**power
            errors = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
            assert (abs(a.mean(0) - b.mean(0)) < 4 * errors).all()
