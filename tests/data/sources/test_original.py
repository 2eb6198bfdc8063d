"""MNIST's and CIFAR's original files, written by the tests."""

import gzip
import struct

import numpy as np
import pytest

from deepjax import data
from deepjax.data.sources import original
from helpers import load_data as load
from helpers import loading_fails as fails


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
    monkeypatch.setattr(original, "CIFAR10_BATCH", 20)
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
    monkeypatch.setattr(original, "CIFAR100_SIZES", {"train": 50, "test": 20})
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


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe", "cannot be read .*utf-8"), (b"a b", "2 names, expected 100")]
)
def test_cifar100_names_that_are_damaged(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(original, "CIFAR100_SIZES", {"train": 5, "test": 5})
    for name in ("train", "test"):
        write_cifar(tmp_path / f"{name}.bin", 5, 2, np.random.default_rng(0))
    (tmp_path / "fine_label_names.txt").write_bytes(content)
    fails(f"fine_label_names.txt: {message}", "cifar100", tmp_path)


def test_idx_header_of_more_numbers_than_the_file_has(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 12 + whole[16:])
    fails(f"{path}: 47,056 bytes, expected 79,228,162,4", "mnist", tmp_path)


def test_available(tmp_path):
    write_mnist(tmp_path)
    rows = {row.name: row for row in data.available(str(tmp_path))}
    assert rows["digits"].status == "ready"
    assert rows["mnist"].kind == "original files"
    assert rows["mnist"].status == str(tmp_path)
    assert rows["cifar10"].status == f"deepjax datasets prepare cifar10 --data-dir {tmp_path}"
