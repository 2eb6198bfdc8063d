"""Layers whose kernel is not [..., features_in, features], or whose bias has other axes: set feature by feature."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import layers
from deepjax.errors import InputError
from deepjax.init_from_data import auto, between_layer, kmeans_kernels, lsuv, pca_kernels, within_layer
from init_from_data.networks import KEY, features

RNG = np.random.default_rng(0)
SEQUENCES = (2 * RNG.standard_normal((32, 5, 8)) + 0.5).astype(np.float32)

# the layer, its input, and the axes of its output over which each feature is standardized
LAYERS = {
    "einsum": (nn.Einsum((12, 3, 5), "ab,bcd->acd"), features(), (0,)),
    "einsum, kernel in another order": (nn.Einsum((4, 3, 8), "...c,hdc->...hd"), SEQUENCES, (0, 1)),
    "einsum, features first": (nn.Einsum((12, 5), "ab,bd->da"), features(), (1,)),
    "einsum, a kernel for each position": (nn.Einsum((5, 8, 3), "nbc,bcd->nbd"), SEQUENCES, (0,)),
    "local": (nn.ConvLocal(3, (3,), padding="VALID"), SEQUENCES, (0,)),
    "positions": (nn.DenseGeneral((2, 3), batch_dims=(0,)), SEQUENCES.swapaxes(0, 1), (1,)),
    "several axes": (nn.DenseGeneral(4, axis=(-2, -1)), SEQUENCES, (0,)),
    "transposed, groups": (layers.ConvTranspose(8, (3,), 2, groups=2, use_bias=True), SEQUENCES, (0, 1)),
}
LEARNED = ("local", "positions", "several axes", "transposed, groups")


def outputs(method, model, x):
    variables = method(model, KEY, x)
    shapes = jax.eval_shape(lambda: model.init(KEY, x))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    return np.asarray(jax.jit(model.apply)(variables, x), np.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_each_feature_has_mean_0_and_variance_1(name):
    model, x, axes = LAYERS[name]
    y = outputs(within_layer, model, x)
    assert_allclose(y.mean(axes), 0, atol=1e-3)
    assert_allclose(y.var(axes), 1, atol=1e-3)


@pytest.mark.parametrize("name", LEARNED)
def test_kernels_learned_from_the_inputs(name):
    """Up to as many outputs as inputs, principal components give outputs that are not correlated."""
    model, x, axes = LAYERS[name]
    y = outputs(pca_kernels, model, x)
    assert_allclose(y.mean(axes), 0, atol=1e-3)
    assert_allclose(y.var(axes), 1, atol=1e-2)
    if name in ("local", "positions"):
        y = y if name == "local" else y.reshape(5, 32, 6).swapaxes(0, 1)
        for position in range(y.shape[1]):
            assert_allclose(np.cov(y[:, position].T, bias=True), np.eye(y.shape[-1]), atol=1e-2)


@pytest.mark.parametrize("name", ["einsum, kernel in another order", "local", "positions"])
def test_between_layers_and_one_variance(name):
    model, x, _ = LAYERS[name]
    assert_allclose(outputs(lsuv, model, x).var(), 1, atol=1e-3)
    outputs(lambda *arguments: between_layer(*arguments, iterations=1), model, x)


def test_each_position_has_an_orthonormal_kernel():
    for name, rows in (("local", 24), ("positions", 8)):
        model, x, _ = LAYERS[name]
        kernel = np.asarray(lsuv(model, KEY, x)["params"]["kernel"], np.float64)
        for matrix in kernel.reshape(len(kernel), rows, -1):
            singular = np.linalg.svd(matrix, compute_uv=False)
            assert_allclose(singular, singular[0], rtol=1e-3)


class Elsewhere(nn.Module):
    """A layer with a kernel that is used by another method than __call__."""

    @nn.compact
    def encode(self, x):
        return x @ self.param("kernel", nn.initializers.ones, (12, 3))


class Calls(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(Elsewhere(name="elsewhere").encode(x))


class OneAxis(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x * self.param("kernel", nn.initializers.ones, (12,))[None])


class Classes(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x).argmax(-1)


@pytest.mark.parametrize("method", [lsuv, within_layer, auto])
def test_no_kernel_is_left_in_silence(method):
    with pytest.raises(InputError, match="layer elsewhere: its kernel has fewer than two axes, or is used outside"):
        method(Calls(), KEY, features())
    with pytest.raises(InputError, match="layer the model itself: its kernel has fewer"):
        method(OneAxis(), KEY, features())


def test_what_has_no_patches_or_no_gradient_is_named():
    masked = nn.Conv(3, (3,), mask=np.ones((3, 8, 3)))
    for method in (pca_kernels, kmeans_kernels):
        for model in (LAYERS["einsum"][0], masked):
            with pytest.raises(InputError, match="its inputs cannot be computed"):
                method(model, KEY, SEQUENCES if model is masked else features())
    with pytest.raises(InputError, match="Classes returns no array of floats"):
        auto(Classes(), KEY, features())
    with pytest.raises(InputError, match="give the module its einsum_str, without"):
        lsuv(nn.Einsum((8, 3), "ab...,...c->abc"), KEY, SEQUENCES)
