"""Depthwise, separable, dilated, factorized and transposed convolutions against their matrices and PyTorch."""

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
from numpy.testing import assert_allclose

from deepjax import layers
from deepjax.errors import InputError
from deepjax.functional import conv, conv_transpose, depthwise, depthwise_conv, factorized_conv, separable_conv


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


def matrix(size, kernel, *, stride, padding, dilation, groups=1):
    """(M, out): rows are outputs [*out, features], columns inputs [*size, features_in], entry by entry in float64.

    Output o takes input i in row (o, f) if i = o * stride + k * dilation - low for a tap k, and f is in i's group.
    """
    window, part, features = kernel.shape[:-2], kernel.shape[-2], kernel.shape[-1]
    out = tuple(
        (n + low + high - (w - 1) * d - 1) // s + 1
        for n, w, s, (low, high), d in zip(size, window, stride, padding, dilation, strict=True)
    )
    entries = np.zeros((*out, features, *size, part * groups))
    for o in np.ndindex(*out):
        for k in np.ndindex(*window):
            at = [a * s + b * d - low for a, b, s, d, (low, _) in zip(o, k, stride, dilation, padding, strict=True)]
            if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                for f, c in np.ndindex(features, part):
                    entries[(*o, f, *at, f // (features // groups) * part + c)] += kernel[(*k, c, f)]
    return entries.reshape(np.prod(out) * features, -1), out


def assert_is_matrix(function, dense, x, *kernels, tolerance=1e-5):
    """`function(x, *kernels)` is x times the matrix `dense(*kernels)`; gradients of a weighted sum agree too.

    The matrix is linear in each kernel, so its derivative in a kernel's entry is its value at the unit kernel.
    """
    value = dense(*kernels)
    expected = x.reshape(len(x), -1).astype(np.float64) @ value.T
    y, transpose = jax.vjp(jax.jit(function), x, *kernels)
    assert_allclose(y.reshape(len(x), -1), expected, rtol=tolerance, atol=tolerance * abs(expected).max())
    dy = arrays(9, y.shape)[0]
    gradients = transpose(jnp.asarray(dy))
    rows = dy.reshape(len(x), -1).astype(np.float64)
    wanted = [(rows @ value).reshape(x.shape)]
    for i, kernel in enumerate(kernels):
        slope = np.zeros(kernel.shape)
        for entry in np.ndindex(kernel.shape):
            unit = np.zeros_like(kernel)
            unit[entry] = 1
            slope[entry] = np.sum(rows * (x.reshape(len(x), -1) @ dense(*kernels[:i], unit, *kernels[i + 1 :]).T))
        wanted.append(slope)
    for ours, reference in zip(gradients, wanted, strict=True):
        assert_allclose(ours, reference, rtol=10 * tolerance, atol=10 * tolerance * abs(reference).max())


GEOMETRIES = [
    {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)},
    {"stride": (2, 1), "padding": ((0, 2), (1, 0)), "dilation": (1, 2)},
    {"stride": (3, 2), "padding": ((4, 3), (0, 0)), "dilation": (2, 1)},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_dilated_conv_is_its_matrix(geometry, groups):
    x, kernel = arrays(0, (2, 5, 6, 2), (3, 2, 2 // groups, 4))
    options = geometry | {"groups": groups}
    assert_is_matrix(partial(conv, **options), lambda k: matrix((5, 6), k, **options)[0], x, kernel)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_conv_is_its_matrix(geometry, multiplier):
    x, kernel = arrays(0, (2, 5, 6, 2), (3, 2, 1, 2 * multiplier))
    dense = lambda k: matrix((5, 6), k, groups=2, **geometry)[0]  # noqa: E731
    assert_is_matrix(partial(depthwise_conv, **geometry), dense, x, kernel)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_separable_conv_is_the_product_of_its_matrices(geometry):
    x, kernel, pointwise = arrays(0, (2, 5, 6, 2), (3, 2, 1, 4), (1, 1, 4, 3))

    def dense(kernel, pointwise):
        first, out = matrix((5, 6), kernel, groups=2, **geometry)
        return np.kron(np.eye(np.prod(out)), pointwise[0, 0].T) @ first

    assert_is_matrix(partial(separable_conv, **geometry), dense, x, kernel, pointwise)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_factorized_conv_is_the_conv_whose_factors_its_kernels_are(geometry):
    x, across, down = arrays(0, (2, 5, 6, 2), (1, 2, 2, 3), (3, 1, 3, 2))

    def dense(across, down):
        kernel = np.einsum("jab,ibc->ijac", across[0], down[:, 0])
        return matrix((5, 6), kernel, **geometry)[0]

    assert_is_matrix(partial(factorized_conv, **geometry), dense, x, across, down)


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, (0, 2), ((1, 0), 1)])
def test_factorized_conv_takes_every_padding_of_conv(padding):
    x, across, down, bias = arrays(0, (2, 7, 6, 2), (1, 3, 2, 3), (3, 1, 3, 2), (2,))
    kernel = np.einsum("jab,ibc->ijac", across[0], down[:, 0])
    y = factorized_conv(x, across, down, bias, stride=2, padding=padding)
    assert_allclose(y, conv(x, kernel, bias, stride=2, padding=padding), rtol=1e-4, atol=1e-4)


# Transposed convolution

TRANSPOSED = [
    {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)},
    {"stride": (2, 3), "padding": ((1, 1), (0, 0)), "dilation": (1, 1)},
    {"stride": (2, 1), "padding": ((0, 2), (1, 0)), "dilation": (1, 2)},
    {"stride": (3, 2), "padding": ((4, 3), (3, 0)), "dilation": (2, 1)},
]


def exchanged(kernel, groups):
    """Kernel [*window, in / groups, out] of a transposed conv -> its conv's [*window, out / groups, in]."""
    *window, part, features = kernel.shape
    parts = kernel.reshape(*window, part, groups, features // groups)
    return np.moveaxis(parts, -1, -3).swapaxes(-1, -2).reshape(*window, features // groups, groups * part)


@pytest.mark.parametrize("geometry", TRANSPOSED, ids=str)
@pytest.mark.parametrize(("groups", "more"), [(1, 0), (2, 0), (2, 1)])
def test_transposed_conv_is_the_transpose_of_a_convs_matrix(geometry, groups, more):
    more = tuple(min(more, s - 1) for s in geometry["stride"])  # a whole stride more would be another window for conv
    x, kernel = arrays(0, (2, 4, 5, 4), (3, 2, 4 // groups, 2))
    function = partial(conv_transpose, groups=groups, output_padding=more, **geometry)
    size = function(x, kernel).shape[1:3]

    def dense(kernel):
        value, out = matrix(size, exchanged(kernel, groups), groups=groups, **geometry)
        assert out == (4, 5)
        return value.T

    assert_is_matrix(function, dense, x, kernel)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_conv_is_the_gradient_of_conv(groups):
    x, kernel = arrays(0, (2, 7, 8, 4), (3, 3, 4 // groups, 6))
    options = {"stride": 2, "padding": 1, "groups": groups}
    dy = arrays(1, conv(x, kernel, **options).shape)[0]
    dx = jax.vjp(lambda x: conv(x, kernel, **options), x)[1](jnp.asarray(dy))[0]
    y = conv_transpose(dy, exchanged(kernel, groups), output_padding=(0, 1), **options)
    assert_allclose(y, dx, rtol=1e-4, atol=1e-4)


def compare_with_torch(x, kernel, bias, options, *, axes):
    torch = pytest.importorskip("torch")
    groups = options.get("groups", 1)
    *window, part, features = kernel.shape
    weight = np.moveaxis(kernel, (-2, -1), (0, 1)).reshape(part, groups, features // groups, *window)
    weight = weight.swapaxes(0, 1).reshape(part * groups, features // groups, *window)
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (np.moveaxis(x, -1, 1).copy(), weight.copy(), bias))
    ty = getattr(torch.nn.functional, f"conv_transpose{axes}d")(tx, tw, tb, **options)
    y, transpose = jax.vjp(jax.jit(partial(conv_transpose, **options)), x, kernel, bias)
    assert y.shape[1:-1] == tuple(ty.shape[2:])
    dy = arrays(5, y.shape)[0]
    ty.backward(torch.tensor(np.moveaxis(dy, -1, 1).copy()))
    dx, dkernel, dbias = transpose(jnp.asarray(dy))
    back = np.moveaxis(np.asarray(dkernel), (-2, -1), (0, 1)).reshape(part, groups, features // groups, *window)
    back = back.swapaxes(0, 1).reshape(weight.shape)
    pairs = [(np.moveaxis(y, -1, 1), ty.detach()), (np.moveaxis(dx, -1, 1), tx.grad), (back, tw.grad), (dbias, tb.grad)]
    for ours, theirs in pairs:
        assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.data())
def test_transposed_conv_is_torchs(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    axes, groups = draw(1, 2), data.draw(st.sampled_from([1, 2]))
    window, stride, dilation = (tuple(draw(1, 3) for _ in range(axes)) for _ in range(3))
    reach = [(w - 1) * d for w, d in zip(window, dilation, strict=True)]
    more = tuple(draw(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    size = tuple(draw(1, 4) for _ in range(axes))
    most = [((n - 1) * s + r + m) // 2 for n, s, r, m in zip(size, stride, reach, more, strict=True)]
    padding = tuple(draw(0, min(3, m)) for m in most)
    options = {"stride": stride, "padding": padding, "output_padding": more, "dilation": dilation, "groups": groups}
    x, kernel, bias = arrays(1, (2, *size, 4), (*window, 4 // groups, 2 * groups), (2 * groups,))
    compare_with_torch(x, kernel, bias, options, axes=axes)


def test_transposed_conv_in_three_dimensions_is_torchs():
    x, kernel, bias = arrays(1, (2, 3, 2, 4, 2), (3, 1, 2, 2, 3), (3,))
    compare_with_torch(x, kernel, bias, {"stride": (2, 1, 3), "padding": (1, 0, 1)}, axes=3)


def test_transposed_conv_takes_many_batch_axes_and_differentiates_forward():
    x, kernel = arrays(0, (2, 3, 4, 4, 2), (3, 3, 2, 5))
    y = conv_transpose(x, kernel, stride=2)
    assert y.shape == (2, 3, 9, 9, 5)
    assert_allclose(y[1], conv_transpose(x[1], kernel, stride=2), rtol=1e-5, atol=1e-5)
    _, slope = jax.jvp(lambda x: conv_transpose(x, kernel, stride=2), (x,), (x,))
    assert_allclose(slope, y, rtol=1e-5, atol=1e-5)
    assert conv_transpose(x[:, :0], kernel, stride=2).shape == (2, 0, 9, 9, 5)


def test_conv_transpose_layer():
    layer = layers.ConvTranspose(6, (3, 2), stride=2, padding=1, output_padding=1, groups=2, use_bias=True)
    x = jnp.asarray(arrays(0, (2, 4, 5, 4))[0])
    y, variables = layer.init_with_output(jax.random.key(0), x)
    shapes = {"kernel": (3, 2, 2, 6), "bias": (6,)}
    assert jax.tree.map(jnp.shape, variables["params"]) == shapes
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
    expected = conv_transpose(x, variables["params"]["kernel"], jnp.zeros(6), **options)
    assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    half = layer.copy(dtype=jnp.bfloat16)
    assert half.apply(variables, x).dtype == jnp.bfloat16


# Depthwise convolution by taps, the form that CPUs take, against JAX's grouped convolution


def lax_depthwise(x, kernel, *, stride, padding, dilation):
    axes, spatial = kernel.ndim - 2, "DHW"[2 - kernel.ndim :]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    assert len(stride) == axes
    return lax.conv_general_dilated(
        x, kernel, stride, padding, rhs_dilation=dilation, dimension_numbers=layout, feature_group_count=x.shape[-1]
    )


def assert_agree(x, kernel, geometry, tolerance=2e-5):
    @jax.jit
    def both(x, kernel):
        results = []
        for function in (depthwise_conv, lax_depthwise):
            y, transpose = jax.vjp(partial(function, **geometry), x, kernel)
            results.append(
                (y, *transpose(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)))
            )
        return results

    ours, reference = both(x, kernel)
    for a, b in zip(ours, reference, strict=True):
        assert a.dtype == b.dtype
        assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance * float(abs(b).max())
        )


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.data())
def test_depthwise_conv_is_lax(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    axes = draw(1, 2)
    window = tuple(draw(1, 4) for _ in range(axes))
    dilation = tuple(draw(1, 3) for _ in range(axes))
    padding = tuple((draw(0, 5), draw(0, 5)) for _ in range(axes))
    least = [max((w - 1) * d + 1 - sum(p), 1) for w, d, p in zip(window, dilation, padding, strict=True)]
    size = tuple(n + draw(0, 5) for n in least)
    stride = tuple(draw(1, 4) for _ in range(axes))
    features = draw(2, 3)
    x, kernel = arrays(1, (draw(1, 3), *size, features), (*window, 1, features * draw(1, 3)))
    assert_agree(x, kernel, {"stride": stride, "padding": padding, "dilation": dilation})


PLAIN = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_depthwise_conv_in_every_dtype(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x, kernel = (jnp.asarray(a, dtype) for a in arrays(0, (2, 6, 5, 3), (3, 3, 1, 6)))
        assert_agree(x, kernel, PLAIN, tolerance=4 * float(jnp.finfo(dtype).eps))


def test_depthwise_conv_with_more_taps_than_are_unrolled():
    x, kernel = arrays(0, (2, 14, 14, 2), (13, 13, 1, 2))
    assert depthwise.MOST_TAPS < 13 * 13
    assert_agree(x, kernel, PLAIN)


def test_depthwise_conv_in_a_scan_with_remat():
    x, kernels = arrays(0, (2, 6, 6, 3), (4, 3, 3, 1, 3))

    def loss(convolution, x, kernels):
        @jax.checkpoint
        def block(x, kernel):
            return x + 0.3 * jnp.tanh(convolution(x, kernel, **PLAIN)), None

        return (lax.scan(block, x, kernels)[0] ** 2).mean()

    ours, reference = (
        jax.jit(jax.value_and_grad(partial(loss, f), argnums=(0, 1)))(x, kernels)
        for f in (depthwise_conv, lax_depthwise)
    )
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-6), ours, reference)


def test_depthwise_conv_under_vmap_and_twice_differentiated():
    x, kernel, tx = arrays(0, (3, 2, 5, 5, 2), (3, 3, 3, 1, 4), (2, 5, 5, 2))

    def slope(convolution, x, kernel):
        gradient = jax.grad(lambda x: jnp.tanh(convolution(x, kernel, **PLAIN)).sum())
        return (gradient(x) * tx).sum()

    ours, reference = (
        jax.jit(jax.vmap(jax.grad(partial(slope, f), argnums=(0, 1))))(x, kernel)
        for f in (depthwise_conv, lax_depthwise)
    )
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-4), ours, reference)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_depthwise_conv_of_a_sharded_batch(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    x, kernel = arrays(0, (16, 5, 5, 2), (3, 3, 1, 2))

    def squares(convolution, x, kernel):
        return (convolution(x, kernel, **PLAIN) ** 2).sum()

    expected = jax.grad(partial(squares, lax_depthwise), argnums=(0, 1))(x, kernel)
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(kernel, NamedSharding(mesh, P()))
    ours = jax.jit(jax.grad(partial(squares, depthwise_conv), argnums=(0, 1)))(sharded, replicated)
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-3), ours, expected)
    if axis_type == AxisType.Auto:
        gradient = jax.grad(partial(squares, depthwise_conv), argnums=1)
        mapped = jax.shard_map(gradient, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
        assert_allclose(jax.jit(mapped)(x, kernel), expected[1], rtol=1e-4, atol=1e-3)


def test_depthwise_conv_is_by_taps_on_cpu_alone():
    x, kernel = arrays(0, (2, 6, 6, 3), (3, 3, 1, 3))
    gradient = jax.jit(jax.value_and_grad(lambda *a: depthwise_conv(*a).sum(), argnums=(0, 1)))

    def convolutions(platform):
        return gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")

    assert (convolutions("cpu"), convolutions("cuda")) == (0, 3)


# Errors

X = (2, 8, 8, 4)


@pytest.mark.parametrize(
    ("function", "shapes", "options", "message"),
    [
        (depthwise_conv, (X, (3, 3, 2, 4)), {}, r"kernel of shape \(3, 3, 2, 4\) must be"),
        (depthwise_conv, (X, (3, 3, 1, 6)), {}, "multiple of the 4 features"),
        (depthwise_conv, (X, (3, 3, 1, 4)), {"stride": 0}, "stride 0"),
        (depthwise_conv, (X, (9, 9, 1, 4)), {"padding": "VALID"}, "spans"),
        (separable_conv, (X, (3, 3, 1, 4), (3, 3, 4, 5)), {}, r"pointwise .* must be \[1, 1, 4, features_out\]"),
        (separable_conv, (X, (3, 3, 1, 8), (1, 1, 4, 5)), {}, "pointwise"),
        (factorized_conv, (X, (3, 1, 4, 5), (3, 1, 5, 6)), {}, r"across \(3, 1, 4, 5\) must be \[1, columns"),
        (factorized_conv, (X, (1, 3, 4, 5), (1, 3, 5, 6)), {}, r"down \(1, 3, 5, 6\)"),
        (factorized_conv, (X, (1, 3, 4, 5), (3, 1, 4, 6)), {}, "across gives 5 features, down takes 4"),
        (factorized_conv, (X, (1, 3, 4, 5), (3, 1, 5, 6)), {"stride": (1, 2, 3)}, "factorized_conv: stride"),
        (factorized_conv, (X, (1, 3, 4, 5), (3, 1, 5, 6)), {"padding": -1}, "factorized_conv: padding -1"),
        (conv_transpose, (X, (3, 3, 3, 5)), {}, "conv_transpose: x has 4 features"),
        (conv_transpose, (X, (3, 3, 2, 5)), {"groups": 2}, "divide the 5"),
        (conv_transpose, (X[1:], (3, 3, 4, 5)), {}, "batch axis"),
        (conv_transpose, (X, (3, 3, 4, 5)), {"stride": 0}, "conv_transpose: stride 0"),
        (conv_transpose, (X, (3, 3, 4, 5)), {"padding": "SAME"}, "conv_transpose: padding 'SAME'"),
        (conv_transpose, (X, (3, 3, 4, 5)), {"padding": 5}, r"leaves nothing of y, whose size would be \(0, 0\)"),
        (conv_transpose, (X, (3, 3, 4, 5)), {"output_padding": 1}, "output_padding 1"),
        (conv_transpose, (X, (3, 3, 4, 5)), {"stride": 2, "output_padding": (1, 2)}, r"output_padding \(1, 2\)"),
        (conv_transpose, (X, (3, 3, 4, 5)), {"stride": 2, "output_padding": -1}, "output_padding -1"),
        (conv_transpose, (X, (3, 3, 4, 5), (4,)), {}, "bias of shape"),
    ],
)
def test_input_errors(function, shapes, options, message):
    with pytest.raises(InputError, match=message) as error:
        function(*(np.zeros(shape, np.float32) for shape in shapes), **options)
    assert "\n" not in str(error.value)
