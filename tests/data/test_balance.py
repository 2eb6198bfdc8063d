"""Weights and orders for classes with unequal numbers of examples."""

import numpy as np
import pytest
from PIL import Image

from deepjax import data
from deepjax.config import Augment, Data
from deepjax.data.balance import balanced_order, check_balance, repeats
from deepjax.data.sources.folder import FolderFiles
from deepjax.errors import InputError

LABELS = np.repeat([0, 1, 2, 4], [50, 7, 20, 1]).astype(np.int32)  # class 3 has no example


def test_weights_are_inverse_to_frequencies_and_their_mean_over_examples_is_1():
    weights = data.class_weights(LABELS, 6).astype(np.float64)
    counts = np.bincount(LABELS, minlength=6)
    assert weights[[3, 5]].tolist() == [0, 0]
    np.testing.assert_allclose((weights * counts)[[0, 1, 2, 4]], len(LABELS) / 4, rtol=1e-6)
    np.testing.assert_allclose(weights[LABELS].mean(), 1, rtol=1e-6)


def orders(count=300):
    return [data.epoch_order(3, epoch, 78, 10, shuffle=True, balance=LABELS) for epoch in range(count)]


def test_each_epoch_has_equally_many_examples_of_each_class():
    shares, uses = np.zeros(5), np.zeros(78)
    for indices, mask in orders():
        assert (indices.shape, mask.sum()) == ((8, 10), 78)
        order = indices[mask]
        counts, used = np.bincount(LABELS[order], minlength=5), np.bincount(order, minlength=78)
        assert counts[3] == 0
        assert set(counts[[0, 1, 2, 4]]) == {19, 20}
        for label in (0, 1, 2):
            times = used[label == LABELS]
            assert times.max() - times.min() <= 1
        shares, uses = shares + counts, uses + used
    # Two of four classes get the larger half of the remainder. They are drawn in each epoch, as are repeated examples.
    assert (abs(shares[[0, 1, 2, 4]] - 300 * 19.5) < 4 * np.sqrt(300 / 4)).all()
    of_first = uses[LABELS == 0]
    assert (abs(of_first - of_first.mean()) < 4 * np.sqrt(300 * 0.39 * 0.61)).all()


def test_the_order_depends_on_seed_and_epoch_and_is_mixed():
    first, again, other = (data.epoch_order(1, epoch, 78, 78, shuffle=True, balance=LABELS)[0] for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    places = np.concatenate([np.flatnonzero(LABELS[indices[mask]] == 4) for indices, mask in orders()])
    assert abs(places.mean() - 38.5) < 4 * 77 / np.sqrt(12 * len(places))


def test_many_classes_are_quick():
    labels = np.arange(60_000) % 22_000
    order = balanced_order(labels, np.random.default_rng(0))
    assert set(np.bincount(labels[order])) == {2, 3}


def test_repeats_are_counted_from_0():
    order = np.random.default_rng(0).integers(0, 7, 100)
    assert repeats(order).tolist() == [int((order[:k] == order[k]).sum()) for k in range(100)]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_the_loaders_of_arrays_balance_in_training_only(placement):
    pixels = np.arange(78, dtype=np.uint8).reshape(78, 1, 1, 1)
    split, wanted = data.Arrays(pixels, LABELS), Data(balance="sample", placement=placement)
    for train in (True, False):
        loader = data.make_loader(split, wanted, 40, 0, train=train)
        batches = [loader.fetch(loader.data, rows) for rows in loader.epoch(2)]
        labels = np.concatenate([np.asarray(batch["label"])[np.asarray(batch["mask"])] for batch in batches])
        pixel = np.concatenate([np.asarray(batch["image"])[np.asarray(batch["mask"])] for batch in batches])[:, 0, 0, 0]
        np.testing.assert_array_equal(LABELS[pixel], labels)
        assert (labels == 4).sum() in ((19, 20) if train else (1,))


def test_a_repeated_file_is_cropped_at_another_place(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    files = FolderFiles((tmp_path / "one.png",))
    split = data.Records(files, np.zeros(6, int), np.array([0, 0, 0, 0, 0, 1], np.int32), (8, 8, 3), "photograph")
    wanted = Data(balance="sample", placement="host", augment=Augment(area=(0.1, 0.5)))
    loader = data.make_loader(split, wanted, 6, 0, train=True)
    (batch,), (again,) = list(loader.epoch(0)), list(loader.epoch(0))
    np.testing.assert_array_equal(batch["image"], again["image"])
    assert len(np.unique(batch["image"][batch["label"] == 1].reshape(3, -1), axis=0)) == 3


def test_equal_classes_need_no_balance():
    with pytest.raises(InputError, match="data.balance loss does nothing: each of the 3 classes has 4"):
        check_balance(Data(balance="loss"), np.arange(12) % 3)
    check_balance(Data(), np.arange(12) % 3)
    check_balance(Data(balance="loss"), np.arange(13) % 3)
