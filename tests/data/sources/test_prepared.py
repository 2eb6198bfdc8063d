"""TFDS's prepared data sets: those in ../shared, and small ones that the tests write."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from deepjax import cli, data
from helpers import TFDS as SHARED
from helpers import load_data as load
from helpers import loading_fails as fails

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is missing")


@needs_shared
@pytest.mark.parametrize(
    ("name", "shape", "mean"),
    [("mnist", (28, 28, 1), [0.1307]), ("cifar10_jpeg", (32, 32, 3), [0.4914, 0.4822, 0.4465])],
)
def test_tfds_set(name, shape, mean):
    found = load(name, SHARED, placement="host")
    sizes = [len(split) for split in (found.train, found.validation, found.test)]
    assert sum(sizes[:2]) == (60_000 if name == "mnist" else 50_000)
    assert sizes[1] * 10 == sum(sizes[:2])
    assert sizes[2] == 10_000
    counts = np.bincount(found.train.labels, minlength=10) / sizes[0]
    assert len(found.classes) == len(counts) == 10
    assert np.abs(counts - 0.1).max() < 0.015
    some = found.train.take(np.arange(2000)).in_memory()
    assert some.images.shape[1:] == found.shape == shape
    assert (some.images[:100].reshape(100, -1).max(1) > 100).all()
    # The published means of all images; those of single images deviate by about 0.12.
    np.testing.assert_allclose(data.channel_statistics(some)[0], mean, atol=4 * 0.12 / np.sqrt(2000))
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


def edit(path, change):
    """Change a JSON file."""
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("dataset_info.json", lambda path: path.write_bytes(path.read_bytes()[:99]), r"cannot be read \("),
        ("dataset_info.json", lambda path: path.write_text("[]"), r"cannot be read \("),
        ("features.json", lambda path: path.write_bytes(path.read_bytes()[:99]), r"cannot be read \("),
        ("features.json", lambda path: edit(path, lambda info: info.pop("featuresDict")), "cannot be read|no image"),
        (
            "dataset_info.json",
            lambda path: edit(path, lambda info: info["splits"][0].update(shardLengths=[str(10**14)])),
            "has 30 records, dataset_info.json says 100,000,000,000,000",
        ),
        (
            "dataset_info.json",
            lambda path: edit(path, lambda info: info["splits"][0].update(shardLengths=["3"])),
            "has 30 records, dataset_info.json says 3",
        ),
    ],
)
def test_tfds_records_that_are_damaged(tmp_path, capsys, file, change, message):
    """One broken set hides no other."""
    write_tfds(tmp_path, {"train": LABELS, "test": [1]})
    change(tmp_path / "shapes" / "1.0.0" / file)
    fails(message, "shapes", tmp_path)
    assert cli.main(["datasets", "--data-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert {line.split()[0] for line in out.splitlines()} > {"digits", "mnist", "shapes"}
    assert err == ""


def test_tfds_example_without_a_label(tmp_path):
    write_tfds(tmp_path, {"train": LABELS, "test": [1]})
    keys = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "kind"}]}}
    version = tmp_path / "shapes" / "1.0.0"
    edit(version / "dataset_info.json", lambda info: info.update(supervisedKeys=keys))
    (version / "features.json").write_text((version / "features.json").read_text().replace('"label"', '"kind"'))
    fails("shapes/1.0.0 train, image 0: has 0 values of kind, not one", "shapes", tmp_path)


@needs_shared
def test_tfds_files_missing(tmp_path):
    version = tmp_path / "mnist" / "3.0.1"
    version.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        (version / name).write_bytes((SHARED / "mnist" / "3.0.1" / name).read_bytes())
    fails("mnist/3.0.1 train: .*00000-of-00001 is missing; prepare it again", "mnist", tmp_path)
    (version / "mnist-train.array_record-00000-of-00001").write_bytes(b"broken")
    fails(r"mnist/3.0.1 train: has 0 records, dataset_info.json says 60,000", "mnist", tmp_path)
