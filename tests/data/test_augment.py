"""Augmentation of where pixels are: flips, crops, moves, cutout; and what settings are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import data
from deepjax.config import Augment
from deepjax.errors import InputError
from helpers import import_torchvision, random_arrays

augmented = jax.jit(data.augment, static_argnums=2)


def augment(seed, images, settings):
    return np.asarray(augmented(jax.random.key(seed), images, settings))


def images_of(batch, height=6, width=5, channels=2):
    return random_arrays(9, (batch, height, width, channels))[0]


def copies(image, count):
    return np.broadcast_to(image, (count, *image.shape[1:]))


def matches(outputs, candidates):
    """bool [B, K]: which candidate [K, ...] each output equals."""
    return np.stack([(outputs == candidate).all((1, 2, 3)) for candidate in candidates], 1)


def test_no_augmentation_is_the_identity():
    x = images_of(7)
    for settings in (Augment(), Augment(crop=0, translate=0.0, scale=0.0), Augment(area=(0.1, 1.0))):
        np.testing.assert_array_equal(augment(0, x, settings), x)


def test_flip_mirrors_half_of_the_images():
    image = images_of(1)
    out = augment(1, copies(image, 4000), Augment(flip=True))
    kept, mirrored = matches(out, [image[0], image[0, :, ::-1]]).T
    assert (kept ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_crop_covers_all_shifts_uniformly():
    image = images_of(1)
    padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)))
    shifted = [padded[i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
    found = matches(augment(2, copies(image, 5000), Augment(crop=2)), shifted)
    assert (found.sum(1) == 1).all()
    counts = found.sum(0)
    assert counts.min() > 0
    assert abs(((counts - 200) ** 2 / 200).sum() - 24) < 4 * np.sqrt(48)


def test_draws_of_flip_and_crop_are_independent():
    image = images_of(1)
    out = augment(3, copies(image, 4000), Augment(flip=True, crop=1))
    padded = [np.pad(x, ((1, 1), (1, 1), (0, 0))) for x in (image[0], image[0, :, ::-1])]
    candidates = [both[i : i + 6, j : j + 5] for both in padded for i in range(3) for j in range(3)]
    counts = matches(out, candidates).sum(0)
    assert counts.sum() == 4000
    assert abs(((counts - 4000 / 18) ** 2 / (4000 / 18)).sum() - 17) < 4 * np.sqrt(34)


def test_augmentation_depends_on_the_key_and_differs_between_images():
    image = images_of(1)
    x, settings = copies(image, 50), Augment(flip=True, crop=2, translate=1.5, scale=0.2)
    first, again, other = (augment(seed, x, settings) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).all()
    assert len(np.unique(first.reshape(50, -1), axis=0)) == 50


def moved(x, shifts, zooms, monkeypatch, degrees=None):
    """augment's output for these shifts [B, 2], zooms [B] and angles [B] in place of random ones."""
    draws = iter([shifts, np.asarray(zooms) - 1, np.zeros(len(x)) if degrees is None else degrees])
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: jnp.asarray(next(draws), jnp.float32))
    settings = Augment(translate=3.0, scale=0.5, rotate=20.0)
    return np.asarray(jax.jit(lambda x: data.augment(jax.random.key(0), x, settings))(x))


def test_translation_by_whole_pixels_is_a_shift(monkeypatch):
    x = images_of(3)
    out = moved(x, [[0, 0], [1, -2], [-3, 0]], np.ones(3), monkeypatch)
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    expected = [padded[0, 3:9, 3:8], padded[1, 2:8, 5:10], padded[2, 6:12, 3:8]]
    np.testing.assert_allclose(out, np.stack(expected), atol=1e-6)


def test_translation_by_half_a_pixel_averages_neighbours(monkeypatch):
    x = images_of(1)
    out = moved(x, [[0, 0.5]], np.ones(1), monkeypatch)
    np.testing.assert_allclose(out[:, :, 1:], (x[:, :, 1:] + x[:, :, :-1]) / 2, atol=1e-5)


def test_zoom_is_about_the_center(monkeypatch):
    """A linear ramp around the center has its slope divided by the zoom, and keeps its zero."""
    ramp = np.broadcast_to((np.arange(9, dtype=np.float32) - 4)[None, :, None, None], (2, 9, 7, 1))
    out = moved(ramp, np.zeros((2, 2)), [1.25, 0.5], monkeypatch)
    np.testing.assert_allclose(out[0, :, 3, 0], (np.arange(9) - 4) / 1.25, atol=1e-5)
    np.testing.assert_allclose(out[1, 2:7, 3, 0], (np.arange(5) - 2) * 2, atol=1e-5)
    assert (out[1, [0, 1, 7, 8]] == 0).all()  # from outside
    assert (out[1, :, [0, 6]] == 0).all()


def test_rotation_with_zoom_and_shift_is_pillows_and_torchvisions_affine(monkeypatch):
    """Pillow on float images, to the last pixel; torchvision where it does not blend the border with the outside."""
    from PIL import Image

    affine = import_torchvision().transforms.functional.affine
    import torch

    x = images_of(4, 12, 9, 1)
    degrees, zooms, shifts = [30.0, -17.0, 90.0, 5.0], [1.0, 1.3, 0.8, 1.1], [[0, 0], [1, -2], [0.5, 1.5], [-2, 1]]
    ours = moved(x, shifts, zooms, monkeypatch, degrees)[..., 0]
    size = x.shape[2], x.shape[1]
    for image, out, angle, zoom, (down, right) in zip(x[..., 0], ours, degrees, zooms, shifts):
        turn = zoom * np.exp(1j * np.deg2rad(angle))  # complex numbers turn points; up is positive
        center, target = complex(size[0], -size[1]) / 2, complex(size[0], -size[1]) / 2 + complex(right, -down)
        origin, across, along = ((p - target) / turn + center for p in (0, 1, -1j))
        steps = [across - origin, along - origin]
        rows = [s.real for s in steps] + [origin.real] + [-s.imag for s in steps] + [-origin.imag]
        theirs = Image.fromarray(image).transform(size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
        np.testing.assert_allclose(out, np.asarray(theirs), atol=1e-4)
        if all(float(s).is_integer() for s in (down, right)):  # torchvision rounds no shifts, but documents integers
            options = {"interpolation": torch_bilinear(), "center": None}
            other, whole = (
                affine(torch.tensor(v)[None], -angle, [right, down], zoom, [0.0], **options)[0].numpy()
                for v in (image, np.ones_like(image))
            )
            inside = whole > 1 - 1e-4
            assert inside.mean() > 0.3
            np.testing.assert_allclose(out[inside], other[inside], atol=1e-4)


def torch_bilinear():
    return import_torchvision().transforms.InterpolationMode.BILINEAR


def test_rotations_are_uniform_and_fill_with_the_mean_color():
    """Angles of a ramp's gradient; corners are 0 where the square is turned away."""
    ramp = np.arange(21, dtype=np.float32) - 10
    x = np.broadcast_to(np.stack(np.meshgrid(ramp, ramp, indexing="ij"), -1), (2000, 21, 21, 2))
    out = augment(8, x, Augment(rotate=30.0))
    angles = np.rad2deg(np.arctan2(out[:, 10, 11, 0], out[:, 10, 11, 1]))
    assert -30.01 < angles.min() < -29.5
    assert 29.5 < angles.max() < 30.01
    assert abs(angles.mean()) < 4 * 60 / np.sqrt(12 * 2000)
    np.testing.assert_allclose(angles.var() / (3600 / 12), 1, atol=4 * np.sqrt(0.8 / 2000))
    np.testing.assert_allclose(np.hypot(*np.moveaxis(out[:, 10, 11], -1, 0)), 1, atol=1e-4)
    turned = abs(angles) > 3
    assert (out[turned][:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()
    assert (abs(out[~turned & (abs(angles) < 1)][:, 0, 0]) > 1).all()


def test_translation_and_zoom_are_uniform():
    """Shift and zoom of each image, measured on two ramps, against uniform distributions."""
    ramp = np.arange(21, dtype=np.float32) - 10
    x = np.broadcast_to(np.stack(np.meshgrid(ramp, ramp, indexing="ij"), -1), (2000, 21, 21, 2))
    out = augment(5, x, Augment(translate=2.0, scale=0.2))
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


@pytest.mark.parametrize("side", [1, 4, 15])
def test_cutout_is_a_square_around_a_uniform_pixel(side):
    height, width, count = 8, 10, 8000
    hole = augment(6, np.ones((count, height, width, 2), np.float32), Augment(cutout=side)) == 0
    assert (hole[..., 0] == hole[..., 1]).all()
    rows, columns = hole[..., 0].any(2), hole[..., 0].any(1)
    np.testing.assert_array_equal(hole[..., 0], rows[:, :, None] & columns[:, None])
    for found, size in ((rows, height), (columns, width)):
        pieces = [(np.arange(size) >= c - side // 2) & (np.arange(size) < c - side // 2 + side) for c in range(size)]
        for piece in {tuple(piece) for piece in pieces}:  # large squares around different pixels may look alike
            share = sum(tuple(other) == piece for other in pieces) / size
            frequency = (found == np.array(piece)).all(1).mean()
            assert abs(frequency - share) <= 4 * np.sqrt(share * (1 - share) / count)
    if side < height:  # else all begin at the border
        assert abs(np.corrcoef(rows.argmax(1), columns.argmax(1))[0, 1]) < 4 / np.sqrt(count)


def test_erasing_is_torchvisions_random_erasing():
    """Rectangles of 0, in the given share of images; sides and places as many as torchvision draws."""
    torchvision, count = import_torchvision(), 6000
    import torch

    hole = augment(7, np.ones((count, 12, 20, 2), np.float32), Augment(erasing=0.7)) == 0
    assert (hole[..., 0] == hole[..., 1]).all()
    rows, columns = hole[..., 0].any(2), hole[..., 0].any(1)
    np.testing.assert_array_equal(hole[..., 0], rows[:, :, None] & columns[:, None])
    erased = rows.any(1)
    assert abs(erased.mean() - 0.7) < 4 * np.sqrt(0.21 / count)
    ours = np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], 1)[erased]
    for each, size in ((rows, 12), (columns, 20)):  # without gaps
        last = size - 1 - each[:, ::-1].argmax(1)
        np.testing.assert_array_equal((last - each.argmax(1) + 1)[erased], each.sum(1)[erased])
    torch.manual_seed(0)
    draw = torchvision.transforms.RandomErasing.get_params
    theirs = np.array([draw(torch.ones(2, 12, 20), (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(count)])
    both = [np.c_[x, x[:, 2] * x[:, 3], x[:, :2] ** 2, x[:, 2] / x[:, 3]] for x in (ours, theirs)]
    noise = np.sqrt(sum(x.var(0) / len(x) for x in both))
    assert (abs(both[0].mean(0) - both[1].mean(0)) < 4 * noise).all()


def test_cutout_comes_after_everything_else():
    """A hole is 0 and square, though the image is moved."""
    x = 1 + abs(images_of(50, 9, 9, 1))
    hole = augment(1, x, Augment(flip=True, translate=0.4, cutout=3))[..., 0] == 0
    assert set(hole.sum((1, 2))) <= {4, 6, 9}


@pytest.mark.parametrize(
    ("augment", "shape", "match"),
    [
        (Augment(flip=True), (2,), r"needs images, but the inputs have shape \(2,\)"),
        (Augment(crop=-1), (8, 8, 1), "data.augment.crop -1"),
        (Augment(crop=8), (8, 9, 1), "data.augment.crop 8"),
        (Augment(translate=-0.5), (8, 8, 1), "data.augment.translate -0.5"),
        (Augment(scale=1.0), (8, 8, 1), "data.augment.scale 1.0"),
        (Augment(rotate=181.0), (8, 8, 1), r"data.augment.rotate 181.0 must be in \[0, 180\]"),
        (Augment(rotate=10.0), (64,), "needs images"),
        (Augment(scale=float("nan")), (8, 8, 1), "data.augment.scale nan"),
        (Augment(mixup=-0.1), (2,), "data.augment.mixup -0.1 must be at least 0"),
        (Augment(mixup=float("nan")), (2,), "data.augment.mixup nan"),
        (Augment(cutmix=float("inf")), (8, 8, 1), "data.augment.cutmix inf"),
        (Augment(cutmix=1.0), (2,), "needs images"),
        (Augment(cutout=2), (64,), "needs images"),
        (Augment(cutout=-2), (8, 8, 1), "data.augment.cutout -2"),
        (Augment(cutout=16), (8, 9, 1), "data.augment.cutout 16 must be less than 16"),
        (Augment(brightness=-0.1), (8, 8, 1), "data.augment.brightness -0.1"),
        (Augment(contrast=float("nan")), (8, 8, 1), "data.augment.contrast nan"),
        (Augment(contrast=0.1), (8, 8, 2), "data.augment.contrast: needs 1 or 3 channels, the images have 2"),
        (
            Augment(saturation=0.1),
            (8, 8, 1),
            "data.augment.saturation: needs 3 channels, the images have 1; leave it 0",
        ),
        (Augment(hue=0.1), (8, 8, 1), "data.augment.hue: needs 3 channels"),
        (Augment(hue=0.6), (8, 8, 3), r"data.augment.hue 0.6 must be in \[0, 0.5\]"),
        (Augment(lighting=0.1), (8, 8, 1), "data.augment.lighting: needs 3 channels"),
        (Augment(lighting=-0.1), (8, 8, 3), "data.augment.lighting -0.1"),
        (Augment(randaugment=-1), (8, 8, 3), "data.augment.randaugment -1"),
        (Augment(randaugment=1), (8, 8, 4), "data.augment.randaugment: needs 1 or 3 channels"),
        (Augment(randaugment=1, magnitude=31), (8, 8, 3), r"data.augment.magnitude 31 must be in \[0, 30\]"),
        (Augment(magnitude=5), (8, 8, 3), "data.augment.magnitude 5: is for data.augment.randaugment"),
        (Augment(trivialaugment=True), (8, 8, 2), "data.augment.trivialaugment: needs 1 or 3 channels"),
        (Augment(trivialaugment=True), (64,), "needs images"),
        (Augment(augmix=3), (8, 8, 4), "data.augment.augmix: needs 1 or 3 channels"),
        (Augment(augmix=11), (8, 8, 3), r"data.augment.augmix 11 must be in \[0, 10\]"),
        (Augment(erasing=1.1), (8, 8, 3), r"data.augment.erasing 1.1 must be in \[0, 1\]"),
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
    data.check_augment(Augment(mixup=0.2), (2,))
    data.check_augment(Augment(brightness=2.0, cutout=15, cutmix=0.5), (8, 8, 2))
    data.check_augment(Augment(contrast=0.5, randaugment=2, magnitude=30), (8, 8, 1))
    data.check_augment(Augment(saturation=0.5, hue=0.5, lighting=0.1, randaugment=1, magnitude=0), (8, 8, 3))
    data.check_augment(Augment(flip=True, crop=4, translate=2.5, scale=0.5, area=(0.08, 1.0)), (8, 8, 3))
