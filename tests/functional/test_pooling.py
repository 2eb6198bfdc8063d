"""Pooling against PyTorch over sizes, windows, strides and paddings, in values and gradients.

Compilation takes most of the time, so one program holds all cases of a test.
"""

import functools
import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose

from deepjax.errors import InputError
from deepjax.functional import adaptive_avg_pool, avg_pool, global_avg_pool, max_pool
from deepjax.functional.windows import MAX_TAPS
from helpers import random_arrays


def channels_first(array):
    return np.moveaxis(np.asarray(array), -1, 1).copy()


def assert_are_torchs(name, cases):
    """Values and gradients of the function `name` of PyTorch. `cases`: (x's pixels, ours, PyTorch's arguments) each."""
    torch = pytest.importorskip("torch")
    xs, dys, expected = [], [], []
    for seed, (size, _, arguments) in enumerate(cases):
        (x,) = random_arrays(seed, (2, *size, 3))
        tx = torch.tensor(channels_first(x - 3), requires_grad=True)  # below zero, where padding with zeros would win
        ty = getattr(torch.nn.functional, f"{name}{len(size)}d")(tx, **arguments)
        (dy,) = random_arrays(seed, (2, *ty.shape[2:], 3))
        ty.backward(torch.tensor(channels_first(dy)))
        xs.append(x - 3), dys.append(dy), expected.append((ty.detach().numpy(), tx.grad.numpy()))

    @jax.jit
    def run(xs, dys):
        results = []
        for x, dy, (_, ours, arguments) in zip(xs, dys, cases, strict=True):
            y, transpose = jax.vjp(ours, x)
            assert y.shape == dy.shape, arguments
            results.append((y, transpose(dy)[0]))
        return results

    for (_, _, arguments), ours, theirs in zip(cases, run(xs, dys), expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_allclose(channels_first(a), b, rtol=1e-5, atol=1e-5, err_msg=f"{name} {arguments}")


def random_windows(rng):
    """Pixels, window, stride and padding that PyTorch allows: at most half a window of padding, a window that fits."""
    axes = int(rng.integers(1, 3))
    window = tuple(int(n) for n in rng.integers(1, 6, axes))
    stride = tuple(int(n) for n in rng.integers(1, 7, axes)) if rng.random() < 0.7 else None
    padding = tuple(int(rng.integers(0, w // 2 + 1)) for w in window)
    ceil = bool(rng.random() < 0.5)
    short = [s - 1 if ceil else 0 for s in stride or window]  # by so much, a window may be larger than the input
    least = [max(w - 2 * p - m, 1) for w, p, m in zip(window, padding, short, strict=True)]
    return tuple(int(n + rng.integers(0, 9)) for n in least), window, stride, padding, ceil


# Pixels, window, stride, padding, ceil. The networks' own, with both remainders, then others.
WINDOWS = [
    ((6, 7), 3, 2, 0, False), ((7, 8), 3, 2, 0, True), ((6, 7), 3, 2, 1, False), ((3, 4), 3, 2, 1, True),
    ((5, 4), 3, 1, 1, False), ((5, 4), 3, 1, 1, True), ((4, 7), 2, 2, 0, False), ((5, 8), 2, 2, 0, True),
    ((3, 6), 2, 2, 1, True), ((9, 8), 3, 5, 1, True), ((6, 7), 3, 5, 1, True), ((9, 8), 5, 3, 2, False),
    ((7, 8), (3, 2), (1, 3), (0, 1), False), ((5, 6, 7), (3, 2, 2), (2, 3, 2), (1, 0, 1), True),
    ((4, 5, 6), (2, 3, 3), (2, 1, 2), (1, 0, 1), False),
]  # fmt: skip


def windows():
    rng = np.random.default_rng(0)
    return [*WINDOWS, *(random_windows(rng) for _ in range(6))]


def test_max_pool_is_torchs():
    cases = []
    for size, window, stride, padding, ceil in windows():
        ours = partial(max_pool, window=window, stride=stride, padding=padding, ceil=ceil)
        theirs = {"kernel_size": window, "stride": stride, "padding": padding, "ceil_mode": ceil}
        cases.append((size, ours, theirs))
    assert_are_torchs("max_pool", cases)


@pytest.mark.parametrize("count", [False, True])
def test_avg_pool_is_torchs(count):
    cases = []
    for size, window, stride, padding, ceil in windows():
        ours = partial(avg_pool, window=window, stride=stride, padding=padding, ceil=ceil, count_padding=count)
        theirs = {"kernel_size": window, "stride": stride, "padding": padding, "ceil_mode": ceil}
        cases.append((size, ours, theirs | {"count_include_pad": count}))
    assert_are_torchs("avg_pool", cases)


def test_adaptive_avg_pool_is_torchs():
    sizes = [((7,), 3), ((5,), 9), ((4, 6), 1), ((13, 5), (7, 5)), ((3, 11), (5, 4)), ((8, 1), (2, 3))]
    sizes += [((12, 10), (12, 7)), ((5, 6, 7), (2, 4, 3))]
    cases = [(pixels, partial(adaptive_avg_pool, size=size), {"output_size": size}) for pixels, size in sizes]
    assert_are_torchs("adaptive_avg_pool", cases)


def test_the_global_mean_and_the_grid_of_one_are_the_mean_of_all_pixels():
    xs = random_arrays(0, (2, 3), (2, 5, 3), (2, 5, 7, 3), (2, 2, 5, 6, 3))
    means, grids = jax.jit(lambda xs: ([global_avg_pool(x) for x in xs], [adaptive_avg_pool(x, 1) for x in xs[1:]]))(xs)
    for x, mean, grid in zip(xs, means, [xs[0], *grids], strict=True):
        expected = np.mean(np.float64(x.reshape(2, -1, 3)), 1)
        assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
        assert_allclose(np.reshape(np.asarray(grid), (2, 3)), expected, rtol=1e-5, atol=1e-6)


def test_padding_never_wins():
    dtypes = (jnp.float32, jnp.bfloat16, jnp.int32)
    x = np.full((1, 4, 4, 1), -5)
    pool = partial(max_pool, window=3, stride=2, padding=1, ceil=True)
    for dtype, y in zip(dtypes, jax.jit(lambda xs: [pool(x) for x in xs])([x.astype(d) for d in dtypes]), strict=True):
        assert y.dtype == dtype
        assert (np.float32(y) == -5).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_pools_keep_the_dtype(dtype):
    with jax.enable_x64(dtype == jnp.float64):

        def pools(x):
            averages = [
                avg_pool(x, 3, stride=2, padding=1, ceil=ceil, count_padding=count)
                for ceil in (False, True)
                for count in (False, True)
            ]
            return *averages, adaptive_avg_pool(x, 4), global_avg_pool(x), max_pool(x, 2), max_pool(x, 2, ceil=True)

        assert {y.dtype for y in jax.eval_shape(pools, jax.ShapeDtypeStruct((2, 6, 6, 3), dtype))} == {jnp.dtype(dtype)}


def test_means_of_bfloat16_round_once():
    x = np.random.default_rng(0).uniform(1, 2, (1, 40, 40, 1)).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64).mean()
    options = {"stride": 40, "padding": 0, "count_padding": False}

    @jax.jit
    def means(x):
        return avg_pool(x, 40), avg_pool(x, 40, **options), adaptive_avg_pool(x, 1), global_avg_pool(x)

    for y in means(x):
        assert y.dtype == jnp.bfloat16
        assert abs(float(np.float64(y).ravel()[0]) - exact) < 2**-8  # half a unit in the last place


def test_float64_pools_are_float64():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((1, 7, 1))
        pools = jax.jit(lambda x: (adaptive_avg_pool(x, 3), avg_pool(x, 3, stride=3, padding=1, count_padding=False)))
        pools = [np.asarray(y) for y in pools(x)]
    expected = [np.mean(x[0, i * 7 // 3 : -(-(i + 1) * 7 // 3)]) for i in range(3)]
    assert_allclose(np.ravel(pools[0]), expected, rtol=1e-14)
    assert_allclose(np.ravel(pools[1]), [x[0, :2].mean(), x[0, 2:5].mean(), x[0, 5:].mean()], rtol=1e-14)


def test_pools_of_integers():
    """The largest integer is one, the mean is a float32."""
    x = np.arange(16, dtype=np.int32).reshape(1, 4, 4, 1) - 100
    largest, mean = jax.jit(lambda x: (max_pool(x, 3, padding=1, stride=2), avg_pool(x, 2)))(x)
    assert (largest.dtype, mean.dtype) == (jnp.int32, jnp.float32)
    assert np.ravel(largest).tolist() == [-95, -93, -87, -85]
    assert np.ravel(mean).tolist() == [-97.5, -95.5, -89.5, -87.5]


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


# Derivatives


def test_of_equal_values_the_first_gets_the_gradient():
    """As in PyTorch; XLA's own gradient of a maximum does the same."""
    x = jnp.asarray([[3.0, 3.0, 1.0, 2.0], [3.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])[None, :, :, None]
    dx = jax.grad(lambda x: max_pool(x, 2, ceil=True).sum())(x)[0, :, :, 0]
    assert dx.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]


@pytest.mark.parametrize(("pool", "window"), [(max_pool, 3), (max_pool, 6), (avg_pool, 3), (avg_pool, 6)])
def test_every_mode_of_differentiation(pool, window):
    """Against chains of `jnp.maximum` and `+`. A window of 6 pixels has too many taps for the derivatives on CPU."""
    assert 3**2 <= MAX_TAPS < 6**2
    x, dx = map(jnp.asarray, random_arrays(0, (2, 7, 6, 3), (2, 7, 6, 3)))
    join, lowest, scale = (jnp.maximum, -jnp.inf, 1) if pool is max_pool else (operator.add, 0.0, window**2)

    def reference(x):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=lowest)
        (h, w), offsets = x.shape[1:3], range(window)
        views = [x[:, i : h - window + 1 + i : 2, j : w - window + 1 + j : 2] for i in offsets for j in offsets]
        return functools.reduce(join, views) / scale

    def results(pool):
        loss = lambda x: jnp.sin(pool(x)).sum()  # noqa: E731
        return (
            jax.jvp(pool, (x,), (dx,)),
            jax.jvp(jax.grad(loss), (x,), (dx,)),
            jax.vmap(lambda dx: jax.jvp(pool, (x,), (dx,))[1])(jnp.stack([dx, x])),
            jax.vmap(lambda scale: jax.grad(lambda x: loss(x) * scale)(x))(jnp.arange(3.0)),
            jax.grad(lambda x: (jax.grad(loss)(x) * dx).sum())(x),
            jax.vmap(jax.grad(loss))(x[:, None]),
            jax.lax.scan(lambda c, x: (c + jax.grad(loss)(x[None]).sum(), None), 0.0, x)[0],
            jax.grad(lambda x: jax.checkpoint(loss)(x))(x),
        )

    ours = jax.jit(lambda: results(partial(pool, window=window, stride=2, padding=1)))()
    wanted = jax.jit(lambda: results(reference))()
    jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-5), ours, wanted)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_max_pool_on_several_devices(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    (x,) = random_arrays(0, (8, 6, 6, 2))
    gradient = jax.jit(jax.grad(lambda x: (max_pool(x, 3, stride=2) ** 2).sum()))
    assert_allclose(gradient(jax.device_put(x, NamedSharding(mesh, P("data")))), gradient(x), rtol=1e-6)
    if axis_type == AxisType.Auto:
        mapped = jax.shard_map(gradient, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
        assert_allclose(mapped(x), gradient(x), rtol=1e-6)
