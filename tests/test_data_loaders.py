"""Order, loaders, standardization and augmentation."""

import multiprocessing
import threading
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deepjax import data
from deepjax.config import Augment, Data
from deepjax.data import records
from deepjax.data.files import FolderFiles
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


# --- standardize


def test_channel_statistics_of_uint8():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 5, 4, 3)).astype(np.uint8)
    pixels[..., 2] = 77
    mean, std = data.channel_statistics(data.Arrays(pixels, np.zeros(50, np.int32)))
    values = pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std[:2], values.std(0)[:2], rtol=1e-6)
    assert std[2] == 1  # a constant channel
    assert mean.dtype == std.dtype == np.float32


def test_channel_statistics_of_records(folder):
    lazy, memory = data.channel_statistics(folder), data.channel_statistics(folder.in_memory())
    np.testing.assert_array_equal(lazy, memory)


def test_channel_statistics_of_features_far_from_zero():
    """float32 sums of squares would lose the variance."""
    features = (1e4 + np.random.default_rng(0).normal(size=(200_000, 2))).astype(np.float32)
    mean, std = data.channel_statistics(data.Arrays(features, np.zeros(200_000, np.int32)))
    np.testing.assert_allclose(mean, features.astype(float).mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, features.astype(float).std(0), rtol=1e-5)


def test_standardize():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)
    mean, std = data.channel_statistics(data.Arrays(pixels, np.zeros(6, np.int32)))
    out = jax.jit(data.standardize)(pixels, mean, std)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, (pixels / 255.0 - mean) / std, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, rtol=1e-5)
    floats = data.standardize(jnp.full((2, 3), 5.0), jnp.array([1.0, 2, 3]), jnp.array([2.0, 2, 2]))
    np.testing.assert_array_equal(floats, [[2, 1.5, 1]] * 2)


# --- augment


def images_of(batch, height=6, width=5, channels=2):
    return jax.random.normal(jax.random.key(9), (batch, height, width, channels))


@jax.jit
def matches(outputs, candidates):
    """bool [B, K]: which candidate [K, ...] each output equals."""
    return (outputs[:, None] == candidates[None]).all((2, 3, 4))


def test_no_augmentation_is_the_identity():
    x = images_of(7)
    for augment in (Augment(), Augment(crop=0, translate=0.0, scale=0.0), Augment(area=(0.1, 1.0))):
        np.testing.assert_array_equal(data.augment(jax.random.key(0), x, augment), x)


def test_flip_mirrors_half_of_the_images():
    image = images_of(1)
    x = jnp.broadcast_to(image, (4000, *image.shape[1:]))
    kept, mirrored = matches(
        data.augment(jax.random.key(1), x, Augment(flip=True)), jnp.concatenate([image, image[:, :, ::-1]])
    ).T
    assert (kept ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_crop_covers_all_shifts_uniformly():
    image = images_of(1)
    pad = 2
    padded = jnp.pad(image[0], ((pad, pad), (pad, pad), (0, 0)))
    shifted = jnp.stack([padded[i : i + 6, j : j + 5] for i in range(5) for j in range(5)])
    x = jnp.broadcast_to(image, (5000, *image.shape[1:]))
    found = matches(data.augment(jax.random.key(2), x, Augment(crop=pad)), shifted)
    assert (found.sum(1) == 1).all()
    counts = found.sum(0)
    assert counts.min() > 0
    assert abs(((counts - 200) ** 2 / 200).sum() - 24) < 4 * np.sqrt(48)


def test_draws_of_flip_and_crop_are_independent():
    image = images_of(1)
    x = jnp.broadcast_to(image, (4000, *image.shape[1:]))
    out = jax.jit(lambda x: data.augment(jax.random.key(3), x, Augment(flip=True, crop=1)))(x)
    both = jnp.concatenate([image, image[:, :, ::-1]])
    padded = jnp.pad(both, ((0, 0), (1, 1), (1, 1), (0, 0)))
    candidates = jnp.stack([padded[f, i : i + 6, j : j + 5] for f in range(2) for i in range(3) for j in range(3)])
    counts = matches(out, candidates).sum(0)
    assert counts.sum() == 4000
    assert abs(((counts - 4000 / 18) ** 2 / (4000 / 18)).sum() - 17) < 4 * np.sqrt(34)


def test_augmentation_depends_on_the_key_and_differs_between_images():
    image = images_of(1)
    x = jnp.broadcast_to(image, (50, *image.shape[1:]))
    augment = Augment(flip=True, crop=2, translate=1.5, scale=0.2)
    run = jax.jit(lambda key: data.augment(key, x, augment))
    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).all()
    assert len(np.unique(np.asarray(first).reshape(50, -1), axis=0)) == 50


def moved(x, shifts, zooms, monkeypatch, translate=3.0, scale=0.5):
    """augment's output for these shifts [B, 2] and zooms [B, 1] in place of random ones."""
    draws = iter([shifts, zooms])
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: jnp.asarray(next(draws), jnp.float32))
    return jax.jit(lambda x: data.augment(jax.random.key(0), x, Augment(translate=translate, scale=scale)))(x)


def test_translation_by_whole_pixels_is_a_shift(monkeypatch):
    x = images_of(3)
    out = moved(x, [[0, 0], [1, -2], [-3, 0]], np.ones((3, 1)), monkeypatch)
    padded = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    expected = [padded[0, 3:9, 3:8], padded[1, 2:8, 5:10], padded[2, 6:12, 3:8]]
    np.testing.assert_allclose(out, jnp.stack(expected), atol=1e-6)


def test_translation_by_half_a_pixel_averages_neighbours(monkeypatch):
    x = images_of(1)
    out = moved(x, [[0, 0.5]], np.ones((1, 1)), monkeypatch)
    np.testing.assert_allclose(out[:, :, 1:], (x[:, :, 1:] + x[:, :, :-1]) / 2, atol=1e-5)


def test_zoom_is_about_the_centre(monkeypatch):
    """A linear ramp around the centre has its slope divided by the zoom, and keeps its zero."""
    ramp = jnp.broadcast_to((jnp.arange(9.0) - 4)[None, :, None, None], (2, 9, 7, 1))
    out = moved(ramp, np.zeros((2, 2)), [[1.25], [0.5]], monkeypatch)
    np.testing.assert_allclose(out[0, :, 3, 0], (np.arange(9) - 4) / 1.25, atol=1e-5)
    np.testing.assert_allclose(out[1, 2:7, 3, 0], (np.arange(5) - 2) * 2, atol=1e-5)
    assert (out[1, [0, 1, 7, 8]] == 0).all()  # from outside
    assert (out[1, :, [0, 6]] == 0).all()


def test_translation_and_zoom_are_uniform():
    """Shift and zoom of each image, measured on two ramps, against uniform distributions."""
    down, right = jnp.meshgrid(jnp.arange(21.0) - 10, jnp.arange(21.0) - 10, indexing="ij")
    x = jnp.broadcast_to(jnp.stack([down, right], -1), (2000, 21, 21, 2))
    out = np.asarray(data.augment(jax.random.key(5), x, Augment(translate=2.0, scale=0.2)))
    slope = out[:, 11, 10, 0] - out[:, 10, 10, 0]
    zoom = 1 / slope
    assert 0.8 <= zoom.min() < 0.805
    assert 1.195 < zoom.max() <= 1.2001
    assert abs(zoom.mean() - 1) < 4 * 0.4 / np.sqrt(12 * 2000)
    shifts = -out[:, 10, 10] * zoom[:, None]
    assert np.abs(shifts).max() <= 2.001
    assert (np.abs(shifts.mean(0)) < 4 * 4 / np.sqrt(12 * 2000)).all()
    np.testing.assert_allclose(shifts.var(0) / (16 / 12), 1, atol=4 * np.sqrt(0.8 / 2000))
    # Also across images: one key for two draws of different shapes would pair image k with image k // 2.
    assert abs(np.corrcoef(zoom, shifts.ravel()[:2000])[0, 1]) < 4 / np.sqrt(2000)
    correlation = np.corrcoef(np.c_[shifts, zoom].T)[np.triu_indices(3, 1)]
    assert (np.abs(correlation) < 4 / np.sqrt(2000)).all()


@pytest.mark.parametrize(
    ("augment", "shape", "match"),
    [
        (Augment(flip=True), (2,), r"needs images, the data have shape \(2,\)"),
        (Augment(crop=-1), (8, 8, 1), "data.augment.crop -1"),
        (Augment(crop=8), (8, 9, 1), "data.augment.crop 8"),
        (Augment(translate=-0.5), (8, 8, 1), "data.augment.translate -0.5"),
        (Augment(scale=1.0), (8, 8, 1), "data.augment.scale 1.0"),
        (Augment(scale=float("nan")), (8, 8, 1), "data.augment.scale nan"),
        (Augment(area=(0.0, 1.0)), (8, 8, 1), "data.augment.area"),
        (Augment(area=(0.5, 0.1)), (8, 8, 1), "data.augment.area"),
        (Augment(area=(0.5, 1.1)), (8, 8, 1), "data.augment.area"),
    ],
)
def test_check_augment(augment, shape, match):
    with pytest.raises(InputError, match=match):
        data.check_augment(augment, shape)


def test_check_augment_accepts():
    data.check_augment(Augment(), (2,))
    data.check_augment(Augment(flip=True, crop=4, translate=2.5, scale=0.5, area=(0.08, 1.0)), (8, 8, 3))
