"""Every convolution, in every transformation, against the convolution and the gradients of `jax.lax`.

Compilation takes most of the time, so one program holds all cases of a test.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose

from deepjax.functional import conv, conv_transpose, native
from deepjax.functional.convolution.canonical import parts_of_batch
from deepjax.functional.convolution.form import MAX_TAPS, conv_form, transposed_form
from deepjax.functional.convolution.maps import TABLE
from helpers import lax_conv, random_arrays


def lax_transpose(x, kernel, *, size, **options):
    """The reference of `conv_transpose`, for one group or depthwise: JAX's gradient of a convolution from y to x."""
    exchanged = kernel if "groups" in options else kernel.swapaxes(-1, -2)
    y = jnp.zeros((len(x), *size, kernel.shape[-1]), x.dtype)
    return jax.vjp(lambda y: lax_conv(y, exchanged, **options), y)[1](x)[0]


@pytest.fixture
def without_native(monkeypatch):
    """The lowerings in JAX, also where the package deepjax_native is installed."""
    monkeypatch.setattr(native, "package", lambda: None)


X = (2, 6, 5, 4)
STRIDED = {"stride": 2, "padding": 1}
CASES = {  # name -> (function, reference, shape of the kernel), for an x of 6x5 pixels with 4 features
    "pointwise": (partial(conv, stride=2), partial(lax_conv, stride=2), (1, 1, 4, 3)),
    "window": (partial(conv, stride=2), partial(lax_conv, stride=2), (3, 3, 4, 3)),
    "grouped": (partial(conv, **STRIDED, groups=2), partial(lax_conv, **STRIDED, groups=2), (3, 3, 2, 6)),
    "depthwise": (partial(conv, groups=4), partial(lax_conv, groups=4), (3, 2, 1, 8)),
    "transposed": (
        partial(conv_transpose, **STRIDED, output_padding=1),
        partial(lax_transpose, **STRIDED, size=(12, 10)),
        (3, 3, 4, 3),
    ),
    "transposed depthwise": (
        partial(conv_transpose, **STRIDED, groups=4),
        partial(lax_transpose, **STRIDED, groups=4, size=(11, 9)),
        (3, 3, 1, 4),
    ),
}
KINDS = {name: CASES[name] for name in ("window", "grouped", "depthwise", "transposed")}


def assert_all_agree(make, *arguments, tolerance=2e-5, cases=CASES):
    """`make(function, kernel, *arguments)` gives equal arrays for the function and the reference of every case."""

    @jax.jit
    def both(kernels, *arguments):
        return {
            name: [make(f, kernels[name], *arguments) for f in (ours, reference)]
            for name, (ours, reference, _) in cases.items()
        }

    kernels = {name: random_arrays(1, shape)[0] for name, (_, _, shape) in cases.items()}
    for name, (ours, reference) in both(kernels, *arguments).items():
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), name
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert_allclose(a, b, rtol=tolerance, atol=tolerance * abs(b).max(initial=1e-6), err_msg=name)


def value_and_gradients(function, kernel, x):
    y, transpose = jax.vjp(function, x, kernel)
    return y, *transpose(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_every_dtype(dtype):
    with jax.enable_x64(dtype == jnp.float64):

        def cast(f, kernel, x):
            return value_and_gradients(f, kernel.astype(dtype), x.astype(dtype))

        assert_all_agree(cast, *random_arrays(0, X), tolerance=4 * float(jnp.finfo(dtype).eps) + 1e-13)


def test_scan_with_remat():
    def loss(function, kernel, x):
        @jax.checkpoint
        def block(scale, x):
            y = function(x, scale * kernel)
            return scale + 0.1 * jnp.tanh(y).mean(), jnp.square(y).mean()

        return lax.scan(block, jnp.ones(()), x)[1].sum()

    def gradients(function, kernel, x):
        return jax.value_and_grad(partial(loss, function), argnums=(0, 1))(kernel, x)

    assert_all_agree(gradients, *random_arrays(0, (3, *X)))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap(axes):
    def gradients(function, kernel, x):
        kernels = jnp.stack([kernel, 2 * kernel, kernel - 1]) if axes[0] == 0 else kernel
        gradient = jax.grad(lambda kernel, x: (function(x, kernel) ** 2).sum(), argnums=(0, 1))
        return jax.vmap(gradient, axes)(kernels, x if axes[1] == 0 else x[0])

    assert_all_agree(gradients, *random_arrays(0, (3, *X)), cases=CASES if axes == (0, 0) else KINDS)


def test_second_order():
    def curvature(function, kernel, x, direction):
        def slope(kernel, x):
            gk, gx = jax.grad(lambda k, x: jnp.tanh(function(x, k)).sum(), argnums=(0, 1))(kernel, x)
            return jnp.square(gk).sum() + (gx * direction).sum()

        return jax.grad(slope, argnums=(0, 1))(kernel, x)

    assert_all_agree(curvature, *random_arrays(0, X, X), tolerance=1e-4, cases=KINDS)


def test_second_order_inside_a_scan_needs_no_derived_gradient(without_native):
    """All derivatives go through the door again: on CPU, every convolution of them is in canonical layout."""
    x, kernel = random_arrays(0, X, (3, 3, 4, 3))

    def slope(kernel):
        return jnp.square(jax.grad(lambda k: jnp.tanh(conv(x, k)).sum())(kernel)).sum()

    text = jax.jit(jax.grad(slope)).lower(kernel).as_text()
    assert text.count("stablehlo.convolution") == text.count("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]") > 3


def test_forward_mode():
    def slopes(function, kernel, x, direction):
        return jax.jvp(function, (x, kernel), (direction, jnp.cos(kernel)))

    assert_all_agree(slopes, *random_arrays(0, X, X))


def test_forward_over_reverse():
    """Products of the Hessian with a direction, gradients of two networks at once, a whole Hessian in the kernel."""

    def curvature(function, kernel, x, direction):
        def loss(kernel, x):
            return jnp.tanh(function(x, kernel)).sum()

        along = jax.jvp(jax.grad(loss, argnums=(0, 1)), (kernel, x), (kernel, direction))[1]
        few = jax.vmap(jax.grad(loss), (0, None))(jnp.stack([kernel, 2 * kernel]), x[:1])
        return *along, few

    assert_all_agree(curvature, *random_arrays(0, X, X), tolerance=1e-4)
    kernel, x = random_arrays(1, (2, 1, 1, 2), (1, 4, 3, 1))
    loss = lambda f, kernel: jnp.square(f(x, kernel)).sum() + jnp.tanh(f(x, kernel)).sum()  # noqa: E731
    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.jacfwd(f))):
        ours, reference = (jax.jit(hessian(partial(loss, f)))(kernel) for f in (conv, lax_conv))
        assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)


# Devices


def squares(function, x, kernel, bias):
    return (function(x, kernel, bias) ** 2).sum()


def cases_with_bias():
    arrays = {name: random_arrays(2, shape, shape[-1:]) for name, (_, _, shape) in CASES.items()}
    return [(CASES[name][0], kernel, bias) for name, (kernel, bias) in arrays.items()]


def all_gradients(x, parameters, functions):
    """[(dx, dkernel, dbias), ...] of all cases; one program for all of them."""
    gradients = [
        jax.grad(partial(squares, f), argnums=(0, 1, 2))(x, *p) for f, p in zip(functions, parameters, strict=True)
    ]
    return gradients


@cache
def of_one_device():
    """x of 16 examples, the function of all gradients, the parameters, and what one device makes of them."""
    (x,) = random_arrays(0, (16, *X[1:]))
    functions, *parameters = zip(*cases_with_bias(), strict=True)
    parameters = list(zip(*parameters, strict=True))
    run = partial(all_gradients, functions=functions)
    return x, run, parameters, jax.tree.map(np.asarray, jax.jit(run)(x, parameters))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_batch(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    x, run, parameters, expected = of_one_device()
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(parameters, NamedSharding(mesh, P()))
    ours = jax.jit(run)(sharded, replicated)
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=2e-3), ours, expected)


def test_shard_map_and_pmap_sum_over_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, run, parameters, expected = of_one_device()
    specs = ((P("data"), P()), [(P("data"), P(), P())] * len(parameters))
    mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs[0], out_specs=specs[1]))(x, parameters)
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=2e-3), mapped, expected)

    def summed(x, parameters):
        return lax.psum([gradients[1:] for gradients in run(x, parameters)], "data")

    pmapped = jax.pmap(summed, "data", in_axes=(0, None))(x.reshape(8, 2, *X[1:]), parameters)
    ours, wanted = jax.tree.map(lambda a: np.asarray(a)[3], pmapped), [gradients[1:] for gradients in expected]
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=2e-3), ours, wanted)


# The table


def test_all_rows_of_the_table_agree():
    """The rows of other platforms run on CPU too, which is the only test of them where there is no accelerator."""
    x, kernel, transposed, single = random_arrays(0, X, (3, 2, 4, 6), (3, 2, 2, 6), (3, 2, 1, 8))
    forms = [
        conv_form(x, kernel, None, (2, 3), ((2, 0), (0, 3)), (2, 1), 1),
        conv_form(x, kernel[:1, :1], None, 2, 0, 1, 1),
        conv_form(x, transposed, None, 2, 1, 1, 2),
        conv_form(x, single, None, (1, 2), (1, 0), (1, 2), 4),
        transposed_form(x, kernel, None, (1, 2), 1, (1, 1), (2, 2), 1),  # an output padding of the whole stride
    ]
    kinds = {form.kind: [maps for (_, kind), maps in TABLE.items() if kind == form.kind] for form in forms}
    assert set(kinds) == {"dense", "grouped", "depthwise"}

    @jax.jit
    def run():
        results = []
        for form in forms:
            size, out = (tuple(getattr(a, name) for a in form.axes) for name in ("size", "out"))
            features = 4 // form.groups
            x, dy = random_arrays(3, (2, *size, 4), (2, *out, 8))
            kernel = random_arrays(4, (*(a.window for a in form.axes), features, 8))[0]
            results.append(
                [
                    (m.forward(x, kernel, form), m.input_gradient(dy, kernel, form), m.kernel_gradient(x, dy, form))
                    for m in kinds[form.kind]
                ]
            )
        return results

    for first, second in run():
        jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-5), first, second)


def test_lowering_holds_one_platform(without_native):
    x, kernel, depthwise = random_arrays(0, X, (3, 3, 4, 3), (3, 3, 1, 4))
    canonical = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"

    def convolutions(platform, kernel, **options):
        gradient = jax.jit(jax.value_and_grad(lambda *a: conv(*a, **options).sum(), argnums=(0, 1)))
        text = gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        return text.count("stablehlo.convolution"), text.count(canonical)

    assert convolutions("cpu", kernel) == (3, 3)  # the output and two gradients
    total, derived = convolutions("cuda", kernel)
    assert (total, derived < 3) == (3, True)
    assert convolutions("cpu", depthwise, groups=4)[0] == 0  # a sum over taps
    assert convolutions("cuda", depthwise, groups=4)[0] == 3


def test_depthwise_windows_with_too_many_taps_are_grouped():
    x, kernel = random_arrays(0, (1, 14, 14, 2), (13, 13, 1, 2))
    assert conv_form(x, kernel, None, 1, "SAME", 1, 2).kind == "grouped"
    assert 12 * 12 > MAX_TAPS >= 11 * 11
    ours, reference = (jax.jit(partial(f, groups=2))(x, kernel) for f in (conv, lax_conv))
    assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)


def test_no_recompilation_outside_of_jit(caplog):
    x, kernel = random_arrays(0, X, (3, 3, 4, 5))
    gradient = jax.grad(lambda *a: conv(*a, stride=2).sum(), argnums=(0, 1))

    def compilations():
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            gradient(x, kernel)
        return [message for message in caplog.messages if "compilation" in message]

    assert compilations()
    assert not compilations()


def test_parts_divide_the_batch():
    assert [parts_of_batch(n) for n in (1, 16, 31, 32, 96, 100, 128, 512, 4096)] == [1, 1, 1, 2, 6, 5, 8, 16, 16]


@pytest.mark.parametrize("batch", [0, 1, 48])
def test_any_batch(batch):
    assert_all_agree(value_and_gradients, np.zeros((batch, *X[1:]), np.float32) + 0.5, cases=KINDS)


# Geometry


def random_geometry(rng):
    axes = int(rng.integers(1, 3))

    def draw(low, high, count=axes):
        return tuple(int(n) for n in rng.integers(low, high + 1, count))

    window, dilation, stride = draw(1, 4), draw(1, 3), draw(1, 4)
    padding = tuple(draw(0, 5, 2) for _ in range(axes))
    min_size = [max((w - 1) * d + 1 - sum(p), 1) for w, d, p in zip(window, dilation, padding, strict=True)]
    size = tuple(n + more for n, more in zip(min_size, draw(0, 5), strict=True))
    return {"size": size, "window": window, "stride": stride, "padding": padding, "dilation": dilation}


GEOMETRIES = [
    *({"size": (9, 12), "window": (k, k), "stride": s, "padding": p} for k, s, p in
      [(1, 1, "SAME"), (1, 2, "VALID"), (1, 3, 0), (1, 2, 1), (3, 1, "SAME"), (3, 2, "SAME"), (3, 3, "VALID"),
       (3, 2, 1), (5, 1, 1), (5, 2, "SAME"), (5, 3, 1)]),
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
]  # fmt: skip


def assert_geometries_agree(geometries, groups):
    @jax.jit
    def both(arrays):
        return [
            [value_and_gradients(partial(f, **options, groups=groups), kernel, x) for f in (conv, lax_conv)]
            for (x, kernel), options in zip(arrays, all_options, strict=True)
        ]

    arrays, all_options = [], []
    for i, geometry in enumerate(geometries):
        options = dict(geometry)
        size, window = options.pop("size"), options.pop("window")
        arrays.append(random_arrays(i, (2, *size, 2), (*window, 2 // groups, (1 + i % 3) * groups)))
        all_options.append(options)
    for geometry, (ours, reference) in zip(geometries, jax.tree.map(np.asarray, both(arrays)), strict=True):
        for name, a, b in zip(("y", "dx", "dkernel"), ours, reference, strict=True):
            assert_allclose(a, b, rtol=2e-5, atol=2e-5 * abs(b).max(), err_msg=f"{name} of {geometry}")


@pytest.mark.parametrize("part", range(3))
def test_any_geometry_of_dense_convolutions(part):
    rng = np.random.default_rng(part)
    assert_geometries_agree([*GEOMETRIES[part::3], *(random_geometry(rng) for _ in range(2))], groups=1)


@pytest.mark.parametrize("part", range(2))
def test_any_geometry_of_depthwise_convolutions(part):
    rng = np.random.default_rng(10 + part)
    assert_geometries_agree([*GEOMETRIES[12 + part : 16 : 2], *(random_geometry(rng) for _ in range(3))], groups=2)
