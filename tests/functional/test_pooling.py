"""Pooling against PyTorch over sizes, windows, strides and paddings, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.functional import adaptive_avg_pool, avg_pool, global_avg_pool, max_pool

EXAMPLES = settings(deadline=None, max_examples=40, derandomize=True)


def draw_windows(data):
    """x [batch, *spatial, features] and what PyTorch allows: padding of half a window at most, a window that fits."""

    def draw(low, high):
        return data.draw(st.integers(low, high))

    axes = draw(1, 2)
    window = tuple(draw(1, 5) for _ in range(axes))
    padding = tuple(draw(0, w // 2) for w in window)
    stride = data.draw(st.none() | st.tuples(*[st.integers(1, 6)] * axes))
    ceil = data.draw(st.booleans())
    short = [s - 1 if ceil else 0 for s in stride or window]  # by so much, a window may be larger than the input
    least = [max(w - 2 * p - m, 1) for w, p, m in zip(window, padding, short, strict=True)]
    size = tuple(n + draw(0, 8) for n in least)
    x = np.random.default_rng(draw(0, 9)).standard_normal((2, *size, 3)).astype(np.float32)
    return x, window, {"stride": stride, "padding": padding, "ceil": ceil}


def compare(name, x, window, options, **renamed):
    """Ours, `name`, against PyTorch's function of that name: output, and gradient of its weighted sum."""
    torch = pytest.importorskip("torch")
    axes = x.ndim - 2
    tx = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    theirs = {"stride": options["stride"], "padding": options["padding"], "ceil_mode": options["ceil"], **renamed}
    ty = getattr(torch.nn.functional, f"{name}{axes}d")(tx, window, **theirs)
    function = {"max_pool": max_pool, "avg_pool": avg_pool}[name]
    y, transpose = jax.vjp(lambda x: function(x, window, **options), x)
    assert y.shape == (x.shape[0], *ty.shape[2:], x.shape[-1])
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    ty.backward(torch.tensor(np.moveaxis(dy, -1, 1).copy()))
    assert_allclose(np.moveaxis(y, -1, 1), ty.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert_allclose(np.moveaxis(transpose(jnp.asarray(dy))[0], -1, 1), tx.grad.numpy(), rtol=1e-5, atol=1e-5)


@EXAMPLES
@given(st.data())
def test_max_pool_is_torchs(data):
    compare("max_pool", *draw_windows(data))


@EXAMPLES
@given(st.data())
def test_avg_pool_is_torchs(data):
    x, window, options = draw_windows(data)
    count = data.draw(st.booleans())
    compare("avg_pool", x, window, options | {"count_padding": count}, count_include_pad=count)


@pytest.mark.parametrize("size", range(3, 10))
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 2, 0), (2, 2, 1), (3, 5, 1)]
)
def test_pools_of_the_networks_are_torchs(size, window, stride, padding):
    x = np.random.default_rng(0).standard_normal((1, size, size + 1, 2)).astype(np.float32)
    for ceil in (False, True):
        options = {"stride": stride, "padding": padding, "ceil": ceil}
        compare("max_pool", x, window, options)
        for count in (False, True):
            compare("avg_pool", x, window, options | {"count_padding": count}, count_include_pad=count)


@EXAMPLES
@given(st.data())
def test_adaptive_avg_pool_is_torchs(data):
    torch = pytest.importorskip("torch")
    axes = data.draw(st.integers(1, 2))
    spatial, size = (tuple(data.draw(st.integers(1, 13)) for _ in range(axes)) for _ in range(2))
    x = np.random.default_rng(0).standard_normal((2, *spatial, 3)).astype(np.float32)
    tx = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    ty = getattr(torch.nn.functional, f"adaptive_avg_pool{axes}d")(tx, size)
    y, transpose = jax.vjp(lambda x: adaptive_avg_pool(x, size), x)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    ty.backward(torch.tensor(np.moveaxis(dy, -1, 1).copy()))
    assert_allclose(np.moveaxis(y, -1, 1), ty.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert_allclose(np.moveaxis(transpose(jnp.asarray(dy))[0], -1, 1), tx.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_pools_in_three_dimensions_are_torchs():
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 7, 2)).astype(np.float32)
    for ceil in (False, True):
        options = {"stride": (2, 3, 2), "padding": (1, 0, 1), "ceil": ceil}
        compare("max_pool", x, (3, 2, 2), options)
        for count in (False, True):
            compare("avg_pool", x, (3, 2, 2), options | {"count_padding": count}, count_include_pad=count)
    torch = pytest.importorskip("torch")
    expected = torch.nn.functional.adaptive_avg_pool3d(torch.tensor(np.moveaxis(x, -1, 1).copy()), (2, 4, 3))
    assert_allclose(np.moveaxis(adaptive_avg_pool(x, (2, 4, 3)), -1, 1), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_grid_of_one_is_the_mean_of_all_pixels():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 7, 3)).astype(np.float32))
    assert_allclose(adaptive_avg_pool(x, 1)[:, 0, 0], global_avg_pool(x), rtol=1e-5, atol=1e-6)
    assert_allclose(global_avg_pool(x), np.mean(np.asarray(x, np.float64), (1, 2)), rtol=1e-5, atol=1e-6)


def test_padding_never_wins():
    x = jnp.full((1, 4, 4, 1), -5)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int32):
        y = max_pool(x.astype(dtype), 3, stride=2, padding=1, ceil=True)
        assert y.dtype == dtype
        assert (y == -5).all()


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_pools_keep_the_dtype(dtype, count, ceil):
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6, 3)), dtype)
        y = avg_pool(x, 3, stride=2, padding=1, ceil=ceil, count_padding=count)
        assert y.dtype == adaptive_avg_pool(x, 4).dtype == max_pool(x, 2, ceil=ceil).dtype == dtype


def test_means_of_bfloat16_round_once():
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (1, 40, 40, 1)), jnp.bfloat16)
    exact = np.asarray(x, np.float64).mean()
    options = {"stride": 40, "padding": 0, "count_padding": False}
    for y in (avg_pool(x, 40), avg_pool(x, 40, **options), adaptive_avg_pool(x, 1), global_avg_pool(x)):
        assert y.dtype == jnp.bfloat16
        assert abs(float(y.ravel()[0]) - exact) < 2**-8  # half a unit in the last place


def test_float64_pools_are_float64():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((1, 7, 1))
        expected = [np.mean(x[0, i * 7 // 3 : -(-(i + 1) * 7 // 3)]) for i in range(3)]
        assert_allclose(adaptive_avg_pool(jnp.asarray(x), 3).ravel(), expected, rtol=1e-14)
        y = avg_pool(jnp.asarray(x), 3, stride=3, padding=1, count_padding=False)
        assert_allclose(y.ravel(), [x[0, :2].mean(), x[0, 2:5].mean(), x[0, 5:].mean()], rtol=1e-14)


X = (2, 6, 6, 3)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize(
    ("window", "options", "message"),
    [
        (7, {}, "window 7"),
        ((2, 7), {}, "window 7"),
        (8, {"stride": 2, "ceil": True}, "window 8"),
        (0, {}, "window 0"),
        (2, {"stride": 0}, "stride 0"),
        (3, {"padding": 2}, "padding 2"),
        (3, {"padding": -1}, "padding -1"),
        ((2, 2, 2), {}, "window .* must have 2 entries"),
        (2, {"stride": (1,)}, "stride .* must have 2 entries"),
        (2, {"padding": (1, 1, 1)}, "padding .* must have 2 entries"),
    ],
)
def test_pool_errors(pool, window, options, message):
    with pytest.raises(InputError, match=message) as error:
        pool(np.zeros(X, np.float32), window, **options)
    assert "\n" not in str(error.value)
    assert pool.__name__ in str(error.value)


@pytest.mark.parametrize("size", [0, -1, (2, 0), (2,), (2, 2, 2)])
def test_adaptive_avg_pool_errors(size):
    with pytest.raises(InputError, match="size"):
        adaptive_avg_pool(np.zeros(X, np.float32), size)
