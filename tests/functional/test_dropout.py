"""The dropout family: masks at four sigma, values and gradients against PyTorch, float64 NumPy and enumeration."""

import itertools
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

KEY = jax.random.key(7)


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check_bernoulli(kept, probability):
    """Independent draws over the whole matrix: its mean, the spread of its rows and columns, its neighbours."""
    rows, columns = kept.shape
    noise = (np.asarray(kept, np.float64) - probability) / np.sqrt(probability * (1 - probability))
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    for axis, count in ((1, rows), (0, columns)):
        # Squared sums of independent rows follow chi-squared; a mask shared by rows would miss by far.
        assert abs((noise.mean(axis) ** 2 * noise.shape[axis]).sum() - count) < 4 * np.sqrt(2 * count)
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        assert abs((a * b).mean()) < 4 / np.sqrt(a.size)


@pytest.fixture
def with_mask(monkeypatch):
    """Lets a test say which mask is drawn."""

    def use(mask):
        monkeypatch.setattr(jax.random, "bernoulli", lambda key, keep, shape: jnp.asarray(mask).reshape(shape))

    return use


# Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.85])
def test_dropout_drops_entries_independently_at_the_rate(rate):
    y = np.asarray(functional.dropout(KEY, jnp.ones((600, 500)), rate, train=True))
    check_bernoulli(y != 0, 1 - rate)
    assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("scaling", ["inverted", "original"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4, 5, 2)])
def test_dropout_scales_what_it_keeps(shape, scaling):
    x = normal(0, *shape) + 5
    y = functional.dropout(KEY, x, 0.3, train=True, scaling=scaling)
    factor = 0.7 if scaling == "inverted" else 1
    assert y.shape == shape
    assert_allclose(y, np.where(np.asarray(y) == 0, 0, x / factor), rtol=1e-6)
    test = functional.dropout(None, x, 0.3, train=False, scaling=scaling)
    assert_allclose(test, x if scaling == "inverted" else 0.7 * x, rtol=1e-6)


@pytest.mark.parametrize("scaling", ["inverted", "original"])
def test_dropout_in_training_is_on_average_what_it_is_at_test(scaling):
    x, count = normal(1, 6), 4000
    draw = partial(functional.dropout, x=x, rate=0.3, train=True, scaling=scaling)
    mean = jax.jit(jax.vmap(draw))(jax.random.split(KEY, count)).mean(0)
    test = functional.dropout(None, x, 0.3, train=False, scaling=scaling)
    sigma = np.abs(x) * np.sqrt(0.3 * 0.7 / count) / (0.7 if scaling == "inverted" else 1)
    assert (np.abs(mean - test) < 4 * sigma).all()


def test_a_key_gives_one_mask_in_every_dtype_and_under_every_transformation():
    x = jnp.ones((40, 30))
    drop = partial(functional.dropout, rate=0.3, train=True)
    kept = np.asarray(drop(KEY, x)) != 0
    assert_array_equal(np.asarray(jax.jit(drop)(KEY, x)) != 0, kept)
    assert_array_equal(np.asarray(drop(KEY, x.astype(jnp.bfloat16))) != 0, kept)
    with jax.enable_x64(True):
        y = drop(KEY, x.astype(jnp.float64))
        assert_array_equal(np.asarray(y) != 0, kept)
        assert_allclose(y[kept], 1 / 0.7, rtol=1e-15)
    assert (np.asarray(drop(jax.random.key(8), x)) != 0).mean() != kept.mean()
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(drop, (0, None))(keys, x)
    for key, y in zip(keys, together):
        assert_array_equal(y, drop(key, x))
    assert not (np.asarray(together[0]) == np.asarray(together[1])).all()


@pytest.mark.parametrize("scaling", ["inverted", "original"])
def test_gradient_of_dropout_is_its_mask(scaling):
    x, weight = normal(2, 8, 9), normal(3, 8, 9)
    drop = partial(functional.dropout, KEY, rate=0.4, train=True, scaling=scaling)
    kept = np.asarray(drop(jnp.ones((8, 9)))) != 0
    gradient = jax.grad(lambda x: (weight * drop(x)).sum())(x)
    assert_allclose(gradient, weight * kept / (0.6 if scaling == "inverted" else 1), rtol=1e-6)


# name -> (f(key, x, rate) on x [4, 5, 3], x at rate 1). `rate` is always the probability to drop.
DROPPERS = {
    "dropout": partial(functional.dropout, train=True),
    "dropout original": partial(functional.dropout, train=True, scaling="original"),
    "spatial_dropout": partial(functional.spatial_dropout, train=True),
    "alpha_dropout": partial(functional.alpha_dropout, train=True),
    "drop_path": lambda key, x, rate: functional.drop_path(key, x, 1 - rate, train=True),
    "drop_path batch": lambda key, x, rate: functional.drop_path(key, x, 1 - rate, train=True, per="batch"),
}


@pytest.mark.parametrize("name", DROPPERS)
def test_rate_0_is_the_identity_and_rate_1_gives_zeros(name):
    drop, x = DROPPERS[name], normal(4, 4, 5, 3)
    assert_array_equal(drop(None, x, 0), x)
    assert_array_equal(drop(None, x, 0.0), x)
    assert_array_equal(drop(KEY, x, 1), np.zeros_like(x))

    # A traced rate: values, and gradients with respect to x and to the rate itself.
    @jax.jit
    def traced(x, rate):
        y, gradients = drop(KEY, x, rate), jax.grad(lambda x, rate: drop(KEY, x, rate).sum(), (0, 1))(x, rate)
        return y, *gradients

    y, by_x, by_rate = traced(x, 0.0)
    assert_allclose(y, x, rtol=1e-6)
    assert_allclose(by_x, np.ones_like(x), rtol=1e-6)
    assert np.isfinite(by_rate)
    y, by_x, by_rate = traced(x, 1.0)
    assert_array_equal(y, np.zeros_like(x))
    assert_array_equal(by_x, np.zeros_like(x))
    assert np.isfinite(by_rate)
    assert_allclose(traced(x, 0.4)[0], drop(KEY, x, 0.4), rtol=1e-5)


def test_rates_of_a_scan_may_differ():
    x = normal(5, 50, 40)
    keys = jax.random.split(KEY, 3)

    def unit(x, key_and_rate):
        y = functional.dropout(*key_and_rate[:1], x, key_and_rate[1], train=True)
        return y, (y != 0).mean()

    _, shares = jax.lax.scan(unit, x, (keys, jnp.array([0.0, 0.5, 1.0])))
    assert shares[0] == 1
    assert abs(shares[1] - 0.5) < 4 * np.sqrt(0.25 / x.size)
    assert shares[2] == 0


@pytest.mark.parametrize("name", DROPPERS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_are_kept(name, dtype):
    with jax.enable_x64(True):
        x = jnp.asarray(normal(6, 4, 5, 3), dtype)
        wide = np.asarray(DROPPERS[name](KEY, x.astype(jnp.float64), 0.1))
        y = DROPPERS[name](KEY, x, 0.1)
        assert y.dtype == dtype
        # Scaled in at least float32: only the result is rounded. In bfloat16, 1 - 0.1 alone is off by 2e-3.
        scale = np.abs(np.asarray(x, np.float64)).max() * 1.5
        assert_allclose(np.asarray(y, np.float64), wide, rtol=float(jnp.finfo(dtype).eps), atol=scale * 1e-7)


def test_a_dropped_entry_hides_infinity():
    y = functional.dropout(KEY, jnp.full(100, jnp.inf), 0.5, train=True)
    assert set(np.asarray(y).tolist()) == {0.0, np.inf}


# Spatial dropout


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_spatial_dropout_drops_whole_maps(axes):
    x = normal(7, 40, *(3, 2, 2)[:axes], 50)
    y = np.asarray(functional.spatial_dropout(KEY, x, 0.3, train=True))
    maps = (y != 0).reshape(40, -1, 50)
    assert (maps == maps[:, :1]).all()
    check_bernoulli(maps[:, 0], 0.7)
    assert_allclose(y, np.where(y == 0, 0, x / 0.7), rtol=1e-6)
    original = functional.spatial_dropout(None, x, 0.3, train=False, scaling="original")
    assert_allclose(original, 0.7 * x, rtol=1e-6)


def test_spatial_dropout_of_any_leading_axes():
    x = jnp.ones((3, 4, 5, 6, 7))
    kept = np.asarray(functional.spatial_dropout(KEY, x, 0.5, train=True, spatial=2)) != 0
    assert (kept == kept[:, :, :1, :1]).all()
    assert not (kept == kept[:, :1]).all()
    assert functional.spatial_dropout(KEY, x[0, 0], 0.5, train=True, spatial=2).shape == (5, 6, 7)


# Alpha dropout


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_alpha_dropout_keeps_mean_0_and_variance_1(rate):
    x = normal(8, 400_000, dtype=np.float64)
    with jax.enable_x64(True):
        y = np.asarray(functional.alpha_dropout(KEY, x, rate, train=True))
    assert abs(y.mean()) < 4 / np.sqrt(y.size)
    assert abs((y**2).mean() - 1) < 4 * (y**2).std() / np.sqrt(y.size)
    assert functional.alpha_dropout(None, x, rate, train=False) is x


def test_a_selu_network_stays_normalized_under_alpha_dropout():
    """Self-normalization: after ten layers, mean 0 and variance 1 as without dropout. Plain dropout loses them."""
    x = jnp.asarray(normal(9, 200, 300))

    def run(drop):
        def layer(x, key):
            kernel = jax.random.normal(jax.random.fold_in(key, 0), (300, 300)) / np.sqrt(300)
            return drop(jax.random.fold_in(key, 1), jax.nn.selu(x @ kernel)), None

        return jax.lax.scan(layer, x, jax.random.split(KEY, 10))[0]

    y = run(partial(functional.alpha_dropout, rate=0.1, train=True))
    assert abs(y.mean()) < 0.1
    assert 0.85 < y.var() < 1.15
    plain = run(partial(functional.dropout, rate=0.1, train=True))
    assert plain.var() > 1.3


# PyTorch, given its own masks


@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "axes"),
    [("Dropout", 2), ("AlphaDropout", 2), ("Dropout1d", 1), ("Dropout2d", 2), ("Dropout3d", 3)],
)
def test_equals_pytorch_given_its_mask(with_mask, name, axes, dtype, rate):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x = normal(10, 3, *(4, 5, 2)[:axes], 6, dtype=dtype) + 3
    weight = normal(11, *x.shape, dtype=dtype)
    x_torch = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    y_torch = getattr(torch.nn, name)(rate).train()(x_torch)
    (y_torch * torch.tensor(np.moveaxis(weight, -1, 1).copy())).sum().backward()
    gradient = np.moveaxis(x_torch.grad.numpy(), 1, -1)
    kept = gradient != 0
    assert 0 < kept.mean() < 1
    with_mask(kept if axes == 2 and name[-1] != "d" else kept.reshape(3, -1, 6)[:, 0])
    function = {"Dropout": functional.dropout, "AlphaDropout": functional.alpha_dropout}
    drop = partial(function.get(name, functional.spatial_dropout), KEY, rate=rate, train=True)
    with jax.enable_x64(True):
        tolerance = 1e-6 if dtype == np.float32 else 1e-12
        assert_allclose(drop(x), np.moveaxis(y_torch.detach().numpy(), 1, -1), rtol=tolerance)
        assert_allclose(jax.grad(lambda x: (weight * drop(x)).sum())(x), gradient, rtol=tolerance)


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["dropout", "alpha_dropout"])
def test_equals_pytorch_where_nothing_is_random(name, train, rate):
    torch = pytest.importorskip("torch")
    x = normal(12, 3, 4)
    expected = getattr(torch.nn.functional, name)(torch.tensor(x), rate, train)
    assert_array_equal(getattr(functional, name)(KEY, x, rate, train=train), expected.numpy())


# Stochastic depth


@pytest.mark.parametrize("scaling", ["inverted", "original"])
@pytest.mark.parametrize("per", ["example", "batch"])
def test_drop_path_drops_rows_or_the_batch(per, scaling):
    branch = normal(13, 30, 2, 3) + 4
    drop = partial(functional.drop_path, branch=branch, survival=0.8, train=True, scaling=scaling, per=per)
    y = np.asarray(jax.jit(jax.vmap(drop))(jax.random.split(KEY, 300)))
    kept = y != 0
    rows = kept[:, :, 0, 0]
    assert (kept == rows[:, :, None, None]).all()
    assert_allclose(y, kept * branch / (0.8 if scaling == "inverted" else 1), rtol=1e-6)
    if per == "example":
        check_bernoulli(rows, 0.8)
    else:
        assert (rows == rows[:, :1]).all()
        assert abs(rows[:, 0].mean() - 0.8) < 4 * np.sqrt(0.16 / 300)
    test = functional.drop_path(None, branch, 0.8, train=False, scaling=scaling, per=per)
    assert_allclose(test, branch if scaling == "inverted" else 0.8 * branch, rtol=1e-6)


def test_drop_path_takes_any_rank():
    assert functional.drop_path(KEY, jnp.ones(5), 0.5, train=True).shape == (5,)
    assert functional.drop_path(KEY, jnp.ones((2, 3, 4, 5, 6)), 0.5, train=True).shape == (2, 3, 4, 5, 6)


def test_linear_survival_is_the_rule_of_the_paper():
    # Huang et al. 2016, section 3: of 54 units with a last survival of 0.5, about 40 are expected to survive.
    rule = [functional.linear_survival(unit, 54) for unit in range(1, 55)]
    assert sum(rule) == pytest.approx((3 * 54 - 1) / 4) == pytest.approx(40.25)
    assert rule[-1] == 0.5
    assert functional.linear_survival(0, 54) == 1
    assert_allclose(functional.linear_survival(jnp.arange(1, 55), 54), rule, rtol=1e-6)
    assert_allclose(functional.linear_survival(jnp.arange(1, 4), 3, last=0), [2 / 3, 1 / 3, 0], atol=1e-6)
    assert functional.linear_survival(2, 3, last=1) == 1


def test_the_expected_depth_of_a_scan_is_the_sum_of_its_survivals():
    """Every unit adds 1 if it survives; survival 1 always does, survival 0 never."""
    survivals = jnp.concatenate([jnp.ones(1), functional.linear_survival(jnp.arange(1, 9), 8, last=0)])
    x = jnp.zeros((2000, 1))

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
    assert_allclose(Net().apply({}, x, train=False), survivals.sum(), rtol=1e-6)


# Shake-shake


@partial(jax.jit, static_argnames=("forward", "backward", "per", "train"))
def shares(key, *, forward="shake", backward="shake", per="image", train=True):
    """(alpha, beta), each [batch, 2, 3], as the function of ones and zeros and its gradients show them."""
    a, b = jnp.ones((500, 2, 3)), jnp.zeros((500, 2, 3))
    mix = partial(functional.shake_shake, key, train=train, forward=forward, backward=backward, per=per)
    alpha, gradients = jax.vjp(mix, a, b)
    by_a, by_b = gradients(jnp.ones_like(a))
    return alpha, by_a, by_b, mix(b, a)


@pytest.mark.parametrize("per", ["image", "batch"])
@pytest.mark.parametrize("backward", ["shake", "even", "keep"])
@pytest.mark.parametrize("forward", ["shake", "even"])
def test_shake_shake_shares(forward, backward, per):
    alpha, beta, of_b, swapped = (np.asarray(s) for s in shares(KEY, forward=forward, backward=backward, per=per))
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
    alpha, beta = (np.asarray(s)[:, 0, 0].astype(np.float64) for s in shares(KEY)[:2])
    sigma = np.sqrt(1 / 12 / alpha.size)
    for share in (alpha, beta):
        assert abs(share.mean() - 0.5) < 4 * sigma
        assert abs(share.var() - 1 / 12) < 4 * np.sqrt((1 / 80 - 1 / 144) / alpha.size)
        assert (share >= 0).all()
        assert (share < 1).all()
    assert abs(((alpha - 0.5) * (beta - 0.5)).mean() * 12) < 4 / np.sqrt(alpha.size)
    # By batch: one of each per key.
    draw = jax.vmap(partial(shares, per="batch"))(jax.random.split(KEY, 200))
    alpha, beta = (np.asarray(s)[:, 0, 0, 0].astype(np.float64) for s in draw[:2])
    assert abs(alpha.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 200)
    assert abs(((alpha - 0.5) * (beta - 0.5)).mean() * 12) < 4 / np.sqrt(200)


def test_shake_shake_forward_does_not_see_how_it_goes_backward():
    once = [np.asarray(shares(KEY, backward=backward)[0]) for backward in ("shake", "even", "keep")]
    assert_array_equal(once[0], once[1])
    assert_array_equal(once[0], once[2])
    assert_array_equal(shares(KEY)[1], shares(KEY, forward="even")[1])


def test_shake_shake_at_test_is_the_mean():
    alpha, by_a, by_b, swapped = shares(None, train=False)
    for share in (alpha, by_a, by_b, swapped):
        assert (share == 0.5).all()


def test_shake_shake_in_a_scan_follows_the_chain_rule():
    """y = x shaken with 3x, four times: the gradient is the product of the backward factors, not the forward ones."""
    keys = jax.random.split(KEY, 4)

    def run(x):
        def unit(x, key):
            return functional.shake_shake(key, x, 3 * x, train=True), None

        return jax.lax.scan(unit, x, keys)[0]

    x = jnp.ones((5, 1))
    one, three = jnp.ones((5, 1)), jnp.zeros((5, 1))
    alphas, betas = [], []
    for key in keys:
        y, vjp = jax.vjp(partial(functional.shake_shake, key, train=True), one, three)
        alphas.append(np.asarray(y))
        betas.append(np.asarray(vjp(jnp.ones_like(y))[0]))
    assert_allclose(jax.jit(run)(x), np.prod([a + 3 * (1 - a) for a in alphas], 0), rtol=1e-5)
    gradient = np.prod([b + 3 * (1 - b) for b in betas], 0)
    assert_allclose(jax.jit(jax.grad(lambda x: run(x).sum()))(x), gradient, rtol=1e-5)
    assert_allclose(jax.jvp(run, (x,), (jnp.ones_like(x),))[1], gradient, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_shake_shake_keeps_dtypes(dtype):
    with jax.enable_x64(True):
        a, b = (jnp.asarray(normal(seed, 6, 2), dtype) for seed in (14, 15))
        y, vjp = jax.vjp(partial(functional.shake_shake, KEY, train=True), a, b)
        assert y.dtype == dtype
        assert [g.dtype for g in vjp(jnp.ones_like(y))] == [dtype, dtype]
        alpha = functional.shake_shake(KEY, jnp.ones((6, 2)), jnp.zeros((6, 2)), train=True)
        alpha, a, b, y = (np.asarray(v, np.float64) for v in (alpha, a, b, y))
        assert_allclose(y, alpha * a + (1 - alpha) * b, atol=float(jnp.finfo(dtype).eps) * 4)


# DropConnect


def decoded_masks(key, batch, inputs, features, rate):
    """bool [batch, inputs, features]: a kernel of powers of two writes the mask of every sum into its binary digits."""
    kernel = np.broadcast_to(2.0 ** np.arange(inputs)[:, None], (inputs, features)).astype(np.float32)
    bias = np.full(features, 2.0**inputs, np.float32)
    sums = functional.drop_connect(key, jnp.ones((batch, inputs)), kernel, bias, rate, train=True)
    digits = np.asarray(sums).astype(np.int64)[:, None] >> np.arange(inputs + 1)[None, :, None]
    return digits % 2 == 1  # the last one is the bias's


def test_drop_connect_masks_every_weight_of_every_example_apart():
    masks = decoded_masks(KEY, 30, 19, 40, 0.3)
    check_bernoulli(masks.reshape(30, -1), 0.7)
    check_bernoulli(masks.transpose(1, 0, 2).reshape(20, -1), 0.7)
    assert_array_equal(masks, decoded_masks(KEY, 30, 19, 40, 0.3))
    assert (masks != decoded_masks(jax.random.key(8), 30, 19, 40, 0.3)).any()


@pytest.mark.parametrize("positions", [(), (4,), (2, 3)])
def test_drop_connect_in_training_is_a_masked_product(positions):
    """Values and gradients against NumPy, with the masks that it drew."""
    x, kernel, bias = normal(16, 3, *positions, 5), normal(17, 5, 4), normal(18, 4)
    weight = normal(19, 3, *positions, 4)
    layer = partial(functional.drop_connect, KEY, rate=0.4, train=True, activation=jnp.tanh)
    masks = decoded_masks(KEY, 3, 5, 4, 0.4).astype(np.float64)
    ones = np.ones((*x.shape[:-1], 1))
    # As [3, positions, ...], each example's positions under one mask.
    v, masked = np.concatenate([x, ones], -1).reshape(3, -1, 6), masks * np.concatenate([kernel, bias[None]])
    expected = np.tanh(np.einsum("bpi,bio->bpo", v, masked))
    assert_allclose(layer(x, kernel, bias), expected.reshape(weight.shape), rtol=1e-4, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda *inputs: (weight * layer(*inputs)).sum(), (0, 1, 2)))(x, kernel, bias)
    by_u = weight.reshape(3, -1, 4) * (1 - expected**2)
    by_weights = np.einsum("bpi,bpo,bio->io", v, by_u, masks)
    by_x = np.einsum("bpo,bio->bpi", by_u, masked)[..., :5]
    assert_allclose(gradients[0], by_x.reshape(x.shape), rtol=1e-4, atol=1e-5)
    assert_allclose(gradients[1], by_weights[:5], rtol=1e-4, atol=1e-5)
    assert_allclose(gradients[2], by_weights[5], rtol=1e-4, atol=1e-5)


def test_drop_connect_of_a_single_example_and_without_bias():
    x, kernel = normal(20, 5), normal(21, 5, 4)
    one = functional.drop_connect(KEY, x, kernel, None, 0.4, train=True)
    assert_allclose(one, functional.drop_connect(KEY, x[None], kernel, None, 0.4, train=True)[0], rtol=1e-6)
    assert functional.drop_connect(KEY, x, kernel, None, 0.4, train=False).shape == (4,)
    assert functional.drop_connect(KEY, jnp.ones((0, 5)), kernel, None, 0.4, train=True).shape == (0, 4)


def enumerated(x, kernel, bias, rate, function):
    """The exact mean of function(sums) over all masks of one unit, float64: x [inputs], kernel [inputs], bias."""
    terms = np.append(x * kernel, bias).astype(np.float64)
    masks = np.array(list(itertools.product([0, 1], repeat=terms.size)))
    kept = masks.sum(1)
    return ((1 - rate) ** kept * rate ** (terms.size - kept) * function(masks @ terms)).sum()


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_drop_connect_at_test_has_the_moments_of_all_its_masks(rate):
    x, kernel, bias, count = normal(22, 2, 7), normal(23, 7, 3), normal(24, 3), 20_000
    draw = jax.jit(lambda key: functional.drop_connect(key, x, kernel, bias, rate, train=False, samples=1))
    draws = np.asarray(jax.vmap(draw)(jax.random.split(KEY, count)), np.float64)
    for row, unit in itertools.product(range(2), range(3)):
        moment = partial(enumerated, x[row], kernel[:, unit], bias[unit], rate)
        mean = moment(lambda u: u)
        var = moment(np.square) - mean**2
        seen = draws[:, row, unit]
        assert abs(seen.mean() - mean) < 4 * np.sqrt(var / count)
        assert abs(seen.var() - var) < 4 * var * np.sqrt(2 / count)  # of a Gaussian
    # Rows and units are drawn apart.
    flat = (draws - draws.mean(0)).reshape(count, 6) / draws.std(0).reshape(6)
    assert np.abs(flat.T @ flat / count - np.eye(6)).max() < 4 / np.sqrt(count) * 1.5


def test_drop_connect_averages_after_the_activation():
    """The mean of a rectified Gaussian is known; it is not the rectified mean, and near that of all masks."""
    scipy_stats = pytest.importorskip("scipy.stats")
    x, kernel, bias, samples = normal(25, 1, 12), normal(26, 12, 5), normal(27, 5), 50_000
    infer = partial(functional.drop_connect, KEY, x, kernel, bias, 0.5, train=False, activation=jax.nn.relu)
    y = np.asarray(infer(samples=samples))[0]
    v, w = np.append(x[0], 1).astype(np.float64), np.concatenate([kernel, bias[None]]).astype(np.float64)
    mean, std = 0.5 * v @ w, np.sqrt(0.25 * v**2 @ w**2)
    expected = mean * scipy_stats.norm.cdf(mean / std) + std * scipy_stats.norm.pdf(mean / std)
    assert (np.abs(y - expected) < 4 * std / np.sqrt(samples)).all()
    assert np.abs(np.maximum(mean, 0) - expected).max() > 0.1
    relu = partial(np.maximum, 0)
    exact = [enumerated(x[0], kernel[:, unit], bias[unit], 0.5, relu) for unit in range(5)]
    assert_allclose(y, exact, atol=0.05 * std.max())
    assert_allclose(infer(inference="mean")[0], np.maximum(mean, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("inference", ["moments", "mean"])
def test_drop_connect_at_rates_0_and_1(inference, train):
    x, kernel, bias = normal(28, 3, 5), normal(29, 5, 4), normal(30, 4)
    layer = partial(functional.drop_connect, train=train, inference=inference, activation=jnp.cos, samples=3)
    assert_allclose(layer(None, x, kernel, bias, 0), np.cos(x @ kernel + bias), rtol=1e-5, atol=1e-6)
    assert_allclose(layer(KEY, x, kernel, bias, 1), np.ones((3, 4)))

    @jax.jit
    def traced(rate):
        inputs = x, kernel, bias, rate
        gradients = jax.grad(lambda *inputs: layer(KEY, *inputs).sum(), (0, 1, 2, 3))(*inputs)
        return layer(KEY, *inputs), gradients

    y, (by_x, by_kernel, by_bias, by_rate) = traced(0.0)
    slope = -np.sin(x @ kernel + bias)
    assert_allclose(y, np.cos(x @ kernel + bias), rtol=1e-5, atol=1e-6)
    assert_allclose(by_x, slope @ kernel.T, rtol=1e-4, atol=1e-5)
    assert_allclose(by_kernel, x.T @ slope, rtol=1e-4, atol=1e-5)
    assert_allclose(by_bias, slope.sum(0), rtol=1e-4, atol=1e-5)
    assert np.isfinite(by_rate)
    y, gradients = traced(1.0)
    assert_allclose(y, np.ones((3, 4)))
    assert all(np.isfinite(g).all() for g in gradients)
    assert all((np.asarray(g) == 0).all() for g in gradients[:3])


def test_drop_connect_gradient_at_test_is_right_where_a_unit_cannot_vary():
    """An input of zeros has variance 0, where the square root has no slope."""
    x = jnp.zeros((2, 5))
    layer = partial(functional.drop_connect, KEY, kernel=normal(31, 5, 4), bias=None, rate=0.3, train=False, samples=2)
    gradient = jax.grad(lambda x: layer(x).sum())(x)
    assert_allclose(gradient, np.broadcast_to(0.7 * normal(31, 5, 4).sum(1), (2, 5)), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.05), (jnp.float64, 1e-6)])
@pytest.mark.parametrize("train", [True, False])
def test_drop_connect_dtypes(train, dtype, tolerance):
    inputs = normal(32, 3, 5), normal(33, 5, 4), normal(34, 4)
    layer = partial(functional.drop_connect, rate=0.3, train=train, activation=jax.nn.sigmoid, samples=4000)
    expected = layer(KEY, *inputs)
    with jax.enable_x64(True):
        y = layer(KEY, *(jnp.asarray(i, dtype) for i in inputs))
        assert y.dtype == dtype
        # The samples of float64 are others: 4,000 of them, of a standard deviation below a quarter.
        tolerance = max(tolerance, 0 if train else 4 * np.sqrt(2) * 0.25 / np.sqrt(4000))
        assert_allclose(np.asarray(y, np.float64), expected, atol=tolerance)


# Bad input

X = np.ones((2, 4, 3), np.float32)
KERNEL = np.ones((3, 5), np.float32)
TWO = jnp.float32(2)  # an array, and yet known while tracing
connect = functional.drop_connect
BAD = {
    "rate -0.1": lambda: functional.dropout(KEY, X, -0.1, train=True),
    "rate 1.5": lambda: functional.dropout(None, X, 1.5, train=False),
    "rate nan": lambda: functional.dropout(KEY, X, float("nan"), train=True),
    r"rate has shape \(3,\)": lambda: functional.dropout(KEY, X, jnp.ones(3), train=True),
    "rate 2.0": lambda: functional.dropout(KEY, X, TWO, train=True),
    "scaling 'invertd' is unknown; did you mean 'inverted'": lambda: functional.dropout(
        KEY, X, 0.5, train=True, scaling="invertd"
    ),
    "dropout: x has dtype int32": lambda: functional.dropout(KEY, jnp.arange(3), 0.5, train=True),
    "dropout: key None": lambda: functional.dropout(None, X, 0.5, train=True),
    "spatial_dropout: rate 7": lambda: functional.spatial_dropout(KEY, X, 7, train=True),
    r"x of shape \(2, 3\)": lambda: functional.spatial_dropout(KEY, X[:, 0], 0.5, train=True),
    "spatial=3": lambda: functional.spatial_dropout(KEY, X, 0.5, train=True, spatial=3),
    "spatial=None": lambda: functional.spatial_dropout(KEY, jnp.ones((1,) * 6), 0.5, train=True),
    "alpha_dropout: rate -1": lambda: functional.alpha_dropout(KEY, X, -1, train=True),
    "alpha_dropout: key None": lambda: functional.alpha_dropout(None, X, 0.1, train=True),
    "drop_path: survival 1.1": lambda: functional.drop_path(KEY, X, 1.1, train=True),
    "drop_path: survival -0.1": lambda: functional.drop_path(None, X, -0.1, train=False),
    "per 'image' is unknown; choose from batch, example": lambda: functional.drop_path(
        KEY, X, 0.5, train=True, per="image"
    ),
    "drop_path: branch of shape": lambda: functional.drop_path(KEY, jnp.ones(()), 0.5, train=True),
    "drop_path: branch has dtype": lambda: functional.drop_path(KEY, jnp.arange(3), 0.5, train=True),
    "last 2": lambda: functional.linear_survival(1, 3, 2),
    "unit 4 of 3": lambda: functional.linear_survival(4, 3),
    "unit 1 of 0": lambda: functional.linear_survival(1, 0),
    "forward 'keep'": lambda: functional.shake_shake(KEY, X, X, train=True, forward="keep"),
    "backward 'shak'": lambda: functional.shake_shake(KEY, X, X, train=True, backward="shak"),
    "per 'example' is unknown": lambda: functional.shake_shake(KEY, X, X, train=True, per="example"),
    "must have one shape and dtype": lambda: functional.shake_shake(KEY, X, X[:1], train=True),
    "shake_shake: a has dtype int32": lambda: functional.shake_shake(KEY, *[jnp.arange(3)] * 2, train=True),
    "shake_shake: key None": lambda: functional.shake_shake(None, X, X, train=True),
    "drop_connect: rate 3": lambda: connect(KEY, X, KERNEL, None, 3, train=True),
    r"kernel has shape \(3,\)": lambda: connect(KEY, X, KERNEL[:, 0], None, 0.5, train=True),
    r"kernel has shape \(2, 5\)": lambda: connect(KEY, X, KERNEL[:2], None, 0.5, train=True),
    r"bias has shape \(3,\)": lambda: connect(KEY, X, KERNEL, np.ones(3, np.float32), 0.5, train=True),
    "inference 'means'.*did you mean 'mean'": lambda: connect(
        KEY, X, KERNEL, None, 0.5, train=False, inference="means"
    ),
    "samples 0": lambda: connect(KEY, X, KERNEL, None, 0.5, train=False, samples=0),
    "drop_connect: key None": lambda: connect(None, X, KERNEL, None, 0.5, train=False),
    "DropPath: survival None": lambda: layers.DropPath().apply({}, X, train=False),
    "dropout: rate -0.5": lambda: layers.Dropout(-0.5).apply({}, X, train=True),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_while_tracing(message):
    with pytest.raises(InputError, match=message) as error:
        jax.eval_shape(BAD[message])
    assert "\n" not in str(error.value)


# Modules

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
    inputs = [normal(40 + i, 6, 4, 3) for i in range(arity)]
    options = () if name == "ShakeShake" else (0.5,)
    key = KeyOfStream().apply({}, rngs={"dropout": KEY})
    y = module.apply({}, *inputs, train=True, rngs={"dropout": KEY})
    assert_array_equal(y, function(key, *inputs, *options, train=True))
    assert_array_equal(module.apply({}, *inputs, train=False), function(None, *inputs, *options, train=False))
    assert module.init(KEY, *inputs, train=True) == {}
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        module.apply({}, *inputs, train=True)


def test_modules_need_no_key_where_nothing_is_drawn():
    x = normal(42, 6, 4, 3)
    for module in (layers.Dropout(0), layers.SpatialDropout(0.0), layers.AlphaDropout(0), layers.DropPath(1)):
        assert_array_equal(module.apply({}, x, train=True), x)
    even = layers.ShakeShake(forward="even", backward="even")
    assert_allclose(even.apply({}, x, 3 * x, train=True), 2 * x, rtol=1e-6)
    for options in ({"rate": 0}, {"inference": "mean"}):
        layer = layers.DropConnectDense(2, **options)
        variables = layer.init(KEY, x, train=False)
        layer.apply(variables, x, train=options == {"rate": 0})


def test_a_module_takes_a_rate_that_is_traced():
    @jax.jit
    def run(rate):
        return layers.Dropout(rate).apply({}, jnp.ones((50, 40)), train=True, rngs={"dropout": KEY})

    assert_array_equal(run(0.0), np.ones((50, 40)))
    assert_array_equal(run(0.5), layers.Dropout(0.5).apply({}, jnp.ones((50, 40)), train=True, rngs={"dropout": KEY}))


def test_module_options_reach_their_functions():
    x = normal(43, 6, 2, 2, 3)
    run = {"train": True, "rngs": {"dropout": KEY}}
    for module in (
        layers.Dropout(0.25, "original"),
        layers.SpatialDropout(0.25, "original"),
        layers.DropPath(0.75, "original"),
    ):
        y = np.asarray(module.apply({}, x, **run))
        assert_array_equal(y, np.where(y == 0, 0, x))
        assert_allclose(module.apply({}, x, train=False), 0.75 * x, rtol=1e-6)
    maps = np.asarray(layers.SpatialDropout(0.5, spatial=1).apply({}, x, **run)) != 0
    assert not (maps == maps[:, :1]).all()
    kept = np.asarray(layers.DropPath(0.5, per="batch").apply({}, x, **run)) != 0
    assert kept.all() or not kept.any()
    keep = layers.ShakeShake(backward="keep", per="batch")
    y, vjp = jax.vjp(lambda a: keep.apply({}, a, jnp.zeros_like(a), **run), jnp.ones((6, 2)))
    assert_array_equal(y, vjp(jnp.ones((6, 2)))[0])
    assert len(np.unique(y)) == 1


def dense(**options):
    layer = layers.DropConnectDense(4, samples=20, **options)
    x = normal(44, 5, 3)
    variables = layer.init(KEY, x, train=True)
    variables["params"]["bias"] += 0.1
    return layer, variables, x


def test_drop_connect_dense_is_its_function():
    layer, variables, x = dense(rate=0.3, activation=jnp.tanh)
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    assert kernel.shape == (3, 4)
    key = KeyOfStream().apply({}, rngs={"dropout": KEY})
    for train in (True, False):
        y = layer.apply(variables, x, train=train, rngs={"dropout": KEY})
        expected = functional.drop_connect(
            key, x, kernel, bias, 0.3, train=train, activation=jnp.tanh, inference="moments", samples=20
        )
        assert_array_equal(y, expected)
    mean = dense(rate=0.3, activation=None, inference="mean", dtype=jnp.bfloat16)[0].apply(variables, x, train=False)
    assert mean.dtype == jnp.bfloat16
    assert_allclose(np.asarray(mean, np.float32), 0.7 * (x @ kernel + bias), atol=0.03)
    assert set(layers.DropConnectDense(4, use_bias=False).init(KEY, x, train=True)["params"]) == {"kernel"}


def test_drop_connect_dense_predicts_without_a_key_by_the_example_alone():
    """Neither the run, nor the place in the batch, nor the rest of it matters. The seed does, and the layer's name."""
    layer, variables, x = dense()
    y = layer.apply(variables, x, train=False)
    assert_array_equal(y, layer.apply(variables, x, train=False))
    assert_allclose(layer.apply(variables, x[::-1], train=False)[::-1], y, rtol=1e-6)
    assert_allclose(layer.apply(variables, x[2], train=False), y[2], rtol=1e-6)
    assert_allclose(layer.apply(variables, x.reshape(5, 1, 3), train=False)[:, 0], y, rtol=1e-6)
    assert np.abs(dense(seed=1)[0].apply(variables, x, train=False) - y).max() > 1e-3
    assert np.abs(layer.apply(variables, x, train=False, rngs={"dropout": KEY}) - y).max() > 1e-3

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return [
                layers.DropConnectDense(4, samples=20, kernel_init=nn.initializers.ones)(x, train=train) for _ in "ab"
            ]

    a, b = Two().init_with_output(KEY, x, train=False)[0]
    assert np.abs(a - b).max() > 1e-3


def test_drop_connect_dense_approaches_the_average_of_its_masks():
    """What the layer predicts without a key is near the mean of many training passes."""
    layer, variables, x = dense()
    layer = layer.copy(samples=5000)
    draw = jax.jit(lambda key: layer.apply(variables, x, train=True, rngs={"dropout": key}))
    passes = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 5000)), np.float64)
    y = layer.apply(variables, x, train=False)
    # A sum of four terms is no Gaussian yet, but nearer to one than to its mean.
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    plain = np.maximum(0.5 * (x @ kernel + bias), 0)
    assert np.abs(y - passes.mean(0)).mean() < 0.5 * np.abs(plain - passes.mean(0)).mean()


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

    x = normal(45, 5, 3)
    variables = Net().init(KEY, x, train=True)
    assert Net().apply(variables, x, train=False).shape == (5, 3)

    def loss(variables):
        return Net().apply(variables, x, train=True, rngs={"dropout": KEY}).sum()

    gradients = jax.jit(jax.grad(loss))(variables)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
