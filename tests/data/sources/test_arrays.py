"""A user's own arrays, and the same arrays in an .npz file: types, shapes, labels, and what is refused."""

import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import data
from deepjax.data.standardize import Standardizer
from deepjax.errors import InputError
from helpers import load_data as load
from helpers import loading_fails as fails

GOOD = {
    "x_train": np.arange(200, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 4), np.uint8),
    "y_train": np.arange(200) % 10,
    "x_test": np.zeros((30, 6, 4), np.uint8),
    "y_test": np.arange(30)[:, None] % 10,  # the form in which Keras stores the labels of CIFAR
}


def arrays(**changed):
    return {name: value for name, value in {**GOOD, **changed}.items() if value is not None}


@pytest.fixture
def npz(tmp_path):
    def write(**changed):
        np.savez(tmp_path / "set.npz", **arrays(**changed))
        return tmp_path / "set.npz"

    return write


def test_uint8_images(npz):
    for found in (data.from_arrays(**GOOD), load(npz(), validation=0.0)):
        assert found.shape == (6, 4, 1)
        assert found.classes == tuple("0123456789")
        assert found.train.images.dtype == np.uint8
        np.testing.assert_array_equal(found.train.images[..., 0], GOOD["x_train"])
        assert found.test.labels.dtype == np.int32
        assert found.test.labels.tolist() == [k % 10 for k in range(30)]
    assert load(npz()).name == "set"


def test_float_features(npz):
    features = np.linspace(-3, 3, 600).reshape(200, 3)
    for found in (
        data.from_arrays(**arrays(x_train=features, x_test=features[:30])),
        load(npz(x_train=features, x_test=features[:30]), validation=0.0),
    ):
        assert found.shape == (3,)
        assert found.train.images.dtype == np.float32
        np.testing.assert_allclose(found.train.images, features, rtol=1e-6)


def test_float_images_are_uint8_images_divided_by_255():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 6, 4, 3)).astype(np.uint8)
    whole, parts = (data.from_arrays(**arrays(x_train=x, x_test=x[:30])) for x in (pixels, jnp.asarray(pixels) / 255))
    assert parts.train.images.dtype == np.float32
    assert parts.shape == whole.shape == (6, 4, 3)
    fitted = [Standardizer.fit("channel", found.train) for found in (whole, parts)]
    np.testing.assert_allclose(fitted[0].apply(whole.test.images), fitted[1].apply(parts.test.images), atol=1e-5)


def test_named_classes_and_lists():
    points = [[0.0, 1.0], [1.0, 0.0]]
    found = data.from_arrays(points, [0, 1], points, [1, 2], classes=["a", "b", "c"], name="three")
    assert (found.name, found.classes, found.shape) == ("three", ("a", "b", "c"), (2,))
    with pytest.raises(InputError, match=r"three: label 2 in test; must be 0 to 1"):
        data.from_arrays(points, [0, 1], points, [1, 2], classes=["a", "b"], name="three")


def test_validation_split():
    found = data.from_arrays(**GOOD, x_validation=GOOD["x_test"], y_validation=GOOD["y_test"])
    assert len(found.validation) == 30
    assert len(data.from_arrays(**GOOD).validation) == 0
    for missing in ("x_validation", "y_validation"):
        given = {"x_validation": GOOD["x_test"], "y_validation": GOOD["y_test"]} | {missing: None}
        with pytest.raises(InputError, match=f"{missing} is missing"):
            data.from_arrays(**GOOD, **given)


WRONG = [
    ({"y_train": np.arange(199) % 10}, r"y_train is int64 \[199\]; give 200 integers"),
    ({"y_train": np.arange(200) / 10}, "test has labels of int32; give floats"),
    ({"y_train": np.arange(200) % 10 - 1}, "label -1 in train"),
    ({"y_test": np.full(30, 10)}, "label 10 in test; must be 0 to 9"),
    ({"y_test": np.array([2**32 + 1] * 30)}, "y_test has the label 4294967297"),
    ({"y_train": np.array([0, 2**63 + 1] * 100, np.uint64)}, "y_train has the label 9223372036854775809"),
    ({"y_train": np.array([0, 2**30] * 100)}, "label 1073741824 in train; must be less than 1,000,000"),
    ({"y_train": np.arange(200) % 2 == 0}, "y_train is bool .*; give 200 integers, .* such as y.astype"),
    ({"x_train": np.zeros((200, 6, 4), np.int64)}, "x_train is int64 with 3 axes"),
    ({"x_train": np.full((200, 6, 4), 300, np.uint16)}, "x_train is uint16 with 3 axes"),
    ({"x_train": np.zeros((200, 6), np.uint8)}, "x_train is uint8 with 2 axes"),
    ({"x_train": np.full((200, 6, 4), 1.5)}, "x_train has values from 1.5 to 1.5; scale float images"),
    ({"x_train": np.zeros((200, 6, 4))}, "x_test is uint8, x_train float32"),
    ({"x_train": np.zeros((200, 5, 4), np.uint8)}, r"x_test have shape \(6, 4, 1\), those of x_train \(5, 4, 1\)"),
    ({"x_train": np.full((200, 3), np.nan), "x_test": np.zeros((30, 3))}, "not finite"),
    ({"x_train": np.full((200, 3), 1e300), "x_test": np.zeros((30, 3))}, "not finite"),
    ({"x_train": np.zeros((0, 6, 4), np.uint8), "y_train": np.arange(0)}, "no classes"),
    ({"x_test": np.zeros((0, 6, 4), np.uint8), "y_test": np.arange(0)}, "test split is empty"),
]


@pytest.mark.parametrize(("changed", "match"), WRONG)
def test_arrays_that_are_refused(npz, changed, match):
    with pytest.raises(InputError, match=match) as caught:
        data.from_arrays(**arrays(**changed))
    assert "\n" not in str(caught.value)
    fails(match, npz(**changed))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"x_test": None}, r"lacks x_test; it has x_train"),
        ({"y_train": None}, "lacks y_train"),
        ({"x_validation": GOOD["x_test"]}, "lacks y_validation"),
        ({"y_train": np.array([{}] * 200)}, "allow_pickle=False"),
    ],
)
def test_npz_that_lacks_something(npz, changed, match):
    fails(match, npz(**changed))


def test_npz_that_cannot_be_read(npz, tmp_path):
    path = npz()
    path.write_bytes(path.read_bytes()[:-100])
    fails("set.npz: cannot be read as .npz", path)
    path.write_text("hello")
    fails("set.npz: cannot be read as .npz", path)
    fails("no such file or folder", tmp_path / "other.npz")


@pytest.mark.parametrize(
    "shape",
    ["(100000000000000,)", "(100000000000000, 28, 28)", "(-1, 6, 4)", "(" + "9" * 70 + ",)", "(200, 6", "(" * 60],
)
def test_npz_headers_that_claim_what_the_file_lacks(npz, shape):
    path = npz(x_train=None)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(48))
    fails(r"set.npz: cannot be read as .npz \(", path)


def test_data_sets_made_by_hand_have_numbers_that_no_conversion_changes():
    images, labels = GOOD["x_train"][..., None], GOOD["y_train"]

    def make(images, labels):
        split = data.Arrays(images, labels)
        return data.Dataset("own", tuple("0123456789"), images.shape[1:], split, split, split)

    make(images, labels.astype(np.uint64))
    for images_, labels_, message in (
        (images.astype(np.uint16), labels, "data set own: train has images of uint16; give uint8, or float"),
        (images, labels / 1.0, "data set own: train has labels of float64; give integers"),
        (images, labels > 3, "labels of bool"),
        (images, np.full(200, 2**32 + 1), "label 4294967297 in train; must be 0 to 9"),
    ):
        with pytest.raises(InputError, match=message):
            make(images_, labels_)
