"""Dropout, spatial and alpha dropout: masks at four sigma, values and gradients against PyTorch and float64 NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from deepjax import functional
from deepjax.errors import InputError
from helpers import check_bernoulli, random_arrays

KEY = jax.random.key(7)


@pytest.fixture
def with_mask(monkeypatch):
    """Lets a test say which mask is drawn."""

    def use(mask):
        monkeypatch.setattr(jax.random, "bernoulli", lambda key, keep, shape: jnp.asarray(mask).reshape(shape))

    return use


def known_at_trace(function, **options):
    """The function under jit, its options known while tracing."""
    return jax.jit(partial(function, **options))


# Dropout


def test_dropout_drops_entries_independently_at_the_rate():
    rates, x = (0.1, 0.5, 0.85), np.ones((600, 500), np.float32)
    drop = jax.jit(lambda key: [functional.dropout(key, x, rate, train=True) for rate in rates])
    for rate, y in zip(rates, drop(KEY), strict=True):
        y = np.asarray(y)
        check_bernoulli(y != 0, 1 - rate)
        assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("scaling", ["inverted", "original"])
def test_dropout_scales_what_it_keeps(scaling):
    xs = [x + 5 for x in random_arrays(0, (5,), (2, 3, 4, 5, 2))] + [np.float32(5)]
    train, test = (
        jax.jit(lambda key, t=t: [functional.dropout(key, x, 0.3, train=t, scaling=scaling) for x in xs])
        for t in (True, False)
    )
    factor = 0.7 if scaling == "inverted" else 1
    for x, y, expected in zip(xs, train(KEY), test(None), strict=True):
        assert y.shape == x.shape
        assert_allclose(y, np.where(np.asarray(y) == 0, 0, x / factor), rtol=1e-6)
        assert_allclose(expected, x if scaling == "inverted" else 0.7 * x, rtol=1e-6)


@pytest.mark.parametrize("scaling", ["inverted", "original"])
def test_dropout_in_training_is_on_average_what_it_is_at_test(scaling):
    (x,), count = random_arrays(1, (6,)), 4000
    draw = partial(functional.dropout, x=x, rate=0.3, scaling=scaling)
    drawn, test = jax.jit(lambda keys: (jax.vmap(partial(draw, train=True))(keys), draw(None, train=False)))(
        jax.random.split(KEY, count)
    )
    sigma = np.abs(x) * np.sqrt(0.3 * 0.7 / count) / (0.7 if scaling == "inverted" else 1)
    assert (np.abs(np.asarray(drawn).mean(0) - test) < 4 * sigma).all()


def test_a_key_gives_one_mask_in_every_dtype_and_under_every_transformation():
    x, drop = np.ones((40, 30), np.float32), partial(functional.dropout, rate=0.3, train=True)
    keys = jax.random.split(KEY, 3)

    @jax.jit
    def run(keys):
        together, alone = jax.vmap(drop, (0, None))(keys, x), [drop(key, x) for key in keys]
        return together, alone, drop(KEY, x), drop(KEY, x.astype(jnp.bfloat16)), drop(jax.random.key(8), x)

    together, alone, once, half, other = jax.tree.map(np.asarray, run(keys))
    kept = np.asarray(drop(KEY, x)) != 0  # outside of jit
    assert_array_equal(once != 0, kept)
    assert_array_equal(half != 0, kept)
    assert (other != 0).mean() != kept.mean()
    assert_array_equal(together, alone)
    assert not (together[0] == together[1]).all()
    with jax.enable_x64(True):
        y = np.asarray(jax.jit(drop)(KEY, x.astype(np.float64)))
    assert_array_equal(y != 0, kept)
    assert_allclose(y[kept], 1 / 0.7, rtol=1e-15)


@pytest.mark.parametrize("scaling", ["inverted", "original"])
def test_gradient_of_dropout_is_its_mask(scaling):
    x, weight = random_arrays(2, (8, 9), (8, 9))
    drop = partial(functional.dropout, KEY, rate=0.4, train=True, scaling=scaling)
    y, gradient = jax.jit(lambda x: (drop(jnp.ones((8, 9))), jax.grad(lambda x: (weight * drop(x)).sum())(x)))(x)
    kept = np.asarray(y) != 0
    assert_allclose(gradient, weight * kept / (0.6 if scaling == "inverted" else 1), rtol=1e-6)


# name -> f(key, x, rate) on x [4, 5, 3]. `rate` is always the probability to drop.
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
    drop, (x,) = DROPPERS[name], random_arrays(4, (4, 5, 3))
    assert_array_equal(drop(None, x, 0), x)
    assert_array_equal(drop(None, x, 0.0), x)
    zeros = np.zeros_like(x)

    # A traced rate: values, and gradients with respect to x and to the rate itself. Then rates known while tracing.
    @jax.jit
    def run(x, rate):
        y, gradients = drop(KEY, x, rate), jax.grad(lambda x, rate: drop(KEY, x, rate).sum(), (0, 1))(x, rate)
        return y, *gradients, drop(KEY, x, 0.4), drop(KEY, x, 1)

    y, by_x, by_rate, at_04, at_1 = run(x, 0.0)
    assert_allclose(y, x, rtol=1e-6)
    assert_allclose(by_x, np.ones_like(x), rtol=1e-6)
    assert np.isfinite(by_rate)
    assert_array_equal(at_1, zeros)
    y, by_x, by_rate, *_ = run(x, 1.0)
    assert_array_equal(y, zeros)
    assert_array_equal(by_x, zeros)
    assert np.isfinite(by_rate)
    assert_allclose(run(x, 0.4)[0], at_04, rtol=1e-5)


def test_rates_of_a_scan_may_differ():
    (x,) = random_arrays(5, (50, 40))
    keys = jax.random.split(KEY, 3)

    def unit(x, key_and_rate):
        y = functional.dropout(key_and_rate[0], x, key_and_rate[1], train=True)
        return y, (y != 0).mean()

    shares = np.asarray(jax.jit(lambda keys: jax.lax.scan(unit, x, (keys, np.float32([0, 0.5, 1])))[1])(keys))
    assert shares[0] == 1
    assert abs(shares[1] - 0.5) < 4 * np.sqrt(0.25 / x.size)
    assert shares[2] == 0


@pytest.mark.parametrize("name", DROPPERS)
def test_dtypes_are_kept(name):
    dtypes = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
    with jax.enable_x64(True):
        xs = [random_arrays(6, (4, 5, 3))[0].astype(dtype) for dtype in dtypes]

        @jax.jit
        def run(xs):
            return [(DROPPERS[name](KEY, x, 0.1), DROPPERS[name](KEY, x.astype(jnp.float64), 0.1)) for x in xs]

        for dtype, (y, wide) in zip(dtypes, run(xs), strict=True):
            assert y.dtype == dtype
            # Scaled in at least float32: only the result is rounded. In bfloat16, 1 - 0.1 alone is off by 2e-3.
            scale = np.abs(np.float64(xs[2])).max() * 1.5
            assert_allclose(np.float64(y), np.asarray(wide), rtol=float(jnp.finfo(dtype).eps), atol=scale * 1e-7)


def test_a_dropped_entry_hides_infinity():
    y = known_at_trace(functional.dropout, rate=0.5, train=True)(KEY, np.full(100, np.inf, np.float32))
    assert set(y.tolist()) == {0.0, np.inf}


# Spatial dropout


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_spatial_dropout_drops_whole_maps(axes):
    (x,) = random_arrays(7, (40, *(3, 2, 2)[:axes], 50))
    original = known_at_trace(functional.spatial_dropout, rate=0.3, train=False, scaling="original")(None, x)
    y = np.asarray(known_at_trace(functional.spatial_dropout, rate=0.3, train=True)(KEY, x))
    maps = (y != 0).reshape(40, -1, 50)
    assert (maps == maps[:, :1]).all()
    check_bernoulli(maps[:, 0], 0.7)
    assert_allclose(y, np.where(y == 0, 0, x / 0.7), rtol=1e-6)
    assert_allclose(original, 0.7 * x, rtol=1e-6)


def test_spatial_dropout_of_any_leading_axes():
    drop = known_at_trace(functional.spatial_dropout, rate=0.5, train=True, spatial=2)
    kept = np.asarray(drop(KEY, np.ones((3, 4, 5, 6, 7), np.float32))) != 0
    assert (kept == kept[:, :, :1, :1]).all()
    assert not (kept == kept[:, :1]).all()
    assert jax.eval_shape(drop, KEY, np.ones((5, 6, 7), np.float32)).shape == (5, 6, 7)


# Alpha dropout


def test_alpha_dropout_keeps_mean_0_and_variance_1():
    rates = (0.05, 0.2, 0.5, 0.9)
    x = np.random.default_rng(8).standard_normal(400_000)
    with jax.enable_x64(True):
        drop = jax.jit(lambda x: [functional.alpha_dropout(KEY, x, rate, train=True) for rate in rates])
        ys = [np.asarray(y) for y in drop(x)]
    for y in ys:
        assert abs(y.mean()) < 4 / np.sqrt(y.size)
        assert abs((y**2).mean() - 1) < 4 * (y**2).std() / np.sqrt(y.size)
    assert functional.alpha_dropout(None, x, 0.2, train=False) is x


def test_a_selu_network_stays_normalized_under_alpha_dropout():
    """Self-normalization: after ten layers, mean 0 and variance 1 as without dropout. Plain dropout loses them."""
    (x,) = random_arrays(9, (200, 300))

    def network(drop):
        def layer(x, key):
            kernel = jax.random.normal(jax.random.fold_in(key, 0), (300, 300)) / np.sqrt(300)
            return drop(jax.random.fold_in(key, 1), jax.nn.selu(x @ kernel)), None

        return jax.jit(lambda keys: jax.lax.scan(layer, x, keys)[0])(jax.random.split(KEY, 10))

    y = np.asarray(network(partial(functional.alpha_dropout, rate=0.1, train=True)))
    assert abs(y.mean()) < 0.1
    assert 0.85 < y.var() < 1.15
    plain = np.asarray(network(partial(functional.dropout, rate=0.1, train=True)))
    assert plain.var() > 1.3


# PyTorch, given its own masks


@pytest.mark.parametrize(("dtype", "rate"), [(np.float32, 0.2), (np.float64, 0.5)])
@pytest.mark.parametrize(
    ("name", "axes"),
    [("Dropout", 2), ("AlphaDropout", 2), ("Dropout1d", 1), ("Dropout2d", 2), ("Dropout3d", 3)],
)
def test_equals_pytorch_given_its_mask(with_mask, name, axes, dtype, rate):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    shape = (3, *(4, 5, 2)[:axes], 6)
    x, weight = (a.astype(dtype) for a in random_arrays(10, shape, shape))
    x_torch = torch.tensor(np.moveaxis(x + 3, -1, 1).copy(), requires_grad=True)
    y_torch = getattr(torch.nn, name)(rate).train()(x_torch)
    (y_torch * torch.tensor(np.moveaxis(weight, -1, 1).copy())).sum().backward()
    gradient = np.moveaxis(x_torch.grad.numpy(), 1, -1)
    kept = gradient != 0
    assert 0 < kept.mean() < 1
    with_mask(kept if axes == 2 and name[-1] != "d" else kept.reshape(3, -1, 6)[:, 0])
    function = {"Dropout": functional.dropout, "AlphaDropout": functional.alpha_dropout}
    drop = partial(function.get(name, functional.spatial_dropout), KEY, rate=rate, train=True)
    with jax.enable_x64(True):
        y, ours = jax.jit(lambda x: (drop(x), jax.grad(lambda x: (weight * drop(x)).sum())(x)))(x + 3)
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    assert_allclose(y, np.moveaxis(y_torch.detach().numpy(), 1, -1), rtol=tolerance)
    assert_allclose(ours, gradient, rtol=tolerance)


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["dropout", "alpha_dropout"])
def test_equals_pytorch_where_nothing_is_random(name, train, rate):
    torch = pytest.importorskip("torch")
    (x,) = random_arrays(12, (3, 4))
    expected = getattr(torch.nn.functional, name)(torch.tensor(x), rate, train)
    assert_array_equal(getattr(functional, name)(KEY, x, rate, train=train), expected.numpy())


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
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_while_tracing(message):
    with pytest.raises(InputError, match=message) as error:
        jax.eval_shape(BAD[message])
    assert "\n" not in str(error.value)
