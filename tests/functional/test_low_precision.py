"""Sums over a million rows, in every dtype, against float64: they are taken in at least float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepjax import functional

ROWS, FEATURES = 1024 * 1024, 2
ROUNDED = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 1e-6}  # by how much a result may be rounded
DTYPES = [pytest.param(name, marks=() if name == "bfloat16" else pytest.mark.slow) for name in ROUNDED]


def maps(rows):
    return rows.reshape(16, 256, 256, -1)


def image(rows):
    return rows.reshape(1, 1024, 1024, -1)


def in_training(x, scale, bias):
    running = functional.Moments(jnp.zeros(FEATURES), jnp.ones(FEATURES))
    return functional.batch_norm(x, scale, bias, running, train=True)[0]


# (rows, parameters) -> an array like rows, in which the first parameter's gradient is the sum of the cotangent's rows
BIASES = {
    "conv": lambda x, b: functional.conv(maps(x), jnp.zeros((1, 1, FEATURES, FEATURES), x.dtype), b),
    "depthwise_conv": lambda x, b: functional.depthwise_conv(maps(x), jnp.zeros((1, 1, 1, FEATURES), x.dtype), b),
    "conv_transpose": lambda x, b: functional.conv_transpose(
        maps(x), jnp.zeros((1, 1, FEATURES, FEATURES), x.dtype), b
    ),
    "maxout": lambda x, b: functional.maxout(x, jnp.zeros((FEATURES, 1, FEATURES), x.dtype), b[None]),
    "layer_norm": lambda x, b: functional.layer_norm(x, jnp.ones_like(b), b),
    "group_norm": lambda x, b: functional.group_norm(maps(x), jnp.ones_like(b), b, groups=1),
    "instance_norm": lambda x, b: functional.instance_norm(maps(x), jnp.ones_like(b), b),
    "batch_norm": lambda x, b: in_training(x, jnp.ones_like(b), b),
    "prelu": lambda x, b: functional.prelu(-jnp.ones_like(x), -b),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_what_is_added_to_every_row(dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, FEATURES)).astype(dtype)
    dy = (rng.uniform(0.5, 1.5, (ROWS, FEATURES)) / 64).astype(dtype)
    bias = np.zeros(FEATURES, dtype)

    @jax.jit
    def gradients(x, bias, dy):
        def one(function):
            y, pull = jax.vjp(lambda bias: function(x, bias), bias)
            return pull(dy.reshape(y.shape))[0]

        return {name: one(function) for name, function in BIASES.items()}

    wanted = dy.astype(np.float64).sum(0)
    for name, gradient in gradients(x, bias, dy).items():
        error = np.abs(np.asarray(gradient, np.float64) / wanted - 1).max()
        assert error <= ROUNDED[dtype], (name, error)


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_norms_and_penalties(dtype):
    x = np.random.default_rng(1).uniform(0.5, 1.5, (ROWS, FEATURES)).astype(dtype)
    wide = x.astype(np.float64)
    mask = np.arange(ROWS) % 3 > 0

    @jax.jit
    def run(x, mask):
        return {
            "moments": functional.batch_moments(x),
            "masked moments": functional.batch_moments(x, mask=mask),
            "global_avg_pool": functional.global_avg_pool(image(x))[0],
            "avg_pool": functional.avg_pool(image(x), 1024)[0, 0, 0],
            "adaptive_avg_pool": functional.adaptive_avg_pool(image(x), 1)[0, 0, 0],
            "penalties": (functional.l1_penalty({"kernel": x}), functional.l2_penalty({"kernel": x})),
            "weight_norm": functional.weight_norm(x, jnp.full(FEATURES, 1024.0))[0],
        }

    half = wide[mask]
    wanted = {
        "moments": (wide.mean(0), wide.var(0)),
        "masked moments": (half.mean(0), half.var(0)),
        **dict.fromkeys(("global_avg_pool", "avg_pool", "adaptive_avg_pool"), wide.mean(0)),
        "penalties": (wide.sum(), np.square(wide).sum() / 2),
        "weight_norm": 1024 * wide[0] / np.sqrt(np.square(wide).sum(0)),
    }
    for name, found in run(x, mask).items():
        for a, b in zip(np.atleast_2d(found), np.atleast_2d(wanted[name]), strict=True):
            exact = name in ("moments", "masked moments", "penalties")  # their results are float32
            np.testing.assert_allclose(a.astype(np.float64), b, rtol=3e-6 if exact else ROUNDED[dtype], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ROUNDED)
def test_a_mean_of_losses_and_its_gradient(dtype):
    """The gradient of a bias in the logits is a sum over all rows, too."""
    rng = np.random.default_rng(2)
    logits, labels = rng.standard_normal((ROWS, 3)).astype(dtype), rng.integers(3, size=ROWS)
    wide = logits.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    one_hot = np.eye(3)[labels]

    def mean_loss(logits):
        return functional.cross_entropy(logits, labels).mean()

    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(logits)
    np.testing.assert_allclose(loss, -(log_p * one_hot).sum(-1).mean(), rtol=1e-6)
    wanted = (np.exp(log_p) - one_hot) / ROWS
    tiny = 2**-24 if dtype == "float16" else 0  # float16 has no smaller number
    atol = ROUNDED[dtype] * np.abs(wanted).max() + tiny
    np.testing.assert_allclose(np.asarray(gradient, np.float64), wanted, rtol=ROUNDED[dtype], atol=atol)
