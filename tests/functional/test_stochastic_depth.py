"""Noise on whole branches: stochastic depth and shake-shake, their draws at four sigma and their chain rule."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional, layers
from helpers import check_bernoulli, random_arrays

KEY = jax.random.key(7)


# Stochastic depth


@pytest.mark.parametrize("scaling", ["inverted", "original"])
@pytest.mark.parametrize("per", ["example", "batch"])
def test_drop_path_drops_rows_or_the_batch(per, scaling):
    branch = random_arrays(13, (30, 2, 3))[0] + 4
    drop = partial(functional.drop_path, branch=branch, survival=0.8, scaling=scaling, per=per)

    @jax.jit
    def run(keys):
        return jax.vmap(partial(drop, train=True))(keys), drop(None, train=False)

    y, test = map(np.asarray, run(jax.random.split(KEY, 300)))
    kept = y != 0
    rows = kept[:, :, 0, 0]
    assert (kept == rows[:, :, None, None]).all()
    assert_allclose(y, kept * branch / (0.8 if scaling == "inverted" else 1), rtol=1e-6)
    if per == "example":
        check_bernoulli(rows, 0.8)
    else:
        assert (rows == rows[:, :1]).all()
        assert abs(rows[:, 0].mean() - 0.8) < 4 * np.sqrt(0.16 / 300)
    assert_allclose(test, branch if scaling == "inverted" else 0.8 * branch, rtol=1e-6)


def test_drop_path_takes_any_rank():
    drop = jax.jit(partial(functional.drop_path, survival=0.5, train=True))
    for shape in ((5,), (2, 3, 4, 5, 6)):
        assert jax.eval_shape(drop, KEY, np.ones(shape, np.float32)).shape == shape


def test_linear_survival_is_the_rule_of_the_paper():
    # Huang et al. 2016, section 3: of 54 units with a last survival of 0.5, about 40 are expected to survive.
    rule = [functional.linear_survival(unit, 54) for unit in range(1, 55)]
    assert sum(rule) == pytest.approx((3 * 54 - 1) / 4) == pytest.approx(40.25)
    assert rule[-1] == 0.5
    assert functional.linear_survival(0, 54) == 1
    assert_allclose(jax.jit(partial(functional.linear_survival, units=54))(np.arange(1, 55)), rule, rtol=1e-6)
    assert_allclose([functional.linear_survival(unit, 3, last=0) for unit in (1, 2, 3)], [2 / 3, 1 / 3, 0], atol=1e-6)
    assert functional.linear_survival(2, 3, last=1) == 1


def test_the_expected_depth_of_a_scan_is_the_sum_of_its_survivals():
    """Every unit adds 1 if it survives; survival 1 always does, survival 0 never."""
    survivals = np.float32([1, *(functional.linear_survival(unit, 8, last=0) for unit in range(1, 9))])
    x = np.zeros((2000, 1), np.float32)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            def body(drop, x, survival):
                return x + drop(jnp.ones_like(x), train=train, survival=survival), None

            drop = layers.DropPath(scaling="original")
            return nn.scan(body, split_rngs={"dropout": True})(drop, x, survivals)[0]

    depth = np.asarray(jax.jit(partial(Net().apply, {}, train=True))(x, rngs={"dropout": KEY}))
    sigma = np.sqrt((survivals * (1 - survivals)).sum() / depth.size)
    assert abs(depth.mean() - survivals.sum()) < 4 * sigma
    assert abs(depth.var() - depth.size * sigma**2) < 0.2  # the units of a scan draw apart
    assert_allclose(jax.jit(partial(Net().apply, {}, train=False))(x), survivals.sum(), rtol=1e-6)


# Shake-shake


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def all_shares(key, forward, backward, per, train):
    a, b = jnp.ones((500, 2, 3)), jnp.zeros((500, 2, 3))
    mix = partial(functional.shake_shake, key, train=train, forward=forward, backward=backward, per=per)
    alpha, gradients = jax.vjp(mix, a, b)
    by_a, by_b = gradients(jnp.ones_like(a))
    return alpha, by_a, by_b, mix(b, a)


def shares(key, forward="shake", backward="shake", per="image", train=True):
    """(alpha, beta, 1 - beta, 1 - alpha), each [500, 2, 3]: the function of ones and zeros, and its gradients."""
    return [np.asarray(share) for share in all_shares(key, forward, backward, per, train)]


@pytest.mark.parametrize("per", ["image", "batch"])
@pytest.mark.parametrize("backward", ["shake", "even", "keep"])
@pytest.mark.parametrize("forward", ["shake", "even"])
def test_shake_shake_shares(forward, backward, per):
    alpha, beta, of_b, swapped = shares(KEY, forward, backward, per)
    assert_allclose(swapped, 1 - alpha, atol=1e-6)
    assert_allclose(of_b, 1 - beta, atol=1e-6)
    for share, kind in ((alpha, forward), (beta, backward)):
        assert (share == share[:, :1, :1]).all()
        assert (share == 0.5).all() == (kind == "even" or (kind == "keep" and forward == "even"))
        assert len(np.unique(share)) == (1 if per == "batch" or (share == 0.5).all() else 500)
    if backward == "keep":
        assert_array_equal(alpha, beta)
    elif "shake" in (forward, backward):
        assert not (alpha == beta).any()


def test_shake_shake_draws_uniform_shares_forward_and_backward_apart():
    alpha, beta = (share[:, 0, 0].astype(np.float64) for share in shares(KEY)[:2])
    sigma = np.sqrt(1 / 12 / alpha.size)
    for share in (alpha, beta):
        assert abs(share.mean() - 0.5) < 4 * sigma
        assert abs(share.var() - 1 / 12) < 4 * np.sqrt((1 / 80 - 1 / 144) / alpha.size)
        assert (share >= 0).all()
        assert (share < 1).all()
    assert abs(((alpha - 0.5) * (beta - 0.5)).mean() * 12) < 4 / np.sqrt(alpha.size)
    # By batch: one of each per key.
    draws = [shares(key, per="batch") for key in jax.random.split(KEY, 200)]
    alpha, beta = (np.array([draw[i][0, 0, 0] for draw in draws], np.float64) for i in range(2))
    assert abs(alpha.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 200)
    assert abs(((alpha - 0.5) * (beta - 0.5)).mean() * 12) < 4 / np.sqrt(200)


def test_shake_shake_forward_does_not_see_how_it_goes_backward():
    once = [shares(KEY, backward=backward)[0] for backward in ("shake", "even", "keep")]
    assert_array_equal(once[0], once[1])
    assert_array_equal(once[0], once[2])
    assert_array_equal(shares(KEY)[1], shares(KEY, forward="even")[1])


def test_shake_shake_at_test_is_the_mean():
    for share in shares(None, train=False):
        assert (share == 0.5).all()


def test_shake_shake_in_a_scan_follows_the_chain_rule():
    """y = x shaken with 3x, four times: the gradient is the product of the backward factors, not the forward ones."""
    keys, ones = jax.random.split(KEY, 4), np.ones((5, 1), np.float32)

    def run(x):
        def unit(x, key):
            return functional.shake_shake(key, x, 3 * x, train=True), None

        return jax.lax.scan(unit, x, keys)[0]

    @jax.jit
    def everything(x):
        def one(key):
            alpha, vjp = jax.vjp(partial(functional.shake_shake, key, train=True), ones, np.zeros_like(ones))
            return alpha, vjp(jnp.ones_like(alpha))[0]

        y, slope = jax.jvp(run, (x,), (ones,))
        return jax.lax.map(one, keys), y, slope, jax.grad(lambda x: run(x).sum())(x)

    (alphas, betas), y, slope, gradient = jax.tree.map(np.asarray, everything(ones))
    assert_allclose(y, (alphas + 3 * (1 - alphas)).prod(0), rtol=1e-5)
    assert_allclose(gradient, (betas + 3 * (1 - betas)).prod(0), rtol=1e-5)
    assert_allclose(slope, gradient, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_shake_shake_keeps_dtypes(dtype):
    with jax.enable_x64(True):
        a, b = (v.astype(dtype) for v in random_arrays(14, (6, 2), (6, 2)))

        @jax.jit
        def run(a, b):
            mix = partial(functional.shake_shake, KEY, train=True)
            y, vjp = jax.vjp(mix, a, b)
            return y, vjp(jnp.ones_like(y)), mix(jnp.ones((6, 2)), jnp.zeros((6, 2)))

        y, gradients, alpha = run(a, b)
    assert y.dtype == dtype
    assert [g.dtype for g in gradients] == [dtype, dtype]
    alpha, a, b, y = (np.asarray(v, np.float64) for v in (alpha, a, b, y))
    assert_allclose(y, alpha * a + (1 - alpha) * b, atol=float(jnp.finfo(dtype).eps) * 4)
