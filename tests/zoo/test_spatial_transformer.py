"""The spatial transformer begins with the identity, and learns."""

import jax
import numpy as np
from numpy.testing import assert_allclose

from deepjax import zoo

KEY = jax.random.key(0)


def test_the_transformer_begins_with_the_identity_and_gets_gradients():
    x = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    model = zoo.create("st_cnn", width=4)

    @jax.jit
    def run():
        variables = model.init(KEY, x, train=False)
        gradient = jax.grad(lambda v: model.apply(v, x, train=False)[:, 0].sum())(variables)
        return model.clone(features_only=True).apply(variables, x, train=False), gradient

    maps, gradient = run()
    assert_allclose(maps["transformed"], x, atol=1e-5)
    assert np.abs(gradient["params"]["transformer"]["theta"]["kernel"]).max() > 0


def test_without_the_transformer():
    parameters = jax.eval_shape(
        lambda: zoo.create("st_cnn", transform=False).init(KEY, np.ones((1, 28, 28, 1)), train=False)
    )
    assert set(parameters["params"]) == {"conv1", "conv2", "hidden", "head"}
