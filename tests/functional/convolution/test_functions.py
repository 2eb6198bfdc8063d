"""`conv` and `conv_transpose` against NumPy loops, the matrices that they are, and PyTorch. Their errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose, assert_array_equal

from deepjax.errors import InputError
from deepjax.functional import conv, conv_transpose, maxout, prelu
from helpers import linear_in_kernel, random_arrays


def test_numpy_loop():
    x, kernel, bias = random_arrays(0, (2, 6, 7, 4), (3, 2, 2, 6), (6,))
    stride, dilation, groups, low, high = (2, 1), (1, 3), 2, (1, 0), (2, 1)
    padded = np.pad(x.astype(np.float64), ((0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)))
    expected = np.zeros((2, 4, 5, 6)) + bias
    for n, i, j, k, o in np.ndindex(*expected.shape[:3], 3, 6):
        part = o // 3
        for m, c in np.ndindex(2, 2):
            pixel = padded[n, i * stride[0] + k * dilation[0], j * stride[1] + m * dilation[1], 2 * part + c]
            expected[n, i, j, o] += pixel * kernel[k, m, c, o]
    padding = tuple(zip(low, high, strict=True))
    y = jax.jit(partial(conv, stride=stride, padding=padding, dilation=dilation, groups=groups))(x, kernel, bias)
    assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_many_batch_axes():
    x, kernel, bias = random_arrays(0, (2, 3, 5, 6, 2), (3, 3, 2, 4), (4,))
    for function, shape in ((conv, (2, 3, 3, 3, 4)), (conv_transpose, (2, 3, 11, 13, 4))):
        run = partial(function, kernel=kernel, bias=bias, stride=2)
        y, one = jax.jit(lambda x, run=run: (run(x), run(x[1])))(x)
        assert y.shape == shape
        assert_allclose(np.asarray(y)[1], one, rtol=1e-5, atol=1e-5)


# The matrix of a transposed convolution is the transpose of a convolution's

TRANSPOSED = [
    {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)},
    {"stride": (2, 3), "padding": ((1, 1), (0, 0)), "dilation": (1, 1)},
    {"stride": (2, 1), "padding": ((0, 2), (1, 0)), "dilation": (1, 2)},
    {"stride": (3, 2), "padding": ((4, 3), (3, 0)), "dilation": (2, 1)},
]


def exchanged(kernel, groups):
    """Kernel [*window, in / groups, out] of a transposed conv -> its conv's [*window, out / groups, in]."""
    parts = np.split(kernel, groups, axis=-1)
    return np.concatenate([part.swapaxes(-1, -2) for part in parts], axis=-1)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv_transpose_is_the_transpose_of_a_convs_matrix(groups):
    x, kernel = random_arrays(0, (2, 4, 5, 4), (3, 2, 4 // groups, 4))
    geometries = [g | {"output_padding": tuple(min(groups - 1, s - 1) for s in g["stride"])} for g in TRANSPOSED]
    functions = [partial(conv_transpose, groups=groups, **g) for g in geometries]
    dys = [random_arrays(1, jax.eval_shape(f, x, kernel).shape)[0] for f in functions]

    @jax.jit
    def run(x, kernel, dys):
        return [(f(x, kernel), *jax.vjp(f, x, kernel)[1](dy)) for f, dy in zip(functions, dys, strict=True)]

    for geometry, dy, ours in zip(TRANSPOSED, dys, run(x, kernel, dys), strict=True):
        which, out = linear_in_kernel(dy.shape[1:-1], exchanged(kernel, groups).shape, groups=groups, **geometry)
        assert out == (4, 5)
        matrix = np.where(which < 0, 0, exchanged(kernel, groups).ravel()[which]).T
        rows, columns = dy.reshape(2, -1).astype(np.float64), x.reshape(2, -1)
        entries = np.bincount(1 + which.ravel(), (columns.T @ rows).ravel(), kernel.size + 1)[1:]
        dkernel = exchanged(entries.reshape(exchanged(kernel, groups).shape), groups)
        wanted = ((columns @ matrix.T).reshape(dy.shape), (rows @ matrix).reshape(x.shape), dkernel)
        for a, b in zip(ours, wanted, strict=True):
            assert_allclose(a, b, rtol=1e-4, atol=1e-5 * abs(b).max())


# PyTorch


def torch_weight(kernel, groups):
    """[*window, in / groups, out] of `conv_transpose` -> PyTorch's [in, out / groups, *window]."""
    return np.concatenate([np.moveaxis(part, (-2, -1), (0, 1)) for part in np.split(kernel, groups, axis=-1)])


def torch_value_and_gradients(transposed, x, kernel, bias, dy, options):
    """(y, dx, dkernel, dbias) in our layout."""
    torch = pytest.importorskip("torch")
    groups, axes = options.get("groups", 1), x.ndim - 2
    weight = torch_weight(kernel, groups) if transposed else np.moveaxis(kernel, (-1, -2), (0, 1))
    tx, tw, tb = (torch.tensor(a.copy(), requires_grad=True) for a in (np.moveaxis(x, -1, 1), weight, bias))
    name = f"conv_transpose{axes}d" if transposed else f"conv{axes}d"
    y = getattr(torch.nn.functional, name)(tx, tw, tb, **options)
    y.backward(torch.tensor(np.moveaxis(dy, -1, 1).copy()))
    dweight = tw.grad.numpy()
    if transposed:
        dkernel = np.concatenate([np.moveaxis(p, (0, 1), (-2, -1)) for p in np.split(dweight, groups)], axis=-1)
    else:
        dkernel = np.moveaxis(dweight, (0, 1), (-1, -2))
    return np.moveaxis(y.detach().numpy(), 1, -1), np.moveaxis(tx.grad.numpy(), 1, -1), dkernel, tb.grad.numpy()


def assert_is_torchs(function, cases):
    """`cases`: (size, window, options) each, for an x of 4 features."""
    inputs = []
    for seed, (size, window, options) in enumerate(cases):
        x, kernel, bias = random_arrays(seed, (2, *size, 4), (*window, 4 // options.get("groups", 1), 8), (8,))
        y = jax.eval_shape(partial(function, **options), x, kernel, bias)
        inputs.append((x, kernel, bias, *random_arrays(seed, y.shape)))

    @jax.jit
    def run(inputs):
        results = []
        for (*arrays, dy), (_, _, options) in zip(inputs, cases, strict=True):
            y, transpose = jax.vjp(partial(function, **options), *arrays)
            results.append((y, *transpose(dy)))
        return results

    for arrays, (_, _, options), ours in zip(inputs, cases, run(inputs), strict=True):
        theirs = torch_value_and_gradients(function is conv_transpose, *arrays, options)
        for name, a, b in zip(("y", "dx", "dkernel", "dbias"), ours, theirs, strict=True):
            assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=f"{name} with {options}")


def test_conv_is_torchs():
    size, window = (10, 9), (3, 3)
    cases = [
        (size, window, {"stride": 2, "padding": 1}),
        (size, window, {"stride": 2, "padding": 3, "dilation": 2}),
        (size, window, {"stride": 1, "padding": (2, 0), "groups": 2}),
        (size, window, {"stride": 3, "padding": 1, "groups": 4}),
    ]
    assert_is_torchs(conv, cases)


def random_transposed(rng):
    axes = int(rng.integers(1, 3))

    def draw(low, high):
        return tuple(int(rng.integers(low, n + 1)) for n in np.broadcast_to(high, axes))

    window, stride, dilation, size = draw(1, 3), draw(1, 3), draw(1, 3), draw(1, 4)
    more = draw(0, [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)])
    last = [(n - 1) * s + (w - 1) * d + m for n, s, w, d, m in zip(size, stride, window, dilation, more, strict=True)]
    padding = draw(0, [min(3, n // 2) for n in last])
    options = {"stride": stride, "padding": padding, "output_padding": more, "dilation": dilation}
    return size, window, options | {"groups": int(rng.choice([1, 2, 4]))}


@pytest.mark.parametrize("seed", range(2))
def test_conv_transpose_is_torchs(seed):
    rng = np.random.default_rng(seed)
    in_three_dimensions = ((3, 2, 4), (3, 1, 2), {"stride": (2, 1, 3), "padding": (1, 0, 1)})
    assert_is_torchs(conv_transpose, [in_three_dimensions, *(random_transposed(rng) for _ in range(8))])


IN_SCAN = [
    {"stride": 1, "padding": 1},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (3, 2), "padding": (0, 1), "output_padding": (2, 0), "groups": 2},
    {"stride": 2, "padding": 0, "dilation": 2, "groups": 4},
]


def test_gradients_of_conv_transpose_in_a_scan_are_those_outside_and_torchs():
    steps = 2
    x = random_arrays(0, (steps, 2, 4, 5, 4))[0]
    kernels = [random_arrays(1, (steps, 3, 3, 4 // options.get("groups", 1), 8))[0] for options in IN_SCAN]
    biases = random_arrays(2, (steps, 8))[0]

    def loss(step, kernels, x, biases):
        """The sum over steps of every output times numbers of its own."""
        total = jnp.zeros(())
        for options, kernel in zip(IN_SCAN, kernels, strict=True):
            y = conv_transpose(x[step], kernel[step], biases[step], **options)
            total += (y * jnp.cos(jnp.arange(float(y.size)).reshape(y.shape))).sum()
        return total

    def in_scan(*arrays):
        return lax.scan(lambda total, step: (total + loss(step, *arrays), None), 0.0, jnp.arange(steps))[0]

    def outside(*arrays):
        return sum(loss(step, *arrays) for step in range(steps))

    inside, plain = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(kernels, x, biases) for f in (in_scan, outside))
    inside, plain = jax.tree.map(np.asarray, (inside, plain))
    jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-4), inside, plain)
    dx, dbiases = np.zeros_like(x), np.zeros_like(biases)
    for kernel, dkernel, options in zip(kernels, inside[0], IN_SCAN, strict=True):
        for step in range(steps):
            y = jax.eval_shape(partial(conv_transpose, **options), x[step], kernel[step])
            dy = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)
            theirs = torch_value_and_gradients(True, x[step], kernel[step], biases[step], dy, options)
            dx[step] += theirs[1]
            dbiases[step] += theirs[3]
            assert_allclose(dkernel[step], theirs[2], rtol=1e-4, atol=1e-4)
    assert_allclose(inside[1], dx, rtol=1e-4, atol=1e-3)
    assert_allclose(inside[2], dbiases, rtol=1e-4, atol=1e-3)


# Low precision


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_of_values_per_feature_are_summed_in_float32(dtype):
    """A sum of 16384 numbers of one sign, which stops growing after some hundreds in bfloat16."""
    x = np.float32(1 + np.random.default_rng(0).random((16, 32, 32, 2)))
    dy = jnp.asarray(x / 64, dtype)
    x = jnp.asarray(x, dtype)
    functions = {
        "conv": lambda bias: conv(x, jnp.ones((1, 1, 2, 2), dtype), bias),
        "conv_transpose": lambda bias: conv_transpose(x, jnp.ones((1, 1, 2, 2), dtype), bias),
        "prelu": lambda slope: prelu(-x, slope),
        "maxout": lambda bias: maxout(x, jnp.ones((2, 1, 2), dtype), bias[None]),
    }
    ours = jax.jit(lambda: {name: jax.vjp(f, jnp.zeros(2, dtype))[1](dy)[0] for name, f in functions.items()})()
    wide = np.asarray(dy, np.float64)
    total = wide.sum((0, 1, 2))
    wanted = dict.fromkeys(functions, total) | {"prelu": (-np.asarray(x, np.float64) * wide).sum((0, 1, 2))}
    for name, gradient in ours.items():
        assert gradient.dtype == dtype
        assert_allclose(np.asarray(gradient, np.float64), wanted[name], rtol=1e-2, err_msg=name)


def test_a_bias_is_added_in_its_own_dtype():
    arrays = [a.astype(jnp.bfloat16) for a in random_arrays(0, (1, 4, 4, 2), (3, 3, 2, 3), (3,))]
    with_bias, without = jax.jit(lambda x, kernel, bias: (conv(x, kernel, bias), conv(x, kernel)))(*arrays)
    assert_array_equal(with_bias, np.asarray(without) + arrays[2])


# Errors


def test_types_that_differ():
    x, kernel = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 2), jnp.bfloat16)
    for function in (conv, conv_transpose):
        with pytest.raises(InputError, match=f"{function.__name__}: x of type float32 and kernel of type bfloat16"):
            jax.eval_shape(function, x, kernel)
    wide = np.ones((3, 3, 2, 2), np.float64)  # JAX takes it as float32
    assert jax.eval_shape(conv, x, wide).dtype == jnp.float32
    assert conv(x, wide).dtype == jnp.float32


X, KERNEL = (2, 8, 8, 4), (3, 3, 4, 6)


@pytest.mark.parametrize(
    ("function", "x", "kernel", "options", "message"),
    [
        (conv, X, (4, 6), {}, "kernel of shape"),
        (conv, (1,) * 6, (1,) * 6, {}, "kernel of shape"),
        (conv, X[1:], KERNEL, {}, "batch axis"),
        (conv, (2, 8, 8, 5), KERNEL, {}, "x has 5 features"),
        (conv, X, KERNEL, {"groups": 2}, "in 2 groups takes 8"),
        (conv, X, (3, 3, 1, 6), {"groups": 4}, "divide the 6 features_out"),
        (conv, X, KERNEL, {"groups": 0}, "groups 0"),
        (conv, X, KERNEL, {"padding": "VALID", "dilation": 4}, "spans"),
        (conv, X, (11, 1, 4, 6), {"padding": 1}, "spans"),
        (conv, X, KERNEL, {"stride": 0}, "stride 0"),
        (conv, X, KERNEL, {"stride": (1, 1, 1)}, "stride"),
        (conv, X, KERNEL, {"stride": 1.5}, "stride 1.5"),
        (conv, X, KERNEL, {"dilation": (1, -1)}, "dilation"),
        (conv, X, KERNEL, {"padding": "SANE"}, "did you mean 'SAME'"),
        (conv, X, KERNEL, {"padding": -1}, "padding -1"),
        (conv, X, KERNEL, {"padding": (1, 2, 3)}, "padding"),
        (conv, X, KERNEL, {"padding": ((1, 2, 3), 1)}, "padding"),
        (conv, X, KERNEL, {"bias": np.zeros(5, np.float32)}, "bias of shape"),
        (conv_transpose, X, (3, 3, 3, 5), {}, "conv_transpose: x has 4 features"),
        (conv_transpose, X, (3, 3, 2, 5), {"groups": 2}, "divide the 5"),
        (conv_transpose, X[1:], (3, 3, 4, 5), {}, "batch axis"),
        (conv_transpose, X, (3, 3, 4, 5), {"stride": 0}, "conv_transpose: stride 0"),
        (conv_transpose, X, (3, 3, 4, 5), {"padding": "SAME"}, "conv_transpose: padding 'SAME'"),
        (conv_transpose, X, (3, 3, 4, 5), {"padding": 5}, r"leaves nothing of y, whose size would be \(0, 0\)"),
        (conv_transpose, X, (3, 3, 4, 5), {"output_padding": 1}, "output_padding 1"),
        (conv_transpose, X, (3, 3, 4, 5), {"stride": 2, "output_padding": (1, 2)}, r"output_padding \(1, 2\)"),
        (conv_transpose, X, (3, 3, 4, 5), {"stride": 2, "output_padding": -1}, "output_padding -1"),
        (conv_transpose, X, (3, 3, 4, 5), {"bias": np.zeros(4, np.float32)}, "bias of shape"),
    ],
)
def test_input_errors(function, x, kernel, options, message):
    with pytest.raises(InputError, match=message) as error:
        function(np.zeros(x, np.float32), np.zeros(kernel, np.float32), **options)
    assert "\n" not in str(error.value)
