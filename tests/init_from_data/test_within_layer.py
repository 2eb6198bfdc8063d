"""Within-layer normalization and learned kernels, on models made of Flax's own modules."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.init_from_data import kmeans_kernels, pca_kernels, within_layer
from init_from_data.networks import KEY, MLP, NETS, Homemade, Recurrent, Scanned, features, images, spoiled


@pytest.mark.parametrize("method", [within_layer, pca_kernels, kmeans_kernels])
def test_every_output_has_mean_0_and_variance_1(method):
    model, x, _ = NETS["mixed"]
    variables = method(model, KEY, x)
    outputs = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True)[1])(variables, x)["intermediates"]
    for name, module in outputs.items():
        y = module["__call__"][0] if name != "__call__" else None
        if y is None:
            continue
        rows = np.asarray(y, np.float64).reshape(-1, 12 if name == "DenseGeneral_0" else y.shape[-1])
        assert_allclose(rows.mean(0), 0, atol=1e-3, err_msg=name)
        assert_allclose(rows.var(0), 1, atol=1e-2, err_msg=name)
    assert len(outputs) == len(variables["params"]) + 1


def test_inside_a_scan_and_without_bias():
    model, x = Scanned(20), features()
    params = jax.tree.map(np.asarray, within_layer(model, KEY, x)["params"])
    h = np.asarray(x) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    for unit in range(20):
        dense = jax.tree.map(lambda a, unit=unit: a[unit], params["ScanCheckpointUnit_0"]["Dense_0"])
        h = h @ dense["kernel"] + dense["bias"]
        assert_allclose(h.mean(0), 0, atol=1e-3)
        assert_allclose(h.var(0), 1, atol=1e-3)
        h = np.maximum(h, 0)
    kernel = within_layer(nn.Dense(5, use_bias=False), KEY, x)["params"]["kernel"]
    assert_allclose((x @ np.asarray(kernel)).var(0), 1, atol=1e-4)


def test_the_directions_of_the_models_own_initializer_stay():
    model, x = MLP(), features()
    drawn = jax.jit(model.init)(KEY, x)["params"]["Dense_0"]["kernel"]
    kernel = within_layer(model, KEY, x)["params"]["Dense_0"]["kernel"]
    ratio = np.asarray(kernel) / np.asarray(drawn)
    assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-4)


def test_pca_kernels_are_the_principal_components_of_patches():
    x = images(32).cumsum(1).cumsum(2)  # smooth: patches are correlated
    model = nn.Conv(10, (3, 3), strides=2, padding="VALID")
    kernel = np.asarray(pca_kernels(model, KEY, x)["params"]["kernel"], np.float64).reshape(27, 10)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x, np.float64), (3, 3), axis=(1, 2))[:, ::2, ::2]
    patches = np.moveaxis(windows, 3, 5).reshape(-1, 27)
    variances, vectors = np.linalg.eigh(np.cov(patches.T, bias=True))
    expected = vectors[:, ::-1][:, :10] / np.sqrt(variances[::-1][:10])
    signs = np.sign((expected * kernel).sum(0))
    assert_allclose(kernel, expected * signs, rtol=1e-2, atol=1e-2)
    # More outputs than directions: the rest are whitened rotations.
    dense = jax.tree.map(np.asarray, pca_kernels(nn.Dense(20), KEY, features(size=6))["params"])
    y = features(size=6) @ dense["kernel"] + dense["bias"]
    assert_allclose(np.cov(y[:, :6].T, bias=True), np.eye(6), atol=1e-3)
    assert_allclose(y.var(0), 1, atol=1e-3)


def test_kmeans_kernels_find_clusters():
    rng = np.random.default_rng(0)
    centers = np.eye(4, 8) * 10
    which = rng.integers(4, size=400)
    x = (centers[which] + rng.standard_normal((400, 8))).astype(np.float32)
    dense = jax.tree.map(np.asarray, kmeans_kernels(nn.Dense(4), KEY, x)["params"])
    y = x @ dense["kernel"] + dense["bias"]
    best = y.argmax(1)
    assert len(set(zip(which, best))) == len(set(best)) == 4  # each cluster has an output of its own


def test_what_cannot_be_set_is_named():
    with pytest.raises(InputError, match="layer Dense_0: its output has zero variance"):
        within_layer(MLP(), KEY, np.ones((8, 12), np.float32))
    with pytest.raises(InputError, match="layer Dense_0: its output is not finite"):
        within_layer(MLP(), KEY, spoiled())
    with pytest.raises(InputError, match="share its parameters"):
        within_layer(Recurrent(), KEY, features())
    with pytest.raises(InputError, match="too few for 30 clusters"):
        kmeans_kernels(MLP(), KEY, features(batch=20))
    with pytest.raises(InputError, match="inputs cannot be computed"):
        pca_kernels(Homemade(), KEY, features())
