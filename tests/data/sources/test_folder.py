"""Folders of images that the tests write."""

import numpy as np
import pytest

from deepjax import data
from deepjax.errors import InputError
from helpers import load_data as load
from helpers import loading_fails as fails
from helpers import write_images


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
    fails("has no classes; put images into", f"{tmp_path}/")
    (tmp_path / "train").mkdir()
    fails("has no classes; put images into", tmp_path)
    write_images(tmp_path, {"train": 3})  # images without classes
    fails("has no classes; put images into", tmp_path)
    write_images(tmp_path / "train", {"a": 3})
    write_images(tmp_path / "test", {"a": 3, "zebra": 1})
    fails("zebra: class 'zebra' is not in train/", tmp_path)
    (tmp_path / "train" / "zebra").mkdir()
    fails("train/zebra: has no .png", tmp_path)
    fails("data_dir .*nowhere: no such folder", "folder", tmp_path / "nowhere")


def test_folder_of_classes_is_split_by_seed(tmp_path):
    write_images(tmp_path, {"ant": 10, "bee": 20, "cat": 30})
    found, again = (load(f"{tmp_path}/", test=0.2, validation=0.0) for _ in range(2))
    assert found.classes == ("ant", "bee", "cat")
    assert np.bincount(found.test.labels).tolist() == [2, 4, 6]
    assert "12 of 60 images were drawn for testing, with seed 0" in found.notes
    np.testing.assert_array_equal(found.test.images, again.test.images)
    other = load(f"{tmp_path}/", test_seed=1, test=0.2, validation=0.0)
    assert (other.test.images != found.test.images).any()
    alike = load(f"{tmp_path}/", seed=1, test=0.2)  # runs of other seeds have the same test images
    np.testing.assert_array_equal(found.test.images, alike.test.images)
    assert found.drawn
    both = [{image.tobytes() for image in part.images} for part in (found.train, found.test)]
    assert not both[0] & both[1]
    tiny = load(f"{tmp_path}/", test=0.01)
    assert np.bincount(tiny.test.labels).tolist() == [1, 1, 1]
    write_images(tmp_path, {"dog": 1, "eel": 2})
    small = load(f"{tmp_path}/")
    counts = [
        np.bincount(part.labels, minlength=5)[3:].tolist() for part in (small.train, small.validation, small.test)
    ]
    assert counts == [[1, 1], [0, 0], [0, 1]]
    assert "the test split has no images of dog" in small.notes
    assert "no validation images of dog, eel, which have one image left" in small.notes


def test_test_images_are_drawn_from_train_where_nothing_is_held_out(tmp_path):
    write_images(tmp_path / "train", {"a": 10, "b": 10})
    found = load(tmp_path, validation=0.25)
    assert [len(found.train), len(found.validation), len(found.test)] == [12, 4, 4]
    write_images(tmp_path / "test", {"a": 1, "b": 1})
    fails("data.test 0.5: .* has its own test split", tmp_path, test=0.5)


def test_what_is_not_read_is_said(tmp_path):
    write_images(tmp_path / "train", {"a": 4, "b": 4})
    write_images(tmp_path / "train" / "a", {"deeper": 3})
    write_images(tmp_path / "val", {"a": 2})
    (tmp_path / "train" / "a" / "one.HEIC").write_bytes(b"")
    (tmp_path / "train" / "b" / "notes.txt").write_text("no image")
    for hidden in (".thumbnails", "__MACOSX"):
        write_images(tmp_path / "train" / "a", {hidden: 1})
        write_images(tmp_path / "train", {hidden: 1})
    write_images(tmp_path, {"others": 2})
    found = load(tmp_path, validation=0.0)
    assert np.bincount(found.train.labels).tolist() == [7, 4]
    assert found.notes == (
        f"not read, because they are in no class: others of {tmp_path}",
        "the test split has no images of b",
        "2 files were not read (no images of a known kind): 1 .heic, 1 .txt; convert .heic to .jpg",
    )


def test_of_a_small_class_one_image_is_drawn(tmp_path):
    write_images(tmp_path, {"many": 100, "few": 3})
    for seed in range(3):
        found = load(f"{tmp_path}/", seed, test_seed=seed, test=0.1)
        counts = [np.bincount(split.labels).tolist() for split in (found.test, found.validation)]
        assert [few for few, _ in counts] == [1, 1]


def test_unlabeled_images_beside_the_classes_are_no_class(tmp_path):
    write_images(tmp_path, {"cat": 3, "dog": 3, "test": 3})
    fails("has no train/ with classes; move the classes into train/", f"{tmp_path}/")


def test_a_class_of_other_files_says_what_they_are(tmp_path):
    write_images(tmp_path, {"cat": 3, "dog": 0})
    (tmp_path / "dog" / "one.HEIC").touch()
    fails(r"dog: has no .png.*1 .heic; convert .heic to .jpg", f"{tmp_path}/")


def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path):
    write_images(tmp_path / "train", {"a": 4, "b": 1})
    write_images(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "train" / "b" / "000.png").write_bytes(b"")
    fails("class 'b' has no image that can be read", tmp_path, skip_broken=True, image_size=8)


def test_links_are_followed_once(tmp_path):
    write_images(tmp_path / "set", {"a": 4, "b": 4})
    (tmp_path / "set" / "a" / "again").symlink_to(tmp_path / "set" / "a")
    (tmp_path / "linked").symlink_to(tmp_path / "set")
    assert len(load(f"{tmp_path}/linked", validation=0.0, test=0.5).train) == 4


@pytest.mark.parametrize("placement", ["device", "host"])
def test_broken_images_are_left_out_and_named(tmp_path, placement):
    write_images(tmp_path, {"a": 20, "b": 20})
    for name in ("003.png", "007.png"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "a" / name).read_bytes()[:60])
    fails("003.png: cannot be read as an image .*skip-broken", f"{tmp_path}/", test=0.5, placement="device")
    options = {"test": 0.5, "validation": 0.0, "placement": placement, "skip_broken": True}
    found = load(f"{tmp_path}/", **options)
    assert len(found.train) + len(found.test) == 38
    assert [note.partition(" cannot")[0] for note in found.notes[:2]] == [
        f"left out: {tmp_path}/a/{name}:" for name in ("003.png", "007.png")
    ]


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


def test_a_folder_of_tfds_is_not_a_folder_of_images(tmp_path, monkeypatch):
    """./mnist is where TFDS keeps mnist when one works in data_dir."""
    (tmp_path / "mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    fails("'mnist': not prepared", "mnist", tmp_path)


def test_every_kind_of_image_that_can_be_read_is_found(tmp_path):
    for number, suffix in enumerate(data.IMAGE_SUFFIXES):
        for split in ("train", "test"):
            write_images(tmp_path / split, {"a": number + 1}, suffix=suffix)
    found = load(tmp_path, validation=0.0)
    assert len(found.train) == sum(range(1, len(data.IMAGE_SUFFIXES) + 1))
    assert len(data.IMAGE_SUFFIXES) == 8
