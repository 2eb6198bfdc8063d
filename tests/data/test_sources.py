"""Where images come from: built-in sets, files that the tests write, and TFDS's files in ../shared."""

import gzip
import importlib
import importlib.util
import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import helpers
from deepjax import data
from deepjax.config import Augment, Data
from deepjax.data import files, images
from deepjax.errors import InputError

SHARED = helpers.TFDS
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is missing")


def load(name, data_dir="", seed=0, **fields):
    return data.load(Data(str(name), **fields), str(data_dir), seed)


def fails(match, name, data_dir="", **fields):
    """Loading raises InputError with one line that matches."""
    with pytest.raises(InputError, match=match) as caught:
        load(name, data_dir, **fields)
    assert "\n" not in str(caught.value)


# --- built in


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


# --- validation


@pytest.fixture
def npz(tmp_path):
    """200 training images of 10 classes, 30 test images; the pixel is the image's number."""
    arrays = {
        "x_train": np.arange(200, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 4), np.uint8),
        "y_train": np.arange(200) % 10,
        "x_test": np.zeros((30, 6, 4), np.uint8),
        "y_test": np.arange(30)[:, None] % 10,  # as Keras stores CIFAR's
    }

    def write(**changed):
        kept = {key: value for key, value in {**arrays, **changed}.items() if value is not None}
        np.savez(tmp_path / "set.npz", **kept)
        return tmp_path / "set.npz"

    return write


def test_validation_is_stratified_and_seeded(npz):
    path = npz()
    found = load(path, validation=0.2)
    assert found.shape == (6, 4, 1)
    assert np.bincount(found.validation.labels).tolist() == [4] * 10
    assert len(load(path).validation) == 20  # one tenth unless told otherwise
    numbers = [split.images[:, 0, 0, 0] for split in (found.train, found.validation)]
    assert sorted(np.concatenate(numbers)) == list(range(200))
    np.testing.assert_array_equal(found.train.labels, numbers[0] % 10)  # labels moved along
    again, other = load(path, validation=0.2), load(path, seed=1, validation=0.2)
    np.testing.assert_array_equal(again.validation.images, found.validation.images)
    assert (other.validation.images != found.validation.images).any()


def test_validation_zero_keeps_all(npz):
    found = load(npz(), validation=0.0)
    assert len(found.validation) == 0
    assert len(found.train) == 200


def test_own_validation_split(npz):
    path = npz(x_validation=np.ones((5, 6, 4), np.uint8), y_validation=np.arange(5))
    assert load(path).validation.images.min() == 1
    fails("data.validation 0.1: set has its own validation split", path, validation=0.1)
    fails("has its own", "digits", validation=0.1)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_validation_outside_range(npz, fraction):
    fails(r"data.validation .*: must be a fraction", npz(), validation=fraction)


def test_validation_that_cannot_be_stratified(npz):
    fails("data.validation 0.01: .*stratified", npz(), validation=0.01)


# --- .npz


def test_npz_features(npz):
    features = np.linspace(0, 1, 600).reshape(200, 3)
    found = load(npz(x_train=features, x_test=features[:30]), validation=0.0)
    assert found.shape == (3,)
    assert found.train.images.dtype == np.float32
    np.testing.assert_allclose(found.train.images, features, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"x_test": None}, r"lacks x_test; it has x_train"),
        ({"y_train": None}, "lacks y_train"),
        ({"y_train": np.arange(199) % 10}, "give 200 integers"),
        ({"y_train": np.arange(200) / 10}, "labels are float64"),
        ({"y_train": np.arange(200) % 10 - 1}, "label -1 in train"),
        ({"y_test": np.full(30, 10)}, "label 10 in test; must be 0 to 9"),
        ({"x_train": np.zeros((200, 6, 4))}, "float64 with 3 axes"),
        ({"x_train": np.zeros((200, 5, 4), np.uint8)}, r"x_test have shape \(6, 4, 1\), x_train \(5, 4, 1\)"),
        ({"x_train": np.full((200, 3), np.nan), "x_test": np.zeros((30, 3))}, "not finite"),
        ({"x_train": np.zeros((0, 6, 4), np.uint8), "y_train": np.arange(0)}, "no classes"),
        ({"x_test": np.zeros((0, 6, 4), np.uint8), "y_test": np.arange(0)}, "test split is empty"),
        ({"y_train": np.array([{}] * 200)}, "allow_pickle=False"),
    ],
)
def test_npz_that_is_wrong(npz, changed, match):
    fails(match, npz(**changed))


def test_npz_truncated(npz):
    path = npz()
    path.write_bytes(path.read_bytes()[:-100])
    fails("set.npz: cannot be read as .npz", path)


def test_npz_that_is_something_else(tmp_path):
    (tmp_path / "set.npz").write_text("hello")
    fails("set.npz: cannot be read as .npz", tmp_path / "set.npz")


def test_npz_resized(npz):
    found = load(npz(), image_size=12, validation=0.0)
    assert found.shape == found.train.images.shape[1:] == (12, 12, 1)
    assert (found.train.images[7] == 7).all()  # constant images stay so
    fails("data.image_size 5: spirals has features", "spirals", image_size=5)


# --- original files


def write_idx(path, array):
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder, suffix="", separator="-"):
    rng = np.random.default_rng(0)
    written = {}
    for prefix, count in (("train", 60), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{prefix}-images{separator}idx3-ubyte{suffix}", pixels)
        write_idx(folder / f"{prefix}-labels{separator}idx1-ubyte{suffix}", labels)
        written[prefix] = pixels, labels
    return written


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("separator", ["-", "."])
def test_mnist_files(tmp_path, suffix, separator):
    written = write_mnist(tmp_path, suffix, separator)
    found = load("mnist", tmp_path, validation=0.0)
    assert found.shape == (28, 28, 1)
    np.testing.assert_array_equal(found.train.images[..., 0], written["train"][0])
    np.testing.assert_array_equal(found.test.labels, written["t10k"][1])
    assert found.train.labels.dtype == np.int32


def test_fashion_mnist_in_its_own_folder_beside_mnist(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "fashion_mnist").mkdir()
    write_mnist(tmp_path / "fashion_mnist", ".gz")
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((60, 28, 28), np.uint8))
    assert load("mnist", tmp_path, validation=0.0).train.images.max() == 0
    fashion = load("fashion_mnist", tmp_path, validation=0.0)
    assert fashion.train.images.max() > 0
    assert fashion.classes[9] == "Ankle boot"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_truncated(tmp_path, suffix):
    write_mnist(tmp_path, suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    fails(rf"{path}: 4[\d,]+ bytes, expected 47,056", "mnist", tmp_path)
    path.write_bytes(whole[:-5])  # of .gz: less than its check sum
    fails(
        f"{path}: the last bytes of the gzip" if suffix else "47,051 bytes, expected 47,056",
        "mnist",
        tmp_path,
    )


def test_mnist_broken(tmp_path):
    write_mnist(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes((tmp_path / "train-images-idx3-ubyte").read_bytes())
    fails(f"{labels}: not an IDX file", "mnist", tmp_path)
    labels.write_bytes(b"\x1f\x8b" + bytes(40))
    fails(f"{labels}: broken gzip", "mnist", tmp_path)
    labels.unlink()
    fails(f"{labels}: not found", "mnist", tmp_path)


def write_cifar(path, count, label_bytes, rng):
    rows = rng.integers(0, 256, (count, label_bytes + 3072)).astype(np.uint8)
    rows[:, label_bytes - 1] = np.arange(count) % 10
    path.write_bytes(rows.tobytes())
    return rows


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10_files(tmp_path, monkeypatch, inner):
    monkeypatch.setattr(files, "CIFAR10_BATCH", 20)
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    rows = [write_cifar(folder / f"data_batch_{k}.bin", 20, 1, rng) for k in range(1, 6)]
    write_cifar(folder / "test_batch.bin", 20, 1, rng)
    found = load("cifar10", tmp_path, validation=0.0)
    assert [len(found.train), len(found.test)] == [100, 20]
    assert found.classes[3] == "cat"
    # Row 2 of the third file: its second row of green pixels begins after label, red plane and one row.
    np.testing.assert_array_equal(found.train.images[42, 1, :, 1], rows[2][2, 1 + 1024 + 32 :][:32])
    np.testing.assert_array_equal(found.train.labels[40:60], rows[2][:, 0])
    batch = folder / "data_batch_4.bin"
    batch.write_bytes(batch.read_bytes()[:3073])
    fails(f"{batch}: 3,073 bytes, expected 61,460", "cifar10", tmp_path)
    batch.unlink()
    fails(f"{batch}: not found", "cifar10", tmp_path)


def test_cifar100_files_have_fine_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CIFAR100_SIZES", {"train": 50, "test": 20})
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = write_cifar(folder / "train.bin", 50, 2, rng)
    write_cifar(folder / "test.bin", 20, 2, rng)
    (folder / "fine_label_names.txt").write_text("\n".join(f"class{k}" for k in range(100)) + "\n")
    found = load("cifar100", tmp_path, validation=0.0)
    assert found.classes[99] == "class99"
    np.testing.assert_array_equal(found.train.labels, rows[:, 1])
    np.testing.assert_array_equal(found.train.images[0, 0, :, 0], rows[0, 2:34])


# --- folders


def write_images(folder, counts, size=(20, 16), suffix=".png"):
    """counts: class -> number of images of one colour each; size: (width, height)."""
    for k, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", size, (k * 40, number, 200)).save(folder / name / f"{number:03}{suffix}")


def test_folder(tmp_path):
    write_images(tmp_path / "train", {"cat": 12, "ant": 12})
    write_images(tmp_path / "test", {"ant": 3})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    found = load(tmp_path, validation=0.25)
    assert found.classes == ("ant", "cat")
    assert found.shape == (16, 20, 3)
    assert isinstance(found.train, data.Arrays)  # small enough
    assert [len(found.train), len(found.validation), len(found.test)] == [18, 6, 3]
    assert found.test.labels.tolist() == [0, 0, 0]
    # write_images wrote cat first, with red 0; ant has red 40
    np.testing.assert_array_equal(found.train.images[:, 0, 0, 0], np.where(found.train.labels == 0, 40, 0))
    assert found.train.images[0, 3, 5].tolist()[2] == 200


@pytest.mark.parametrize("held_out", ["val", "validation"])
def test_folder_validation_serves_as_test_where_there_is_none(tmp_path, held_out):
    write_images(tmp_path / "train", {"a": 20, "b": 20}, suffix=".jpg")
    write_images(tmp_path / held_out, {"a": 2, "b": 2}, suffix=".JPEG")
    found = load(tmp_path)
    assert [len(found.train), len(found.validation), len(found.test)] == [36, 4, 4]
    write_images(tmp_path / "test", {"a": 1, "b": 0 + 1})
    found = load(tmp_path)
    assert [len(found.train), len(found.validation), len(found.test)] == [40, 4, 2]


def test_folder_that_is_wrong(tmp_path):
    fails("has no train/", f"{tmp_path}/")
    write_images(tmp_path / "train", {"a": 3})
    fails("has no test/ and no val/", tmp_path)
    write_images(tmp_path / "test", {"a": 3, "zebra": 1})
    fails("zebra: class 'zebra' is not in train/", tmp_path)
    (tmp_path / "train" / "zebra").mkdir()
    fails("train/zebra: has no .png", tmp_path)


def test_folder_of_differing_sizes_needs_image_size(tmp_path):
    write_images(tmp_path / "train", {"a": 8, "b": 8})
    write_images(tmp_path / "test", {"a": 1}, size=(33, 44))
    fails(r"data.image_size 0: .*000.png has 16x20 pixels, .*test/a/000.png 44x33; give", tmp_path)
    found = load(tmp_path, image_size=14, placement="host", validation=0.0)
    assert isinstance(found.train, data.Records)
    assert found.shape == (14, 14, 3)
    assert found.test.read([0]).shape == (1, 14, 14, 3)


@pytest.mark.parametrize("placement", ["device", "host"])
def test_broken_image_is_named(tmp_path, placement):
    write_images(tmp_path / "train", {"a": 8, "b": 8}, suffix=".jpg")
    write_images(tmp_path / "test", {"a": 1}, suffix=".jpg")
    broken = tmp_path / "train" / "b" / "003.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(InputError, match=f"{broken}: cannot be read as an image"):
        load(tmp_path, image_size=14, placement=placement, validation=0.0).train.read(range(16))
    broken.write_bytes(b"nothing")
    fails(f"{broken}: cannot be read as an image", tmp_path)  # already its header
    broken.unlink()
    lazy = load(tmp_path, image_size=14, placement="host", validation=0.0)
    (tmp_path / "train" / "a" / "001.jpg").unlink()
    with pytest.raises(InputError, match=r"a/001.jpg: cannot be read \(No such file"):
        lazy.train.read([1])


def test_centre_crop_is_imagenets():
    """Shorter side to 256/224 of the crop, then the centre: 7/8 of it remains."""
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(128, 0)  # 256 wide, 128 high
    cropped = np.asarray(images.centre(Image.fromarray(ramp), 112, 112))
    np.testing.assert_array_equal(cropped, ramp[:112, 72:184])


def test_random_area_crop_statistics():
    """The box's area is uniform in the range and its aspect within 3/4 and 4/3."""
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    rng = np.random.default_rng(0)
    crops = [np.asarray(images.random_area(image, 32, 32, (0.1, 0.4), rng), float) for _ in range(400)]
    # Pixel centres of the outer columns lie 31/32 of the box's width apart.
    widths = np.array([(c[0, -1, 0] - c[0, 0, 0]) * 32 / 31 for c in crops])
    heights = np.array([(c[-1, 0, 1] - c[0, 0, 1]) * 32 / 31 for c in crops])
    areas = widths * heights / 256**2
    assert 0.09 < areas.min() < 0.12
    assert 0.38 < areas.max() < 0.42
    assert abs(areas.mean() - 0.25) < 4 * 0.3 / np.sqrt(12 * 400) + 0.005
    aspects = np.log(widths / heights)
    assert np.abs(aspects).max() < np.log(4 / 3) + 0.05
    assert abs(aspects.std() / (2 * np.log(4 / 3) / np.sqrt(12)) - 1) * np.sqrt(400 / 2) < 4
    lefts = np.array([c[0, 0, 0] for c in crops])
    assert lefts.min() < 20
    assert lefts.max() > 120


def test_random_area_of_an_image_too_thin():
    thin = Image.new("L", (400, 10), 9)
    assert np.asarray(images.random_area(thin, 8, 8, (0.9, 1.0), np.random.default_rng(0))).tolist() == [[9] * 8] * 8


def test_area_needs_images_one_by_one(tmp_path, npz):
    write_images(tmp_path / "train", {"a": 8, "b": 8})
    write_images(tmp_path / "test", {"a": 1})
    area = Augment(area=(0.08, 1.0))
    assert isinstance(load(tmp_path, image_size=8, augment=area, validation=0.0).train, data.Records)
    fails("data.augment.area", tmp_path, image_size=8, augment=area, placement="device")
    fails("data.augment.area", npz(), augment=area)


def test_read_image_is_what_evaluation_sees(tmp_path):
    write_images(tmp_path / "train", {"a": 8, "b": 8}, size=(31, 17))
    write_images(tmp_path / "test", {"a": 1}, size=(9, 12))
    found = load(tmp_path, image_size=8, validation=0.0)
    read = data.read_image(tmp_path / "train" / "b" / "005.png", (8, 8, 3), found.fit)
    np.testing.assert_array_equal(read, found.train.images[13])


# --- names


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("digit", "did you mean 'digits'"),
        ("minst", "did you mean 'mnist'"),
        ("qqqqqqqq", "choose from cifar10, cifar100, digits, "),
        ("???", "choose from"),
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
    fails(f"data_dir {tmp_path}/no: no such folder", "cifar10", tmp_path / "no")


@pytest.mark.parametrize(("fields", "match"), [({"seed": -1}, "seed -1"), ({"image_size": -1}, "image_size -1")])
def test_numbers_out_of_range(fields, match):
    fails(match, "digits", **fields)


def test_a_folder_of_tfds_is_not_a_folder_of_images(tmp_path, monkeypatch):
    """./mnist is where TFDS keeps mnist when one works in data_dir."""
    (tmp_path / "mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    fails("'mnist': not prepared", "mnist", tmp_path)


def test_available(tmp_path):
    write_mnist(tmp_path)
    rows = {row.name: row for row in data.available(str(tmp_path))}
    assert rows["digits"].status == "ready"
    assert rows["mnist"].kind == "original files"
    assert rows["mnist"].status == str(tmp_path)
    assert rows["cifar10"].status == f"deepjax datasets prepare cifar10 --data-dir {tmp_path}"


# --- TFDS


@needs_shared
@pytest.mark.parametrize(
    ("name", "shape", "mean"),
    [("mnist", (28, 28, 1), [0.1307]), ("cifar10_jpeg", (32, 32, 3), [0.4914, 0.4822, 0.4465])],
)
def test_tfds_set_in_memory(name, shape, mean):
    found = load(name, SHARED)
    sizes = [len(split) for split in (found.train, found.validation, found.test)]
    assert sum(sizes[:2]) == (60_000 if name == "mnist" else 50_000)
    assert sizes[1] * 10 == sum(sizes[:2])
    assert sizes[2] == 10_000
    assert found.train.images.shape[1:] == found.shape == shape
    assert (found.train.images[:100].reshape(100, -1).max(1) > 100).all()
    counts = np.bincount(found.train.labels, minlength=10) / sizes[0]
    assert len(found.classes) == len(counts) == 10
    assert np.abs(counts - 0.1).max() < 0.015
    np.testing.assert_allclose(data.channel_statistics(found.train)[0], mean, atol=2e-3)  # as everybody quotes them
    assert "tensorflow" not in sys.modules


@needs_shared
def test_tfds_set_read_lazily_gives_the_same_images():
    lazy = load("mnist", SHARED, placement="host")
    assert isinstance(lazy.test, data.Records)
    some = lazy.test.take(np.array([5, 3, 9000]))
    rows = lazy.test.take(np.arange(9001)).in_memory()
    np.testing.assert_array_equal(some.read([0, 1, 2]), rows.images[[5, 3, 9000]])
    np.testing.assert_array_equal(some.labels, rows.labels[[5, 3, 9000]])


@needs_shared
def test_tfds_set_resized():
    lazy = load("mnist", SHARED, placement="host", image_size=32)
    stored = load("mnist", SHARED, placement="host")
    assert lazy.shape == (32, 32, 1)
    whole = np.asarray(Image.fromarray(stored.test.read([0])[0, ..., 0]).resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(lazy.test.read([0])[0, ..., 0], whole)


@needs_shared
def test_tfds_available():
    rows = {row.name: row for row in data.available(str(SHARED))}
    assert rows["cifar10_jpeg"].what == "50,000 + 10,000 images, 32x32x3, 10 classes"
    assert "cifar10_jpeg" in rows["cifar10_jpeg"].status


FORMAT = "array_record"


def write_tfds(data_dir, splits, sides=(20, 30), image_class="image_feature.Image", file_format="array_record"):
    """A prepared set "shapes": splits: name -> labels; sides: of each image, or (-1, -1) for several."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / "shapes" / "1.0.0"
    folder.mkdir(parents=True)
    for split, labels in splits.items():
        path = folder / f"shapes-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for number, label in enumerate(labels):
            height, width = sides if sides[0] > 0 else (20 + number, 30)
            buffer = io.BytesIO()
            Image.new("RGB", (width, height), (number, 7 * label % 256, 0)).save(buffer, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(buffer.getvalue())
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
    core = "tensorflow_datasets.core.features"
    image = {"dtype": "uint8", "shape": {"dimensions": [str(side) for side in (*sides, 3)]}}
    features = {
        "image": {"image": image, "pythonClassName": f"{core}.{image_class}"},
        "label": {
            "classLabel": {"numClasses": "3"},
            "pythonClassName": f"{core}.class_label_feature.ClassLabel",
        },
    }
    whole = {"featuresDict": {"features": features}, "pythonClassName": f"{core}.features_dict.FeaturesDict"}
    info = {
        "fileFormat": file_format,
        "name": "shapes",
        "version": "1.0.0",
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(labels))],
            }
            for split, labels in splits.items()
        ],
    }
    (folder / "features.json").write_text(json.dumps(whole))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return data_dir


LABELS = [k % 3 for k in range(30)]


def test_tfds_validation_split(tmp_path):
    write_tfds(tmp_path, {"train": LABELS, "validation": [0, 1], "test": [2, 1, 0]})
    found = load("shapes", tmp_path)
    assert found.shape == (20, 30, 3)
    assert [len(found.train), len(found.validation), len(found.test)] == [30, 2, 3]
    np.testing.assert_array_equal(found.train.images[:, 0, 0, 0], range(30))
    np.testing.assert_array_equal(found.train.labels, LABELS)
    assert found.test.labels.tolist() == [2, 1, 0]
    fails("has its own validation split", "shapes", tmp_path, validation=0.5)
    row = data.available(str(tmp_path))[-1]
    assert row[:3] == ("shapes", "TFDS", "30 + 2 + 3 images, 20x30x3, 3 classes")


def test_tfds_validation_serves_as_test_where_the_test_labels_are_secret(tmp_path):
    """As in imagenet2012."""
    write_tfds(tmp_path, {"train": LABELS, "validation": [0, 1, 2, 1], "test": [-1] * 5})
    found = load("shapes", tmp_path, validation=0.2)
    assert [len(found.train), len(found.validation), len(found.test)] == [24, 6, 4]
    assert found.test.labels.tolist() == [0, 1, 2, 1]


def test_tfds_photographs_of_several_sizes(tmp_path):
    write_tfds(tmp_path, {"train": LABELS, "test": [1]}, sides=(-1, -1))
    fails("data.image_size 0: shapes's images differ in size; give data.image_size", "shapes", tmp_path)
    found = load("shapes", tmp_path, image_size=16)
    assert found.fit == "photograph"
    assert found.train.images.shape == (27, 16, 16, 3)
    lazy = load("shapes", tmp_path, image_size=16, placement="host")
    np.testing.assert_array_equal(lazy.train.read(range(27)), found.train.images)


def test_placement_goes_by_size(tmp_path, monkeypatch):
    write_tfds(tmp_path, {"train": LABELS, "test": [1]})
    monkeypatch.setattr("deepjax.data.sources.MEMORY_LIMIT", 31 * 20 * 30 * 3)
    assert isinstance(load("shapes", tmp_path).train, data.Arrays)
    monkeypatch.setattr("deepjax.data.sources.MEMORY_LIMIT", 31 * 20 * 30 * 3 - 1)
    assert isinstance(load("shapes", tmp_path).train, data.Records)
    assert isinstance(load("shapes", tmp_path, placement="device").train, data.Arrays)


def test_tfds_set_that_is_wrong(tmp_path):
    fails(
        "no image with a class label",
        "shapes",
        write_tfds(tmp_path / "a", {"train": LABELS, "test": [1]}, image_class="text_feature.Text"),
    )
    fails(
        "needs the splits train and test or validation, it has train",
        "shapes",
        write_tfds(tmp_path / "b", {"train": LABELS}),
    )
    fails(
        "is prepared as tfrecord; prepare it as array_record",
        "shapes",
        write_tfds(tmp_path / "c", {"train": LABELS, "test": [1]}, file_format="tfrecord"),
    )
    fails(
        "label 3 in train; must be 0 to 2",
        "shapes",
        write_tfds(tmp_path / "d", {"train": [*LABELS, 3], "test": [1]}),
    )


def test_tfds_image_is_called_by_split_and_number(tmp_path):
    write_tfds(tmp_path, {"train": LABELS, "test": [1]})
    found = load("shapes", tmp_path, placement="host")
    assert found.train.files.where(4) == "shapes/1.0.0 train, image 4"


@needs_shared
def test_tfds_files_missing(tmp_path):
    version = tmp_path / "mnist" / "3.0.1"
    version.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        (version / name).write_bytes((SHARED / "mnist" / "3.0.1" / name).read_bytes())
    fails(r"mnist/3.0.1 train: cannot be read \(.*No such file", "mnist", tmp_path)
    (version / "mnist-train.array_record-00000-of-00001").write_bytes(b"broken")
    fails(r"mnist/3.0.1 train: cannot be read", "mnist", tmp_path)


# --- prepare and imports


def test_prepare_without_tensorflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"mnist: needs TensorFlow to prepare; pip install 'deepjax\[prepare\]'"):
        data.prepare("mnist", "")


@pytest.mark.parametrize(
    ("code", "match"),
    [
        (
            "print('deepjax-prepare-failed: ValueError: no network'); raise SystemExit(1)",
            "mnist: ValueError: no network$",
        ),
        ("import os; os._exit(3)", "ended with code 3"),
    ],
)
def test_prepare_says_in_one_line_what_the_child_said(monkeypatch, code, match):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(importlib.import_module("deepjax.data.prepare"), "CHILD", code)
    with pytest.raises(InputError, match=match):
        data.prepare("mnist", "")


def test_import_is_light():
    """Nothing heavy, and never TensorFlow or torch."""
    heavy = ("tensorflow_datasets", "grain", "sklearn", "PIL", "tensorflow", "torch")
    code = f"import sys, deepjax.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=helpers.ROOT,
    )
    assert done.stdout.strip() == "[]"
