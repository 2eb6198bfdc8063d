"""From a name to a data set: names, numbers, the validation split, size, placement; what importing costs."""

import subprocess
import sys

import numpy as np
import pytest

import helpers
from deepjax import data
from deepjax.config import Augment, Data
from deepjax.errors import InputError
from helpers import load_data as load
from helpers import loading_fails as fails
from helpers import write_images


def numbered(**changed):
    """200 training images of 10 classes, 30 test images; the pixel is the image's number."""
    arrays = {
        "x_train": np.arange(200, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 4), np.uint8),
        "y_train": np.arange(200) % 10,
        "x_test": np.zeros((30, 6, 4), np.uint8),
        "y_test": np.arange(30) % 10,
    }
    return data.from_arrays(**arrays | changed, name="set")


def configure(dataset, seed=0, **fields):
    return data.load(Data(**fields), "", seed, given=dataset)


def refused(match, dataset, **fields):
    with pytest.raises(InputError, match=match):
        configure(dataset, **fields)


# --- validation


def test_validation_is_stratified_and_seeded():
    dataset = numbered()
    found = configure(dataset, validation=0.2)
    assert found.shape == (6, 4, 1)
    assert np.bincount(found.validation.labels).tolist() == [4] * 10
    assert len(configure(dataset).validation) == 20  # the default is one tenth
    numbers = [split.images[:, 0, 0, 0] for split in (found.train, found.validation)]
    assert sorted(np.concatenate(numbers)) == list(range(200))
    np.testing.assert_array_equal(found.train.labels, numbers[0] % 10)  # labels moved along
    again, other = configure(dataset, validation=0.2), configure(dataset, seed=1, validation=0.2)
    np.testing.assert_array_equal(again.validation.images, found.validation.images)
    assert (other.validation.images != found.validation.images).any()
    assert np.bincount(configure(dataset, validation=0.01).validation.labels).tolist() == [1] * 10
    everything = configure(dataset, validation=0.0)
    assert len(everything.validation) == 0
    assert len(everything.train) == 200


def test_own_validation_split():
    dataset = numbered(x_validation=np.ones((5, 6, 4), np.uint8), y_validation=np.arange(5))
    assert configure(dataset).validation.images.min() == 1
    refused("data.validation 0.1: set has its own validation split", dataset, validation=0.1)
    fails("has its own", "digits", validation=0.1)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"validation": -0.1}, r"data.validation -0.1 must be in"),
        ({"validation": 1.0}, r"data.validation 1.0 must be in"),
        ({"validation": float("nan")}, r"data.validation nan must be finite"),
        ({"validation": 0.99}, "data.validation 0.99: 200 examples of 10 classes cannot be split"),
        ({"test_seed": 1}, "data.test_seed 1: is for folders of images"),
        ({"test": 0.1}, "data.test 0.1: is for folders of images"),
        ({"skip_broken": True}, "data.skip_broken True: is for folders of images"),
        ({"image_size": -1}, "image_size -1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_numbers_out_of_range(fields, match):
    refused(match, numbered(), **fields)


# --- size and placement


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_arrays_are_resized_without_cropping(kind):
    ramp = np.broadcast_to(np.linspace(0, 1, 4), (10, 6, 4))  # from left to right
    images = (ramp * 255).astype(kind) if kind == np.uint8 else ramp.astype(kind)
    dataset = data.from_arrays(images, np.arange(10) % 2, images, np.arange(10) % 2)
    found = configure(dataset, image_size=12, validation=0.0)
    assert found.shape == found.train.images.shape[1:] == (12, 12, 1)
    assert found.train.images.dtype == kind
    rows = found.train.images[3, :, :, 0] / (255 if kind == np.uint8 else 1)
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:1], rows.shape), atol=1e-6)
    expected = np.interp((np.arange(12) + 0.5) / 3 - 0.5, np.arange(4), np.linspace(0, 1, 4))
    np.testing.assert_allclose(rows[0], expected, atol=1 / 255 if kind == np.uint8 else 1e-6)


def test_features_have_no_size():
    fails("data.image_size 5: spirals has features", "spirals", image_size=5)


def test_area_needs_images_one_by_one(tmp_path):
    write_images(tmp_path / "train", {"a": 8, "b": 8})
    write_images(tmp_path / "test", {"a": 1})
    area = Augment(area=(0.08, 1.0))
    assert isinstance(load(tmp_path, image_size=8, augment=area, validation=0.0).train, data.Records)
    fails("data.augment.area", tmp_path, image_size=8, augment=area, placement="device")
    refused("data.augment.area", numbered(), augment=area)


def test_placement_goes_by_size(tmp_path, monkeypatch):
    write_images(tmp_path / "train", {"a": 15, "b": 15})
    write_images(tmp_path / "test", {"a": 1})
    monkeypatch.setattr("deepjax.data.loading.MEMORY_LIMIT", 31 * 20 * 16 * 3)
    assert isinstance(load(tmp_path).train, data.Arrays)
    monkeypatch.setattr("deepjax.data.loading.MEMORY_LIMIT", 31 * 20 * 16 * 3 - 1)
    assert isinstance(load(tmp_path).train, data.Records)
    assert isinstance(load(tmp_path, placement="device").train, data.Arrays)


# --- names


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("digit", "did you mean 'digits'"),
        ("minst", "did you mean 'mnist'"),
        ("qqqqqqqq", "choose from cifar10, cifar100, diabetes, digits, "),
        ("???", "choose from"),
        ("", "choose from"),
        ("/no/such/place", "no such file or folder"),
        ("missing.npz", "no such file or folder"),
    ],
)
def test_unknown_name(tmp_path, name, match):
    fails(match, name, tmp_path)


def test_unprepared_name_says_how_to_prepare(tmp_path):
    fails(
        f"'cifar10': not prepared in data_dir '{tmp_path}'; run: deepjax datasets prepare cifar10 --data-dir",
        "cifar10",
        tmp_path,
    )
    for name in ("cifar10", "qqqqqqqq"):
        fails(f"data_dir {tmp_path}/no: no such folder", name, tmp_path / "no")


def test_about_agrees_with_loading(tmp_path):
    write_images(tmp_path / "train", {"a": 15, "b": 15})
    write_images(tmp_path / "test", {"a": 4})
    for fields in ({"name": "digits"}, {"name": str(tmp_path)}, {"name": "xor"}):
        about, found = (f(Data(**fields), "", 0) for f in (data.about, data.load))
        sizes = [len(split) for split in (found.train, found.validation, found.test)]
        assert about == (found.shape, len(found.classes), sizes[0], sum(sizes))
    resized = data.about(Data("cifar10", image_size=40, validation=0.2), str(tmp_path), 0)  # no file is needed
    assert resized == ((40, 40, 3), 10, 40_000, 60_000)
    with pytest.raises(InputError, match="not prepared"):
        data.about(Data("imagenet2012"), str(tmp_path), 0)


def test_import_is_light():
    """Nothing heavy, and never TensorFlow or torch."""
    heavy = ("tensorflow_datasets", "grain", "sklearn", "PIL", "tensorflow", "torch")
    code = f"import sys, deepjax.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=helpers.ROOT)
    assert done.stdout.strip() == "[]"
