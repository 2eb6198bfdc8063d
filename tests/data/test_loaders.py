"""Order and loaders."""

import multiprocessing
import threading
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from deepjax import data
from deepjax.config import Augment, Data
from deepjax.data import records
from deepjax.data.sources.folder import FolderFiles
from deepjax.errors import InputError


def numbered(size):
    """Arrays whose image k has the pixels k, k + 1, ... and the label k % 7."""
    pixels = np.arange(size)[:, None] + np.arange(12)
    return data.Arrays(pixels.astype(np.uint8).reshape(size, 2, 2, 3), (np.arange(size) % 7).astype(np.int32))


def batches(loader, epoch, first=0):
    fetch = jax.jit(loader.fetch)
    return [jax.tree.map(np.asarray, fetch(loader.data, rows)) for rows in loader.epoch(epoch, first)]


@pytest.fixture
def folder(tmp_path):
    """Records of 30 PNG images of several sizes, read as 8x8."""
    rng = np.random.default_rng(0)
    for k in range(30):
        pixels = rng.integers(0, 256, (9 + k % 3, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k:02}.png")
    files = FolderFiles(tuple(sorted(tmp_path.glob("*.png"))))
    return data.Records(files, np.arange(30), np.arange(30, dtype=np.int32), (8, 8, 3), "photograph")


# --- order


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("size", "batch"), [(12, 4), (13, 4), (15, 4), (3, 4), (4, 4), (1, 1)])
def test_every_image_once_per_epoch(size, batch, shuffle):
    indices, mask = data.epoch_order(3, 2, size, batch, shuffle=shuffle)
    assert indices.shape == mask.shape == (-(-size // batch), batch)
    assert indices.dtype == np.int32
    assert mask.dtype == bool
    assert sorted(indices[mask]) == list(range(size))
    assert (indices[~mask] == 0).all()
    assert mask[:-1].all()  # only the last batch is padded
    if not shuffle:
        assert indices[mask].tolist() == list(range(size))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return data.epoch_order(seed, epoch, 100, 10, shuffle=True)[0].ravel().tolist()

    orders = [order(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(one) for one in orders}) == 16
    assert order(2, 3) == orders[11]


def test_order_is_uniform():
    """Where image 0 lands over 2,000 epochs: a chi-squared test over 10 places at four sigma."""
    places = [np.argmin(data.epoch_order(0, epoch, 10, 10, shuffle=True)[0]) for epoch in range(2000)]
    chi_squared = ((np.bincount(places, minlength=10) - 200) ** 2 / 200).sum()
    assert abs(chi_squared - 9) < 4 * np.sqrt(18)


# --- loaders


@pytest.mark.parametrize("size", [20, 23])
@pytest.mark.parametrize("shuffle", [True, False])
def test_device_and_host_loader_give_identical_batches(size, shuffle):
    arrays = numbered(size)
    device = data.DeviceLoader(arrays, 5, 1, shuffle=shuffle)
    host = data.HostLoader(arrays, 5, 1, shuffle=shuffle)
    assert device.steps == host.steps == -(-size // 5)
    for epoch in (0, 3):
        ours, theirs = batches(device, epoch), batches(host, epoch)
        assert len(ours) == device.steps
        for a, b in zip(ours, theirs, strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)
            assert {k: v.dtype for k, v in a.items()} == {k: v.dtype for k, v in b.items()}
        image = np.concatenate([batch["image"][batch["mask"]] for batch in ours])
        label = np.concatenate([batch["label"][batch["mask"]] for batch in ours])
        assert sorted(image[:, 0, 0, 0]) == list(range(size))
        np.testing.assert_array_equal(label, image[:, 0, 0, 0] % 7)
        np.testing.assert_array_equal(image, arrays.images[image[:, 0, 0, 0]])
    assert (batches(device, 0)[0]["image"] != batches(device, 1)[0]["image"]).any() == shuffle


@pytest.mark.parametrize("make", [data.DeviceLoader, data.HostLoader])
@pytest.mark.parametrize("first", [0, 2, 4, 5])
def test_resume_within_an_epoch(make, first):
    loader = make(numbered(23), 5, 1, shuffle=True)
    whole, rest = batches(loader, 2), batches(loader, 2, first)
    assert len(rest) == 5 - first
    for a, b in zip(whole[first:], rest, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_device_loader_compiles_once_and_holds_no_constants():
    loader = data.DeviceLoader(numbered(23), 5, 1, shuffle=True)
    fetch = jax.jit(lambda data, rows: loader.fetch(data, rows))  # of its own, for a cache of its own
    for epoch in range(2):
        for rows in loader.epoch(epoch):
            fetch(loader.data, rows)
    assert fetch._cache_size() == 1
    assert jax.make_jaxpr(loader.fetch)(loader.data, rows).consts == []


def test_put_places_the_arrays():
    calls = []

    def put(array):
        calls.append(array.shape)
        return jax.device_put(array, jax.devices()[-1])

    loader = data.DeviceLoader(numbered(4), 2, 0, shuffle=False, put=put)
    assert sorted(calls) == [(4,), (4, 2, 2, 3)]
    assert loader.data["images"].devices() == {jax.devices()[-1]}


def test_float_features():
    toy = data.load(Data("xor"), "", 0).train
    device = data.DeviceLoader(toy, 300, 0, shuffle=True)
    assert sum(batch["image"].astype(float).sum() for batch in batches(device, 0)) == pytest.approx(
        toy.images.astype(float).sum() + 200 * toy.images[0].astype(float).sum(), rel=1e-5
    )
    assert batches(device, 0)[0]["image"].dtype == np.float32


@dataclass(frozen=True)
class Counting:
    """Files of black images that note which were read."""

    seen: list = field(default_factory=list)

    def read(self, indices):
        self.seen.extend(indices)
        image = Image.new("RGB", (4, 4))
        path = Path(self.where(0))
        image.save(path)
        return [path.read_bytes()] * len(indices)

    def where(self, index):
        return self.folder + "/black.png"

    folder: str = "."


def test_skipped_images_are_not_read(tmp_path):
    files = Counting(folder=str(tmp_path))
    source = data.Records(files, np.arange(20), np.zeros(20, np.int32), (4, 4, 3), "stored")
    loader = data.HostLoader(source, 5, 0, shuffle=True)
    assert len(list(loader.epoch(1, first=3))) == 1
    expected = data.epoch_order(0, 1, 20, 5, shuffle=True)[0][3]
    assert sorted(files.seen) == sorted(expected)


def test_records_are_read_as_their_arrays(folder):
    lazy, memory = data.HostLoader(folder, 7, 2, shuffle=True), folder.in_memory()
    for a, b in zip(batches(lazy, 1), batches(data.DeviceLoader(memory, 7, 2, shuffle=True), 1), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_subset_of_a_subset(folder):
    part = folder.take(np.array([9, 3, 20])).take(np.array([2, 0]))
    assert part.labels.tolist() == [20, 9]
    np.testing.assert_array_equal(part.read([0, 1]), folder.read([20, 9]))


def test_area_crops_depend_on_seed_epoch_and_image(folder):
    def crops(seed, epoch, batch, first=0):
        loader = data.HostLoader(folder, batch, seed, shuffle=True, area=(0.1, 1.0))
        rows = batches(loader, epoch, first)
        return {int(k): image for b in rows for k, image in zip(b["label"][b["mask"]], b["image"][b["mask"]])}

    reference = crops(1, 2, 10)
    assert len(reference) == 30
    for other in (
        crops(1, 2, 7),
        crops(1, 2, 10, first=1),
    ):  # neither the batch nor where one resumed matters
        for k, image in other.items():
            np.testing.assert_array_equal(image, reference[k])
    for changed in (crops(2, 2, 10), crops(1, 3, 10)):
        assert all((changed[k] != reference[k]).any() for k in reference)
    assert all((image != folder.read([k])[0]).any() for k, image in reference.items())


def test_area_crop_of_arrays_is_refused():
    with pytest.raises(InputError, match=r"data.augment.area \(0.1, 1.0\): needs images"):
        data.HostLoader(numbered(4), 2, 0, shuffle=True, area=(0.1, 1.0))


@pytest.mark.slow
def test_workers_keep_the_order_and_end(folder):
    threads = data.HostLoader(folder, 4, 5, shuffle=True, area=(0.1, 1.0))
    workers = data.HostLoader(folder, 4, 5, shuffle=True, area=(0.1, 1.0), workers=2)
    for a, b in zip(batches(threads, 1), batches(workers, 1), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert multiprocessing.active_children() == []
    for _ in data.HostLoader(folder, 4, 5, shuffle=True, workers=1).epoch(0):
        break  # a consumer that stops early
    assert multiprocessing.active_children() == []


def break_image(folder, index):
    path = folder.files.paths[index]
    path.write_bytes(path.read_bytes()[:60])
    return path


def test_unreadable_image_is_named(folder):
    path = break_image(folder, 17)
    before = threading.active_count()
    with pytest.raises(InputError, match=f"{path}: cannot be read as an image"):
        list(data.HostLoader(folder, 4, 5, shuffle=True).epoch(0))
    assert threading.active_count() <= before + 1


@pytest.mark.slow
def test_unreadable_image_is_named_by_workers(folder):
    path = break_image(folder, 17)
    with pytest.raises(InputError, match=f"{path}: cannot be read as an image"):
        list(data.HostLoader(folder, 4, 5, shuffle=True, workers=1).epoch(0))
    assert multiprocessing.active_children() == []


def test_make_loader_chooses(folder, monkeypatch):
    def kind(split, train=True, **fields):
        return type(data.make_loader(split, Data(**fields), 4, 0, train=train))

    assert kind(numbered(8)) is data.DeviceLoader
    assert kind(numbered(8), placement="host") is data.HostLoader
    assert kind(folder) is data.HostLoader
    monkeypatch.setattr("deepjax.data.loaders.MEMORY_LIMIT", 8 * 12 - 1)
    assert kind(numbered(8)) is data.HostLoader
    assert kind(numbered(8), placement="device") is data.DeviceLoader
    assert records.MEMORY_LIMIT == 2**30


def test_make_loader_shuffles_and_crops_only_to_train(folder):
    config = Data(augment=Augment(area=(0.1, 0.2)))
    train = data.make_loader(folder, config, 30, 0, train=True)
    test = data.make_loader(folder, config, 30, 0, train=False)
    assert batches(test, 0)[0]["label"].tolist() == list(range(30))
    np.testing.assert_array_equal(batches(test, 0)[0]["image"], folder.read(range(30)))
    cropped = batches(train, 0)[0]
    assert cropped["label"].tolist() != list(range(30))
    assert (cropped["image"] != folder.read(cropped["label"])).any(axis=(1, 2, 3)).all()
