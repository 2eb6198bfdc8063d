"""Parameters that meet every pixel of every example: their gradients in bfloat16 are sums in at least float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from deepjax import functional, layers
from deepjax.units import Branch, SkipInit, SqueezeExcite
from deepjax.units.norms import Shift
from deepjax.zoo.lenet import Subsample

KEY = jax.random.key(0)
MAPS = (8, 64, 64, 4)


class Skip(nn.Module):
    @nn.compact
    def __call__(self, x):
        return SkipInit(name="join")(x, x, train=True)


class Fixup(nn.Module):
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        options = {"norm": None, "branch_init": "fixup", "branches": 2, "dtype": self.dtype, "name": "branch"}
        return Branch((4,), (1,), (1,), **options)(x, train=True)


class DropConnect(nn.Module):
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        return layers.DropConnectDense(3, activation=None, dtype=self.dtype, name="dense")(x, train=True)


MODULES = {
    "dense": (layers.Dense(3), MAPS),
    "dense of rows": (layers.Dense(3), (8192, 4)),
    "drop connect": (DropConnect(), (2048, 4)),
    "skip init": (Skip(), MAPS),
    "shift": (Shift(), MAPS),
    "fixup": (Fixup(), MAPS),
    "squeeze and excite": (SqueezeExcite(2, activation=functional.softplus), MAPS),
    "subsample": (Subsample(), MAPS),
}


@pytest.mark.parametrize("name", MODULES)
def test_gradients_in_bfloat16_against_float32(name):
    model, shape = MODULES[name]
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + 0.5).astype(jnp.bfloat16)
    half = model.clone(dtype=jnp.bfloat16) if hasattr(model, "dtype") else model

    def gradient(model, params, x, dy):
        rngs = {"dropout": KEY}
        return jax.vjp(lambda params: model.apply(params, x, rngs=rngs), params)[1](dy)[0]

    params = jax.jit(model.init)({"params": KEY, "dropout": KEY}, x[:2].astype(np.float32))
    rounded = jax.tree.map(lambda a: (0.25 + np.asarray(a)).astype(jnp.bfloat16).astype(np.float32), params)
    y = jax.eval_shape(lambda: half.apply(rounded, x, rngs={"dropout": KEY}))
    dy = ((1 + 0.2 * rng.standard_normal(y.shape)) / 32).astype(jnp.bfloat16)
    found = jax.jit(lambda p, x, dy: gradient(half, p, x, dy))(rounded, x, dy.astype(y.dtype))
    wanted = jax.jit(lambda p, x, dy: gradient(model, p, x, dy))(rounded, x.astype(np.float32), dy.astype(np.float32))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_allclose(a, b, atol=0.01 * np.abs(b).max())
