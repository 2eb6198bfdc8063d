"""The dropout family as Linen modules: their functions, their keys, their options; DropConnect's dense layer."""

from functools import partial

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional, layers
from deepjax.errors import InputError
from helpers import draw_variables, random_arrays

KEY = jax.random.key(7)
RNGS = {"dropout": KEY}

MODULES = {
    "Dropout": (layers.Dropout(0.5), functional.dropout, 1),
    "SpatialDropout": (layers.SpatialDropout(0.5), functional.spatial_dropout, 1),
    "AlphaDropout": (layers.AlphaDropout(0.5), functional.alpha_dropout, 1),
    "DropPath": (layers.DropPath(0.5), functional.drop_path, 1),
    "ShakeShake": (layers.ShakeShake(), functional.shake_shake, 2),
}


class KeyOfStream(nn.Module):
    @nn.compact
    def __call__(self):
        return self.make_rng("dropout")


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_their_functions(name):
    module, function, arity = MODULES[name]
    inputs = random_arrays(40, *[(6, 4, 3)] * arity)
    options = () if name == "ShakeShake" else (0.5,)

    @jax.jit
    def both(*inputs):
        key = KeyOfStream().apply({}, rngs=RNGS)
        ours = [module.apply({}, *inputs, train=train, rngs=rngs) for train, rngs in ((True, RNGS), (False, {}))]
        return ours, [
            function(*call, *options, train=call[0] is not None) for call in ((key, *inputs), (None, *inputs))
        ]

    for ours, expected in zip(*both(*inputs), strict=True):
        assert_array_equal(ours, expected)
    assert jax.eval_shape(partial(module.init, train=True), KEY, *inputs) == {}
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        module.apply({}, *inputs, train=True)


def test_modules_need_no_key_where_nothing_is_drawn():
    (x,) = random_arrays(42, (6, 4, 3))
    for module in (layers.Dropout(0), layers.SpatialDropout(0.0), layers.AlphaDropout(0), layers.DropPath(1)):
        assert_array_equal(module.apply({}, x, train=True), x)
    even = layers.ShakeShake(forward="even", backward="even")
    assert_allclose(jax.jit(partial(even.apply, train=True))({}, x, 3 * x), 2 * x, rtol=1e-6)
    for options in ({"rate": 0}, {"inference": "mean"}):
        layer = layers.DropConnectDense(2, **options)
        variables = jax.eval_shape(lambda layer=layer: layer.init(KEY, x, train=False))
        jax.eval_shape(partial(layer.apply, train=options == {"rate": 0}), variables, x)


def test_a_module_takes_a_rate_that_is_traced():
    x = np.ones((50, 40), np.float32)

    @jax.jit
    def run(rate):
        return [layers.Dropout(r).apply({}, x, train=True, rngs=RNGS) for r in (rate, 0.5)]

    assert_array_equal(run(0.0)[0], x)
    assert_array_equal(*run(0.5))


def test_module_options_reach_their_functions():
    (x,) = random_arrays(43, (6, 2, 2, 3))
    originals = (
        layers.Dropout(0.25, "original"),
        layers.SpatialDropout(0.25, "original"),
        layers.DropPath(0.75, "original"),
    )
    maps, batch = layers.SpatialDropout(0.5, spatial=1), layers.DropPath(0.5, per="batch")
    keep = layers.ShakeShake(backward="keep", per="batch")

    @jax.jit
    def run(x):
        train = [module.apply({}, x, train=True, rngs=RNGS) for module in (*originals, maps, batch)]
        test = [module.apply({}, x, train=False) for module in originals]
        y, vjp = jax.vjp(lambda a: keep.apply({}, a, jnp.zeros_like(a), train=True, rngs=RNGS), jnp.ones((6, 2)))
        return train, test, (y, vjp(jnp.ones((6, 2)))[0])

    (*train, of_maps, of_batch), test, (alpha, beta) = jax.tree.map(np.asarray, run(x))
    for y, expected in zip(train, test, strict=True):
        assert_array_equal(y, np.where(y == 0, 0, x))
        assert_allclose(expected, 0.75 * x, rtol=1e-6)
    assert not ((of_maps != 0) == (of_maps[:, :1] != 0)).all()
    assert (of_batch != 0).all() or (of_batch == 0).all()
    assert_array_equal(alpha, beta)
    assert len(np.unique(alpha)) == 1


@pytest.mark.parametrize(
    ("module", "message"),
    [(layers.DropPath(), "DropPath: survival None"), (layers.Dropout(-0.5), "dropout: rate -0.5")],
)
def test_bad_input_is_named(module, message):
    with pytest.raises(InputError, match=message):
        module.apply({}, np.ones((2, 4, 3), np.float32), train=True)


# DropConnect


(X,) = random_arrays(44, (5, 3))
VARIABLES = {"params": dict(zip(("kernel", "bias"), random_arrays(46, (3, 4), (4,)), strict=True))}


def dense(**options):
    """(prediction without a key, or a training pass with one) of DropConnectDense(4) with these variables, jitted."""
    layer = layers.DropConnectDense(4, **{"samples": 20} | options)
    return jax.jit(
        lambda x, key=None, train=False: layer.apply(
            VARIABLES, x, train=train, rngs={"dropout": key} if key is not None else {}
        ),
        static_argnames="train",
    )


def test_drop_connect_dense_is_its_function():
    kernel, bias = VARIABLES["params"].values()
    options = {"activation": jnp.tanh, "inference": "moments", "samples": 20}
    predict = dense(rate=0.3, activation=jnp.tanh)

    @partial(jax.jit, static_argnums=0)
    def expected(train):
        key = KeyOfStream().apply({}, rngs=RNGS)
        return functional.drop_connect(key, X, kernel, bias, 0.3, train=train, **options)

    for train in (True, False):
        assert_allclose(predict(X, KEY, train=train), expected(train), rtol=1e-5, atol=1e-6)
    mean = dense(rate=0.3, activation=None, inference="mean", dtype=jnp.bfloat16)(X)
    assert mean.dtype == jnp.bfloat16
    assert_allclose(np.asarray(mean, np.float32), 0.7 * (X @ kernel + bias), atol=0.03)


@pytest.mark.parametrize("use_bias", [True, False])
def test_drop_connect_dense_has_the_parameters_of_a_dense_layer(use_bias):
    layer = layers.DropConnectDense(4, use_bias=use_bias)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(lambda: layer.init(KEY, X, train=True))["params"])
    assert shapes == {"kernel": (3, 4)} | ({"bias": (4,)} if use_bias else {})


def test_drop_connect_dense_keeps_the_variance_at_every_rate():
    """Of the connections that are kept, 1 - rate of all; within four sigma."""
    x = np.ones((2, 300), np.float32)
    rates = (0.0, 0.5, 0.9)
    init = jax.jit(
        lambda: [layers.DropConnectDense(100, r).init(KEY, x, train=False)["params"]["kernel"] for r in rates]
    )
    for rate, kernel in zip(rates, init(), strict=True):
        squares = 300 * (1 - rate) * np.square(np.asarray(kernel, np.float64))
        assert abs(squares.mean() / 2 - 1) < 4 * np.sqrt(2 / kernel.size)


def test_drop_connect_dense_predicts_without_a_key_by_the_example_alone():
    """Neither the run, nor the place in the batch, nor the rest of it matters. The seed does, and the layer's name."""
    predict = dense()
    y = np.asarray(predict(X))
    assert_array_equal(y, predict(X))
    assert_allclose(np.asarray(predict(X[::-1]))[::-1], y, rtol=1e-6)
    assert_allclose(predict(X[2]), y[2], rtol=1e-6)
    assert_allclose(np.asarray(predict(X.reshape(5, 1, 3)))[:, 0], y, rtol=1e-6)
    assert np.abs(dense(seed=1)(X) - y).max() > 1e-3
    assert np.abs(predict(X, KEY) - y).max() > 1e-3

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return [
                layers.DropConnectDense(4, samples=20, kernel_init=nn.initializers.ones)(x, train=train) for _ in "ab"
            ]

    a, b = jax.jit(lambda: Two().init_with_output(KEY, X, train=False)[0])()
    assert np.abs(np.asarray(a) - b).max() > 1e-3


def test_drop_connect_dense_approaches_the_average_of_its_masks():
    """What the layer predicts without a key is near the mean of many training passes."""
    predict = dense(samples=5000)
    passes = jax.jit(jax.vmap(lambda key: predict(X, key, train=True)))(jax.random.split(KEY, 5000))
    average = np.asarray(passes, np.float64).mean(0)
    # A sum of four terms is no Gaussian yet, but nearer to one than to its mean.
    kernel, bias = VARIABLES["params"].values()
    plain = np.maximum(0.5 * (X @ kernel + bias), 0)
    assert np.abs(predict(X) - average).mean() < 0.5 * np.abs(plain - average).mean()


def test_drop_connect_dense_in_a_scan():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            loop = nn.scan(
                lambda layer, x, _: (layer(x, train=train), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=3,
            )
            return loop(layers.DropConnectDense(3), x, None)[0]

    variables = draw_variables(Net(), X)
    assert jax.eval_shape(partial(Net().apply, train=False), variables, X).shape == (5, 3)

    def loss(variables):
        return Net().apply(variables, X, train=True, rngs=RNGS).sum()

    gradients = jax.jit(jax.grad(loss))(variables)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
