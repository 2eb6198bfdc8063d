"""What tests of folding share: variables that show every fault, the comparison, a few modules."""

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose

from deepjax import layers
from deepjax.transforms import fold_batch_norm

KEY = jax.random.key(0)


def images(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def draw(model, x, *, seed=0, **call):
    """Variables as after training: scales of both signs, a few of them tiny, moments far from 0 and 1."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        name = path[-1].key
        if name == "kernel":
            return noise * np.float32(1.5 / np.sqrt(np.prod(leaf.shape[-4:-1])))
        tiny = np.where(rng.random(leaf.shape) < 0.1, 1e-3, 1).astype(np.float32)
        return {"scale": noise * tiny, "bias": 0.3 * noise, "mean": noise, "var": 0.01 * tiny + noise**2}[name]

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(lambda: model.init(KEY, x, **call)))


def assert_folds(model, variables, x, *, rtol=1e-5, **call):
    """Check that the folded model gives what the model gives, and return the Folding."""
    folding = fold_batch_norm(model, variables, x, **call)

    @jax.jit
    def both(variables, folded, x):
        return model.apply(variables, x, **call), folding.model.apply(folded, x, **call)

    expected, found = map(jax.tree.leaves, both(variables, folding.variables, x))
    for y, z in zip(expected, found, strict=True):
        assert y.dtype == z.dtype
        y, z = np.asarray(y, np.float64), np.asarray(z, np.float64)
        assert np.isfinite(z).all()
        assert np.ptp(y) > 0.1 * abs(y).max()  # else the comparison would show nothing
        assert_allclose(z, y, rtol=rtol, atol=rtol * abs(y).max())
    return folding


class Together(nn.Module):
    """Several models on one input, compiled together."""

    models: tuple[nn.Module, ...]

    @nn.compact
    def __call__(self, x):
        return [model(x) for model in self.models]


def normalization(variables):
    """Names of all that belongs to batch norms."""
    return {"/".join(n) for n in flatten_dict(variables) if n[-1] in ("scale", "mean", "var") or "norm" in n[-2]}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, mask=None):
        return nn.relu(layers.BatchNorm(name="norm")(nn.Dense(4, use_bias=False, name="dense")(x), train=train))


def scanned(body, axes):
    return nn.scan(body, variable_axes=axes, split_rngs={"params": True}, length=4)


def repeated(body, **options):
    return nn.scan(body, split_rngs={"params": False}, length=3, **options)
