"""The multi-column network: its size, widths of digits, that columns learn alone, and their average."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from deepjax import zoo
from deepjax.zoo.multi_column import Column, normalize_width
from deepjax.zoo.network import INITS

KEY = jax.random.key(0)


def test_a_column_has_the_papers_layers():
    variables = jax.eval_shape(lambda: Column(10, INITS["lecun"]).init(KEY, jnp.zeros((1, 29, 29, 1))))
    sizes = {name: sum(leaf.size for leaf in layer.values()) for name, layer in variables["params"].items()}
    # 4 * 4 * 20 + 20; 5 * 5 * 20 * 40 + 40; 3 * 3 * 40 * 150 + 150; 150 * 10 + 10
    assert sizes == {"conv1": 340, "conv2": 20_040, "hidden": 54_150, "head": 1_510}


def test_digits_are_stretched_to_the_width():
    image = np.full((2, 29, 29, 1), -0.4, np.float32)
    image[0, 5:20, 3:9] = 1.0
    image[1, 5:20, 12:28] = 1.0
    as_they_are, normalized = jax.vmap(normalize_width, (None, 0))(image, jnp.array([0.0, 12.0]))
    assert_allclose(as_they_are, image, atol=1e-5)
    row = np.asarray(normalized[:, 10, :, 0])
    assert_allclose((row + 0.4).sum(1) / 1.4, 12, atol=0.5)
    assert_allclose(((row + 0.4) * np.arange(29)).sum(1) / (row + 0.4).sum(1), 14, atol=0.1)


def test_columns_learn_alone_and_are_averaged():
    model = zoo.create("mcdnn", columns=3, num_classes=4)
    x = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    variables = jax.jit(lambda: model.init(KEY, x, train=False))()

    @jax.jit
    def run(params):
        def second(params):
            return model.apply({"params": params}, x, train=True)[1].sum()

        return (
            model.apply({"params": params}, x, train=True),
            jax.grad(second)(params),
            model.apply({"params": params}, x, train=False),
        )

    columns, gradient, together = run(variables["params"])
    moved = {i for leaf in jax.tree.leaves(gradient) for i in range(3) if np.abs(leaf[i]).max() > 0}
    assert moved == {1}
    probabilities = np.mean([np.exp(c) / np.exp(c).sum(1, keepdims=True) for c in np.asarray(columns)], 0)
    assert_allclose(np.exp(together), probabilities, rtol=1e-5)
