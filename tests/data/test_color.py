"""Colors against Pillow, colorsys and NumPy; draws at four sigma."""

import colorsys
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from deepjax import data
from deepjax.config import Augment
from deepjax.data import color

HEIGHT, WIDTH = 16, 20  # more than 255 pixels, or Equalize does nothing
ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


def picture(channels=3, low=20, high=230):
    """uint8 [H, W, C]: smooth, with noise, and not of full range."""
    rng = np.random.default_rng(channels)
    ramp = np.linspace(0, 1, HEIGHT)[:, None, None] * np.linspace(0.2, 1, WIDTH)[None, :, None]
    values = low + (high - low) * np.clip(ramp + rng.uniform(-0.2, 0.2, (HEIGHT, WIDTH, channels)), 0, 1)
    return np.rint(values).astype(np.uint8)


def pillow(pixels):
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def levels(image):
    """A Pillow image, or ours in [0, 1], in levels 0 to 255, float [H, W, C]."""
    array = np.asarray(image, float)
    if isinstance(image, Image.Image):
        return array if array.ndim == 3 else array[..., None]
    return 255 * array


def close(ours, theirs, within):
    np.testing.assert_allclose(levels(ours), levels(theirs), rtol=0, atol=within)


changed = jax.jit(data.change_colors, static_argnums=2)


def as_float(pixels):
    return np.asarray(pixels, np.float32) / np.float32(255)


# --- operations


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ENHANCE)
def test_enhancements_are_pillows(name, channels):
    """Pillow rounds what it blends with, and cuts off fractions of levels at the end."""
    pixels = picture(channels)
    operation = jax.jit(getattr(color, name))
    for factor in (0.0, 0.3, 1.0, 1.9):
        expected = ENHANCE[name](pillow(pixels)).enhance(factor)
        close(operation(as_float(pixels), factor), expected, 1.01 + 0.5 * abs(1 - factor))
    np.testing.assert_allclose(operation(as_float(pixels), 1.0), as_float(pixels), atol=1e-6)


def test_enhancements_by_hand():
    image = np.array([[[0.2, 0.4, 0.6], [0.8, 0.8, 0.8]]])
    gray = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    mean = (gray + 0.8) / 2
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)  # noqa: E731

    @jax.jit
    def run(x):
        saturated = color.saturation(x, 0.5)[0, 0], color.saturation(x, 0.0)
        return color.gray(x)[..., 0], color.brightness(x, 1.5), color.contrast(x, 0.5)[0, 0], *saturated

    grays, bright, contrast, half, none = run(image)
    near(grays, [[gray, 0.8]])
    near(bright, [[[0.3, 0.6, 0.9], [1, 1, 1]]])
    near(contrast, 0.5 * np.array([0.2, 0.4, 0.6]) + 0.5 * mean)
    near(half, 0.5 * np.array([0.2, 0.4, 0.6]) + 0.5 * gray)
    near(none, [[[gray] * 3, [0.8] * 3]])


def test_hue_is_colorsys():
    rng = np.random.default_rng(0)
    image = np.concatenate([rng.uniform(size=(50, 3)), np.eye(3), 1 - np.eye(3), [[0.4] * 3, [0] * 3, [1] * 3]])
    hue = jax.jit(color.hue)
    for turn in (0.0, 0.1, -0.3, 0.5, -0.5):
        expected = []
        for pixel in image:
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            expected.append(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
        ours = np.asarray(hue(np.asarray(image, np.float32)[None], turn))
        np.testing.assert_allclose(ours[0], expected, atol=2e-6)


@pytest.mark.parametrize("channels", [3, 1])
def test_point_operations_are_pillows(channels):
    pixels, image = picture(channels), as_float(picture(channels))
    posterize, solarize = jax.jit(color.posterize), jax.jit(color.solarize)
    for bits in (1, 4, 7, 8):
        close(posterize(image, bits), ImageOps.posterize(pillow(pixels), bits), 1e-3)
    for threshold in (0, 85, 128, 170, 255):  # a level itself is inverted
        close(solarize(image, threshold / 255), ImageOps.solarize(pillow(pixels), threshold), 1e-3)
    close(jax.jit(color.autocontrast)(image), ImageOps.autocontrast(pillow(pixels)), 1.01)  # cut off by Pillow


@pytest.mark.parametrize("channels", [3, 1])
def test_equalize_is_pillows(channels):
    equalize = jax.jit(color.equalize)
    large = np.random.default_rng(0).normal(100, 30, (64, 48, channels)).clip(0, 255).astype(np.uint8)
    bright = np.maximum(large, 140)  # half of all pixels are of one level
    for pixels in (large, bright, np.full_like(large, 9), picture(channels)):
        close(equalize(as_float(pixels)), ImageOps.equalize(pillow(pixels)), 1e-3)


def test_a_constant_image_stays():
    image = np.full((5, 5, 3), 0.4, np.float32)
    (small,) = np.random.default_rng(0).uniform(size=(1, 2, 5, 3)).astype(np.float32)

    @jax.jit
    def run(x):
        exact = [operation(x) for operation in (color.autocontrast, color.equalize)]
        near = [operation(x, 1.7) for operation in (color.contrast, color.saturation, color.sharpness)]
        return exact, near, color.sharpness(small, 0.0)

    exact, near, sharp = run(image)
    for y in exact:
        np.testing.assert_array_equal(y, image)
    for y in near:
        np.testing.assert_allclose(y, image, rtol=1e-6)
    np.testing.assert_array_equal(sharp, small)  # nothing but border


def test_any_leading_axes_and_a_number_for_each_image():
    images, factors = np.stack([as_float(picture()), 1 - as_float(picture())]), np.float32([0.5, 1.5])
    names = ("brightness", "contrast", "saturation", "sharpness", "hue")

    @jax.jit
    def run(images, factors):
        results = []
        for f in (getattr(color, name) for name in names):
            alone = [f(images[k], factors[k]) for k in range(2)]
            results.append((f(images, factors), f(images[None], factors[None])[0], jnp.stack(alone)))
        equalized = color.equalize(images)
        return [*results, (equalized, equalized, jnp.stack([color.equalize(image) for image in images]))]

    for together, nested, alone in run(images, factors):
        np.testing.assert_allclose(together, alone, atol=1e-6)
        np.testing.assert_allclose(nested, alone, atol=1e-6)


def test_dtypes_and_gradients():
    """Against differences along a random direction."""
    image = np.random.default_rng(0).uniform(0.2, 0.8, (4, 4, 3))  # no two channels equal: there the hue has a kink
    direction, weights = np.random.default_rng(1).standard_normal((2, 4, 4, 3))
    numbers = {"brightness": 0.7, "contrast": 0.7, "saturation": 0.7, "hue": 0.2, "sharpness": 0.7}

    def outputs(x):
        return {name: getattr(color, name)(x, number) for name, number in numbers.items()}

    @jax.jit
    def run(x):
        y, pull = jax.vjp(outputs, x)
        return y, {name: pull({n: weights * (n == name) for n in y})[0] for name in y}

    assert {y.dtype for y in jax.eval_shape(outputs, image.astype(jnp.bfloat16)).values()} == {jnp.dtype(jnp.bfloat16)}
    with jax.enable_x64(True):
        _, slopes = jax.tree.map(np.asarray, run(image))
        high, low = (jax.tree.map(np.asarray, run(image + step * direction)[0]) for step in (1e-6, -1e-6))
    for name, slope in slopes.items():
        assert high[name].dtype == np.float64
        difference = (weights * (high[name] - low[name])).sum() / 2e-6
        np.testing.assert_allclose((slope * direction).sum(), difference, rtol=1e-5, atol=1e-7)


# --- jitter


def test_factors_are_uniform():
    images = np.full((4000, 1, 1, 3), 0.25, np.float32)
    for strength in (0.4, 1.5):  # factors of 1.5: from 0 to 2.5
        factor = np.asarray(changed(jax.random.key(0), images, Augment(brightness=strength)))[:, 0, 0, 0] / 0.25
        low, high = max(0, 1 - strength), 1 + strength
        assert low <= factor.min() < low + 0.01
        assert high - 0.01 < factor.max() <= high + 1e-6
        assert abs(factor.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 4000)
        assert abs(factor.var() / ((high - low) ** 2 / 12) - 1) < 4 * math.sqrt(0.8 / 4000)


def test_turns_of_the_hue_are_uniform():
    red = np.broadcast_to(np.float32([1, 0, 0]), (2000, 1, 1, 3))
    out = np.asarray(changed(jax.random.key(1), red, Augment(hue=0.3)))[:, 0, 0]
    turns = np.array([(colorsys.rgb_to_hsv(*pixel)[0] + 0.5) % 1 - 0.5 for pixel in out])
    assert np.abs(turns).max() <= 0.3001
    assert abs(turns.mean()) < 4 * 0.6 / math.sqrt(12 * 2000)
    assert abs(turns.var() / (0.36 / 12) - 1) < 4 * math.sqrt(0.8 / 2000)


def test_the_order_is_random(monkeypatch):
    """Four operations that do not commute, in place of the real ones: each order gives another number."""
    monkeypatch.setattr(
        color,
        "JITTER",
        {
            "brightness": lambda x, _: 2 * x,
            "contrast": lambda x, _: x + 3,
            "saturation": lambda x, _: x * x,
            "hue": lambda x, _: 5 - x,
        },
    )
    augment = Augment(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1)
    out = np.asarray(changed(jax.random.key(2), np.full((4800, 1, 1, 3), 7, np.float32), augment))
    values, counts = np.unique(out[:, 0, 0, 0], return_counts=True)
    assert len(values) == 24
    assert abs(((counts - 200) ** 2 / 200).sum() - 23) < 4 * math.sqrt(46)


def test_each_operation_has_its_own_draw():
    """Brightness and saturation of one image: factors measured from gray and from color."""
    images = np.broadcast_to(np.float32([0.35, 0.3, 0.25]), (2000, 1, 1, 3))
    augment = Augment(brightness=0.5, saturation=0.5)
    out = np.asarray(changed(jax.random.key(3), images, augment))[:, 0, 0]
    bright = out @ np.array(color.GRAY) / (images[0, 0, 0] @ np.array(color.GRAY))
    vivid = (out[:, 0] - out[:, 2]) / 0.1 / bright
    assert abs(np.corrcoef(bright, vivid)[0, 1]) < 4 / math.sqrt(2000)
    assert abs(vivid.var() / (1 / 12) - 1) < 4 * math.sqrt(0.8 / 2000)
    assert abs(np.corrcoef(bright[1:], bright[:-1])[0, 1]) < 4 / math.sqrt(2000)  # one image and the next


# --- PCA lighting


def test_lighting_components_are_those_of_the_training_set():
    pixels = np.stack([picture(), 255 - picture()])
    components = data.lighting_components(data.Arrays(pixels, np.zeros(2, np.int32)))
    covariance = np.cov(pixels.reshape(-1, 3).T / 255, bias=True)
    sizes = np.linalg.norm(components, axis=0)
    np.testing.assert_allclose(sizes, np.linalg.eigvalsh(covariance), rtol=1e-4)
    np.testing.assert_allclose(covariance @ components, components * sizes, rtol=1e-3, atol=1e-7)


def test_lighting_adds_one_color_to_each_image():
    components = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    images = np.random.default_rng(1).uniform(size=(4000, 2, 2, 3)).astype(np.float32)
    out = changed(jax.random.key(1), images, Augment(lighting=0.1), components)
    shifts = np.asarray(out, np.float64) - images
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:, :1, :1], shifts.shape), atol=1e-6)
    draws = shifts[:, 0, 0] @ np.linalg.inv(components).T / 0.1
    assert (np.abs(draws.mean(0)) < 4 / math.sqrt(4000)).all()
    assert (np.abs(draws.T @ draws / 4000 - np.eye(3)) < 4 * math.sqrt(2 / 4000)).all()


# --- all of them


def test_nothing_asked_nothing_done():
    pixels = picture()[None]
    assert data.change_colors(jax.random.key(0), pixels, Augment(flip=True, crop=2)) is pixels


def test_uint8_becomes_0_to_1_and_images_differ():
    pixels = np.broadcast_to(picture()[None], (8, HEIGHT, WIDTH, 3))
    augment = Augment(brightness=0.4, contrast=0.4, randaugment=1, lighting=0.1)
    run = jax.jit(lambda key: data.change_colors(key, pixels, augment, 0.01 * np.eye(3, dtype=np.float32)))
    first, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (0, 0, 1))
    assert first.dtype == np.float32
    assert -0.01 < first.min() < first.max() < 1.01
    np.testing.assert_array_equal(first, again)
    assert (first != other).any((1, 2, 3)).all()
    assert len(np.unique(first.reshape(8, -1), axis=0)) == 8
