"""Standardization: fitted statistics against float64 NumPy, whitening, inversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deepjax import data
from deepjax.config import Augment, Data
from deepjax.data.sources.folder import FolderFiles
from deepjax.data.standardize import channel_covariance, check
from deepjax.errors import InputError
from helpers import random_arrays

Standardizer = data.Standardizer
KINDS = ("channel", "mean_image", "mean_color", "min_max", "z_score", "pca", "zca")
WHITE = ("pca", "zca")


@pytest.fixture
def folder(tmp_path):
    """Records of 70 PNG images, more than one chunk of them, 5x4 pixels."""
    for k, pixels in enumerate(pictures(70)):
        Image.fromarray(pixels).save(tmp_path / f"{k:02}.png")
    files = FolderFiles(tuple(sorted(tmp_path.glob("*.png"))))
    return data.Records(files, np.arange(70), np.zeros(70, np.int32), (5, 4, 3), "stored")


def arrays(images):
    return data.Arrays(images, np.zeros(len(images), np.int32))


def pictures(count, seed=0):
    """uint8 [count, 5, 4, 3], neighbours and channels correlated."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(60) + 0.3 * rng.standard_normal((60, 60)) / np.sqrt(60)
    values = 120 + 25 * rng.standard_normal((count, 60)) @ mixing + rng.uniform(-50, 50, 60)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8).reshape(count, 5, 4, 3)


def apply(fitted, x):
    """In one program, as a NumPy array."""
    return np.asarray(jax.jit(fitted.apply)(x))


def invert(fitted, y):
    return np.asarray(jax.jit(fitted.invert)(y))


def covariance(y):
    flat = np.asarray(y, np.float64).reshape(len(y), -1)
    return (flat - flat.mean(0)).T @ (flat - flat.mean(0)) / len(flat)


# --- statistics by channel


def test_channel_statistics_of_uint8():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 5, 4, 3)).astype(np.uint8)
    pixels[..., 2] = 77
    mean, std = data.channel_statistics(arrays(pixels))
    values = pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std[:2], values.std(0)[:2], rtol=1e-6)
    assert std[2] == 1  # a constant channel
    assert mean.dtype == std.dtype == np.float32


def test_channel_statistics_of_features_far_from_zero():
    """float32 sums of squares would lose the variance."""
    features = (1e4 + np.random.default_rng(0).normal(size=(200_000, 2))).astype(np.float32)
    mean, std = data.channel_statistics(arrays(features))
    np.testing.assert_allclose(mean, features.astype(float).mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, features.astype(float).std(0), rtol=1e-5)


def test_a_constant_float_is_constant_whatever_its_rounding():
    """The float64 mean of many 0.1 is not 0.1: the deviation must not become 1e-17 and blow up other data."""
    features = np.full((1000, 2), 0.1, np.float32)
    assert data.channel_statistics(arrays(features))[1].tolist() == [1, 1]
    for kind in ("channel", "z_score", "min_max", "mean_image", "mean_color"):
        y = apply(Standardizer.fit(kind, features), np.array([[0.1, 0.2]], np.float32))
        np.testing.assert_allclose(y, [[0, 0.1]], atol=1e-6)


standardize = jax.jit(data.standardize)


def test_standardize_function():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)
    mean, std = data.channel_statistics(arrays(pixels))
    out = np.asarray(standardize(pixels, mean, std))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, (pixels / 255.0 - mean) / std, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, rtol=1e-5)
    floats = standardize(np.full((2, 3), 5, np.float32), np.float32([1, 2, 3]), np.float32([2, 2, 2]))
    np.testing.assert_array_equal(floats, [[2, 1.5, 1]] * 2)


# --- each kind against float64 NumPy


def reference(kind, values):
    """A kind that transforms each number independently, of float64 [N, H, W, C]."""
    channels = values.reshape(-1, values.shape[-1])
    return {
        "channel": (values - channels.mean(0)) / channels.std(0),
        "mean_color": values - channels.mean(0),
        "mean_image": values - values.mean(0),
        "z_score": (values - values.mean(0)) / values.std(0),
        "min_max": -1 + 3 * (values - channels.min(0)) / (channels.max(0) - channels.min(0)),
    }[kind]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WHITE])
@pytest.mark.parametrize("unit", [255, 1])
def test_elementwise_kinds(kind, unit):
    pixels = pictures(2500)  # more than two chunks
    values = pixels / 255 if unit == 255 else pixels * 3.0 + 1000
    fitted = Standardizer.fit(kind, pixels if unit == 255 else values.astype(np.float32), limits=(-1, 2))
    y = apply(fitted, pixels if unit == 255 else values.astype(np.float32))
    np.testing.assert_allclose(y, reference(kind, values), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(invert(fitted, y), values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", WHITE)
@pytest.mark.parametrize("far", [0, 1e4])
def test_whitened_covariance_is_the_identity(kind, far):
    rng = np.random.default_rng(1)
    x = (far + rng.standard_normal((3000, 12)) @ rng.standard_normal((12, 12))).astype(np.float32)
    fitted = Standardizer.fit(kind, x)
    tolerance = 1e-4 if far == 0 else 1e-2  # float32 itself is coarse, far from zero
    y = np.asarray(apply(fitted, x), np.float64)
    np.testing.assert_allclose(covariance(y), np.eye(12), atol=tolerance)
    np.testing.assert_allclose(y.mean(0), 0, atol=tolerance)
    np.testing.assert_allclose(invert(fitted, apply(fitted, x)), x, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("kind", WHITE)
def test_whitening_of_uint8_images(kind):
    x = pictures(2500)
    fitted = Standardizer.fit(kind, x)
    y = jax.jit(fitted.apply)(x)
    assert y.shape == ((2500, 60) if kind == "pca" else x.shape)
    np.testing.assert_allclose(covariance(y), np.eye(60), atol=1e-4)
    np.testing.assert_allclose(jax.jit(fitted.invert)(y), x / 255, atol=1e-4)


def test_pca_components_fall_and_zca_is_the_symmetric_root():
    x = pictures(400).reshape(400, -1)[:, :10] / 255
    scatter = covariance(x)
    pca, zca = (Standardizer.fit(kind, x) for kind in WHITE)
    np.testing.assert_allclose(pca.scale**2, np.sort(np.linalg.eigvalsh(scatter))[::-1], rtol=1e-5)
    projected = (x - x.mean(0)) @ pca.basis
    np.testing.assert_allclose(covariance(projected), np.diag(pca.scale.astype(float) ** 2), atol=1e-7)
    matrix = np.asarray(apply(zca, np.eye(10) + x.mean(0)))  # row i: what the i-th direction becomes
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)
    np.testing.assert_allclose(matrix @ matrix @ scatter, np.eye(10), atol=1e-3)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_epsilon_is_added_to_the_variances():
    x = pictures(400).reshape(400, -1)[:, :6] / 255
    variances, vectors = np.linalg.eigh(covariance(x))
    for epsilon in (1e-3, 0.1):
        fitted = Standardizer.fit("zca", x, epsilon=epsilon)
        expected = (x - x.mean(0)) @ vectors @ np.diag((variances + epsilon) ** -0.5) @ vectors.T
        np.testing.assert_allclose(apply(fitted, x), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(invert(fitted, apply(fitted, x)), x, atol=1e-6)


@pytest.mark.parametrize("kind", WHITE)
def test_rank_deficient_data(kind):
    """Two independent directions in five features, one feature constant; and fewer examples than features."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((500, 2)) @ rng.standard_normal((2, 5))
    x[:, 3] = 7
    fitted = Standardizer.fit(kind, x)
    y = np.asarray(apply(fitted, x), np.float64)
    assert y.shape == (500, 2 if kind == "pca" else 5)
    eigenvalues = np.linalg.eigvalsh(covariance(y))
    np.testing.assert_allclose(eigenvalues[-2:], 1, atol=1e-4)
    np.testing.assert_allclose(eigenvalues[:-2], 0, atol=1e-6)
    np.testing.assert_allclose(invert(fitted, y), x, atol=1e-4)
    few = pictures(20)
    fitted = Standardizer.fit(kind, few)
    assert fitted.basis.shape == (60, 19)
    np.testing.assert_allclose(invert(fitted, apply(fitted, few)), few / 255, atol=1e-4)
    kept = Standardizer.fit(kind, few, epsilon=0.01)  # with epsilon, every direction stays
    other = pictures(5, seed=1)
    np.testing.assert_allclose(invert(kept, apply(kept, other)), other / 255, atol=1e-4)


def test_records_are_fitted_as_their_arrays(folder):
    for kind in KINDS:
        lazy, memory = Standardizer.fit(kind, folder), Standardizer.fit(kind, folder.in_memory())
        jax.tree.map(np.testing.assert_array_equal, lazy[1:], memory[1:])  # sums of uint8 are exact


def test_sums_are_exact_in_any_order():
    pixels = pictures(300)
    order = np.random.default_rng(0).permutation(300)
    for kind in ("z_score", "zca"):
        one, other = Standardizer.fit(kind, pixels), Standardizer.fit(kind, pixels[order])
        jax.tree.map(np.testing.assert_array_equal, one[1:], other[1:])


def test_channel_covariance():
    pixels = pictures(300)
    expected = np.cov(pixels.reshape(-1, 3).T / 255, bias=True)
    np.testing.assert_allclose(channel_covariance(arrays(pixels)), expected, rtol=1e-10)


# --- apply and invert


@pytest.mark.parametrize("kind", ["channel", "z_score", "pca", "zca"])
def test_any_leading_axes_under_vmap_jit_and_grad(kind):
    x, fitted = (pictures(300)[:6] / 255).astype(np.float32), Standardizer.fit(kind, pictures(300))
    (step,) = random_arrays(0, x.shape)

    @jax.jit
    def run(x):
        y, several = fitted.apply(x), fitted.apply(x.reshape(2, 3, 5, 4, 3))
        back = fitted.invert(several).reshape(x.shape)
        slope = jax.grad(lambda x: fitted.apply(x).sum())(x)
        return y, several.reshape(y.shape), jax.vmap(fitted.apply)(x), back, slope, fitted.apply(x + step)

    y, several, mapped, back, slope, moved = map(np.asarray, run(x))
    assert y.shape[1:] == fitted.output_shape((5, 4, 3))
    np.testing.assert_allclose(several, y, atol=1e-5)
    np.testing.assert_allclose(mapped, y, atol=1e-5)
    np.testing.assert_allclose(back, x, atol=1e-5)
    # Affine: the gradient is the same everywhere, and that of a finite difference.
    np.testing.assert_allclose((slope * step).sum(), (moved - y).sum(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", ["channel", "pca", "zca"])
def test_dtypes(kind):
    fitted = Standardizer.fit(kind, pictures(300))
    x = pictures(3) / 255
    assert jax.eval_shape(fitted.apply, x.astype(jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        y = apply(fitted, x)
        assert y.dtype == np.float64
        np.testing.assert_allclose(invert(fitted, y), x, atol=1e-6)  # the basis is orthonormal to float32


@pytest.mark.parametrize("kind", ["channel", "z_score", "pca", "zca"])
def test_save_and_load(tmp_path, kind):
    fitted = Standardizer.fit(kind, pictures(300))
    fitted.save(tmp_path / "inputs.npz")
    loaded = Standardizer.load(tmp_path / "inputs.npz")
    assert loaded.kind == kind
    assert (loaded.basis is None) == (kind not in WHITE)
    jax.tree.map(np.testing.assert_array_equal, fitted[1:], loaded[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["inputs.npz"]
    (tmp_path / "inputs.npz").write_bytes((tmp_path / "inputs.npz").read_bytes()[:100])
    with pytest.raises(InputError, match=r"inputs\.npz cannot be read"):
        Standardizer.load(tmp_path / "inputs.npz")
    with pytest.raises(InputError, match=r"none\.npz is missing"):
        Standardizer.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Standardizer.fit("zcaa", np.ones((3, 2))), "data.standardize 'zcaa' is unknown; .*zca"),
        (lambda: Standardizer.fit("zca", np.ones((3, 2)), epsilon=-1), "data.epsilon -1: must be at least 0"),
        (lambda: Standardizer.fit("zca", np.ones((3, 2))), "data.standardize zca: the training data are constant"),
        (lambda: Standardizer.fit("zca", np.full((9, 2), 0.1)), "data.standardize zca: the training data are constant"),
        (lambda: Standardizer.fit("min_max", np.ones((3, 2)), limits=(1, 0)), r"data.limits \(1, 0\): must be two"),
        (lambda: Standardizer.fit("z_score", np.ones((0, 2))), "the training set is empty"),
        (lambda: Standardizer.fit("zca", np.array([[1.0], [np.nan]])), r"inputs \(2, 1\) must be finite"),
        (lambda: Standardizer.fit("channel", np.ones(3)), r"inputs \(3,\) must be finite numbers, \[N, features\]"),
        (
            lambda: Standardizer.fit("pca", np.zeros((1, 65, 64, 3), np.uint8)),
            "data.standardize pca: inputs have 12,480 features, at most 12,288 .* smaller data.image_size",
        ),
        (
            lambda: Standardizer.fit("z_score", pictures(9)).apply(np.zeros((2, 4, 5, 3))),
            r"apply: shape \(2, 4, 5, 3\) does not end in \(5, 4, 3\), for which z_score was fitted",
        ),
        (
            lambda: Standardizer.fit("pca", pictures(9)).invert(np.zeros((2, 9))),
            r"invert: shape \(2, 9\) does not end in \(8,\)",
        ),
    ],
)
def test_what_is_refused(call, match):
    with pytest.raises(InputError, match=match):
        call()


@pytest.mark.parametrize(
    ("fields", "shape", "match"),
    [
        ({"standardize": "zca", "mean": (0.5,), "std": (1.0,)}, (8, 8, 1), "data.mean .* is for .* channel, not zca"),
        ({"epsilon": 0.1}, (8, 8, 1), "data.epsilon 0.1: is for data.standardize pca and zca, not channel"),
        ({"limits": (-1.0, 1.0)}, (8, 8, 1), "data.limits .* is for data.standardize min_max, not channel"),
        ({"standardize": "pca"}, (224, 224, 3), "inputs have 150,528 features, at most 12,288"),
        ({"standardize": "pca", "augment": Augment(crop=1)}, (8, 8, 1), "data.augment.crop: .* pca makes vectors"),
        ({"standardize": "pca", "augment": Augment(cutmix=1.0)}, (8, 8, 1), "data.augment.cutmix: .* use zca"),
    ],
)
def test_configs_that_are_refused(fields, shape, match):
    with pytest.raises(InputError, match=match):
        check(Data(**fields), shape)


def test_configs_that_are_accepted():
    for kind in KINDS:
        check(Data(standardize=kind, augment=Augment(mixup=0.2)), (8, 8, 1))
    check(Data(standardize="zca", epsilon=0.1, augment=Augment(flip=True, cutmix=1.0)), (64, 64, 3))
    check(Data(standardize="min_max", limits=(-1.0, 1.0)), (5,))
