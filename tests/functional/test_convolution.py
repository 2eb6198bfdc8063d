"""The convolution against JAX's own, a NumPy loop and PyTorch, in values and gradients."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from deepjax.errors import InputError
from deepjax.functional.convolution import _parts, conv


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


def per_axis(value, axes):
    return (value,) * axes if isinstance(value, int) else value


def lax_conv(x, kernel, *, stride=1, padding="SAME", dilation=1, groups=1):
    """The reference: JAX's convolution, whose gradients JAX derives."""
    axes = kernel.ndim - 2
    if not isinstance(padding, str):
        padding = [(p, p) if isinstance(p, int) else p for p in per_axis(padding, axes)]
    spatial = "DHW"[-axes:]
    return lax.conv_general_dilated(
        x,
        kernel,
        per_axis(stride, axes),
        padding,
        rhs_dilation=per_axis(dilation, axes),
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
    )


def value_and_gradients(function, x, kernel, weights):
    """Output, and the gradients of its weighted sum in x and kernel."""
    y, transpose = jax.vjp(function, x, kernel)
    return y, *transpose(jnp.resize(weights, y.shape).astype(y.dtype))


def assert_agree(x, kernel, *, tolerance=2e-5, **options):
    @jax.jit  # one for both, since compilation is most of the time
    def both(*arguments):
        return [value_and_gradients(partial(f, **options), *arguments) for f in (conv, lax_conv)]

    ours, reference = both(x, kernel, *arrays(7, (1009,)))
    for name, a, b in zip(("y", "dx", "dkernel"), ours, reference, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(abs(b).max()), err_msg=name)


GEOMETRIES = [
    *(
        {"size": (9, 12), "window": (k, k), "stride": s, "padding": p}
        for k, s, p in itertools.product((1, 3, 5), (1, 2, 3), ("SAME", "VALID", 1))
    ),
    {"size": (8, 9), "window": (3, 3), "padding": "SAME", "dilation": 2},
    {"size": (9, 8), "window": (3, 3), "padding": "VALID", "dilation": (2, 1), "stride": (1, 2)},
    {"size": (9, 11), "window": (3, 5), "padding": 2, "dilation": 2, "stride": 3},
    {"size": (8, 8), "window": (3, 3), "padding": ((2, 0), (0, 3)), "stride": 2},
    {"size": (7, 10), "window": (5, 3), "padding": ((0, 1), (4, 5)), "stride": (3, 2)},
    {"size": (6, 9), "window": (1, 7), "padding": "SAME"},
    {"size": (9, 6), "window": (3, 1), "padding": (1, 0), "stride": 2},
    {"size": (4, 4), "window": (7, 7), "padding": 3, "stride": 2},
    {"size": (4, 4), "window": (1, 1), "padding": ((2, 0), (0, 3)), "stride": 3},
    {"size": (1, 2), "window": (1, 2), "padding": ((5, 1), (6, 0)), "stride": 9},
    {"size": (8,), "window": (3,), "stride": 2},
    {"size": (13,), "window": (4,), "padding": ((3, 0),), "dilation": 2},
    {"size": (5, 6, 4), "window": (3, 2, 1), "stride": (2, 1, 3), "padding": (1, (0, 1), 0)},
    {"size": (5, 4, 4), "window": (1, 1, 1), "stride": 2, "padding": "VALID"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_value_and_gradients(geometry):
    options = dict(geometry)
    size, window = options.pop("size"), options.pop("window")
    assert_agree(*arrays(0, (2, *size, 3), (*window, 3, 4)), **options)


@pytest.mark.parametrize("batch", [1, 3, 32, 48, 272])
@pytest.mark.parametrize("window", [1, 3])
def test_any_batch(batch, window):
    assert_agree(*arrays(0, (batch, 5, 5, 2), (window, window, 2, 3)), stride=2, tolerance=1e-4)


def test_parts_divide_the_batch():
    assert [_parts(n) for n in (1, 16, 31, 32, 96, 100, 128, 512, 4096)] == [1, 1, 1, 2, 6, 5, 8, 16, 16]


@pytest.mark.parametrize(("groups", "out"), [(2, 6), (4, 4), (4, 8)])
def test_groups(groups, out):
    assert_agree(*arrays(0, (2, 7, 6, 4), (3, 3, 4 // groups, out)), stride=2, padding=1, groups=groups)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.data())
def test_any_geometry(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    axes = draw(1, 2)
    window = tuple(draw(1, 4) for _ in range(axes))
    dilation = tuple(draw(1, 3) for _ in range(axes))
    padding = tuple((draw(0, 4), draw(0, 4)) for _ in range(axes))
    least = [max((w - 1) * d + 1 - sum(p), 1) for w, d, p in zip(window, dilation, padding, strict=True)]
    size = tuple(n + draw(0, 5) for n in least)
    stride = tuple(draw(1, 4) for _ in range(axes))
    x, kernel = arrays(1, (draw(1, 3), *size, 2), (*window, 2, draw(1, 3)))
    assert_agree(x, kernel, stride=stride, padding=padding, dilation=dilation)


def test_numpy_loop():
    x, kernel, bias = arrays(0, (2, 6, 7, 4), (3, 2, 2, 6), (6,))
    stride, dilation, groups, low, high = (2, 1), (1, 3), 2, (1, 0), (2, 1)
    padded = np.pad(x.astype(np.float64), ((0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)))
    expected = np.zeros((2, 4, 5, 6)) + bias
    for n, i, j, k, o in np.ndindex(*expected.shape[:3], 3, 6):
        part = o // 3
        for m, c in np.ndindex(2, 2):
            pixel = padded[n, i * stride[0] + k * dilation[0], j * stride[1] + m * dilation[1], 2 * part + c]
            expected[n, i, j, o] += pixel * kernel[k, m, c, o]
    padding = tuple(zip(low, high, strict=True))
    y = conv(x, kernel, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": 2, "padding": 3, "dilation": 2},
        {"stride": 1, "padding": (2, 0), "groups": 2},
        {"stride": 3, "padding": 1, "groups": 4},
    ],
    ids=str,
)
def test_torch(options):
    torch = pytest.importorskip("torch")
    x, kernel, bias, weights = arrays(3, (2, 10, 9, 4), (3, 3, 4 // options.get("groups", 1), 8), (8,), (997,))
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    tk = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    tb = torch.tensor(bias, requires_grad=True)
    ty = torch.nn.functional.conv2d(tx, tk, tb, **options)
    y, transpose = jax.vjp(partial(conv, **options), x, kernel, bias)
    weights = np.resize(weights, y.shape)
    ty.backward(torch.tensor(weights.transpose(0, 3, 1, 2)))
    dx, dkernel, dbias = transpose(jnp.asarray(weights))
    for ours, theirs in (
        (y, ty.detach().numpy().transpose(0, 2, 3, 1)),
        (dx, tx.grad.numpy().transpose(0, 2, 3, 1)),
        (dkernel, tk.grad.numpy().transpose(2, 3, 1, 0)),
        (dbias, tb.grad.numpy()),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_many_batch_axes():
    x, kernel, bias = arrays(0, (2, 3, 5, 6, 2), (3, 3, 2, 4), (4,))
    y = conv(x, kernel, bias, stride=2)
    assert y.shape == (2, 3, 3, 3, 4)
    np.testing.assert_array_equal(y[1], conv(x[1], kernel, bias, stride=2))


def test_empty_batch():
    x, kernel = np.zeros((0, 4, 4, 2), np.float32), np.ones((3, 3, 2, 3), np.float32)
    y, dx, dkernel = value_and_gradients(conv, x, kernel, np.ones(1))
    assert (y.shape, dx.shape) == ((0, 4, 4, 3), x.shape)
    assert not dkernel.any()


@pytest.mark.parametrize("window", [1, 3])
def test_scan_with_remat(window):
    x, kernels = arrays(0, (4, 6, 6, 3), (5, window, window, 3, 3))

    def loss(convolution, x, kernels):
        @jax.checkpoint
        def block(x, kernel):
            return x + 0.3 * jnp.tanh(convolution(x, kernel)), None

        return (lax.scan(block, x, kernels)[0] ** 2).mean()

    ours, reference = (
        jax.jit(jax.value_and_grad(partial(loss, f), argnums=(0, 1)))(x, kernels) for f in (conv, lax_conv)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ours, reference)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("window", [1, 3])
def test_vmap(axes, window):
    x, kernel = arrays(0, (3, 4, 6, 5, 2), (3, window, window, 2, 3))
    x, kernel = (a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True))

    def gradients(convolution):
        def single(x, kernel):
            return jax.grad(lambda *a: (convolution(*a, stride=2) ** 2).sum(), argnums=(0, 1))(x, kernel)

        return jax.jit(jax.vmap(single, axes))(x, kernel)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), gradients(conv), gradients(lax_conv))


@pytest.mark.parametrize("window", [1, 3])
def test_second_order(window):
    x, kernel, tx, tk = arrays(0, *2 * ((2, 5, 5, 2), (window, window, 2, 3)))

    def curvature(convolution):
        def slope(*point):
            gx, gk = jax.grad(lambda *a: jnp.tanh(convolution(*a, stride=2)).sum(), argnums=(0, 1))(*point)
            return (gx * tx).sum() + (gk * tk).sum()

        return jax.jit(jax.grad(slope, argnums=(0, 1)))(x, kernel)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), curvature(conv), curvature(lax_conv))


def many_devices(axis_type=AxisType.Auto):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    return jax.make_mesh((8,), ("data",), axis_types=(axis_type,))


def squares(convolution, x, kernel):
    return (convolution(x, kernel, stride=2) ** 2).sum()


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("window", [1, 3])
def test_sharded_batch(window, axis_type):
    mesh = many_devices(axis_type)
    x, kernel = arrays(0, (32, 6, 6, 2), (window, window, 2, 3))
    expected = jax.grad(partial(squares, lax_conv), argnums=(0, 1))(x, kernel)
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(kernel, NamedSharding(mesh, P()))
    dx, dkernel = jax.jit(jax.grad(partial(squares, conv), argnums=(0, 1)))(sharded, replicated)
    np.testing.assert_allclose(dx, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dkernel, expected[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("window", [1, 3])
def test_shard_map_sums_over_devices(window):
    mesh = many_devices()
    x, kernel = arrays(0, (16, 6, 6, 2), (window, window, 2, 3))
    expected = jax.grad(partial(squares, lax_conv), argnums=1)(x, kernel)
    gradient = jax.grad(partial(squares, conv), argnums=1)
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
    np.testing.assert_allclose(jax.jit(mapped)(x, kernel), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [1, 3])
def test_pmap(window):
    many_devices()
    x, kernel = arrays(0, (8, 2, 6, 6, 2), (window, window, 2, 3))
    expected = jax.grad(partial(squares, lax_conv), argnums=1)(x.reshape(16, 6, 6, 2), kernel)

    def gradient(x, kernel):
        return lax.psum(jax.grad(partial(squares, conv), argnums=1)(x, kernel), "data")

    summed = jax.pmap(gradient, "data", in_axes=(0, None))(x, kernel)
    np.testing.assert_allclose(summed[3], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
@pytest.mark.parametrize("window", [1, 3])
def test_dtypes(dtype, window):
    with jax.enable_x64(dtype == jnp.float64):
        x, kernel = (jnp.asarray(a, dtype) for a in arrays(0, (2, 6, 5, 3), (window, window, 3, 4)))
        assert_agree(x, kernel, stride=2, tolerance=4 * float(jnp.finfo(dtype).eps))


def gradient_text(platform):
    x, kernel = arrays(0, (2, 6, 6, 3), (3, 3, 3, 4))
    gradient = jax.jit(jax.value_and_grad(lambda *a: conv(*a).sum(), argnums=(0, 1)))
    return gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


def test_lowering_holds_one_platform():
    ours, derived = gradient_text("cpu"), gradient_text("cuda")
    for text in (ours, derived):
        assert text.count("stablehlo.convolution") == 3  # the output and two gradients
    canonical = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert ours.count(canonical) == 3
    assert derived.count(canonical) < 3


def test_no_recompilation_outside_of_jit(caplog):
    x, kernel = arrays(0, (2, 6, 6, 3), (3, 3, 3, 5))
    gradient = jax.grad(lambda *a: conv(*a, stride=2).sum(), argnums=(0, 1))

    def compilations():
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            gradient(x, kernel)
        return [message for message in caplog.messages if "compilation" in message]

    assert compilations()
    assert not compilations()


X, KERNEL = (2, 8, 8, 4), (3, 3, 4, 6)


@pytest.mark.parametrize(
    ("x", "kernel", "options", "message"),
    [
        (X, (4, 6), {}, "kernel of shape"),
        ((1,) * 6, (1,) * 6, {}, "kernel of shape"),
        (X[1:], KERNEL, {}, "batch axis"),
        ((2, 8, 8, 5), KERNEL, {}, "x has 5 features"),
        (X, KERNEL, {"groups": 2}, "in 2 groups takes 8"),
        (X, (3, 3, 1, 6), {"groups": 4}, "divide the 6 features_out"),
        (X, KERNEL, {"groups": 0}, "groups 0"),
        (X, KERNEL, {"padding": "VALID", "dilation": 4}, "spans"),
        (X, (11, 1, 4, 6), {"padding": 1}, "spans"),
        (X, KERNEL, {"stride": 0}, "stride 0"),
        (X, KERNEL, {"stride": (1, 1, 1)}, "stride"),
        (X, KERNEL, {"stride": 1.5}, "stride 1.5"),
        (X, KERNEL, {"dilation": (1, -1)}, "dilation"),
        (X, KERNEL, {"padding": "SANE"}, "did you mean 'SAME'"),
        (X, KERNEL, {"padding": -1}, "padding -1"),
        (X, KERNEL, {"padding": (1, 2, 3)}, "padding"),
        (X, KERNEL, {"padding": ((1, 2, 3), 1)}, "padding"),
        (X, KERNEL, {"bias": np.zeros(5, np.float32)}, "bias of shape"),
    ],
)
def test_input_errors(x, kernel, options, message):
    with pytest.raises(InputError, match=message) as error:
        conv(np.zeros(x, np.float32), np.zeros(kernel, np.float32), **options)
    assert "\n" not in str(error.value)
