"""Initializers: moments at four sigma, orthogonality over any shape, PyTorch's numbers, types, transforms, errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import helpers
from deepjax import functional, initializers
from deepjax.errors import InputError

KEY = jax.random.key(0)


def draw(init, *shape_and_dtype):
    """The initializer under jit, which compiles once and not operation by operation."""
    return jax.jit(lambda key: init(key, *shape_and_dtype))(KEY)


few = settings(max_examples=6, deadline=None, derandomize=True)
sizes = st.integers(1, 12)
windows = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)

# family -> variance from (fan in, fan out)
VARIANCE = {
    "lecun": lambda i, o: 1 / i,
    "xavier": lambda i, o: 2 / (i + o),
    "he": lambda i, o: 2 / i,
}
# distribution -> its name in scipy, at variance 1
STANDARD = {
    "normal": stats.norm(),
    "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)),
    "truncated_normal": stats.truncnorm(-2, 2, scale=1 / stats.truncnorm(-2, 2).std()),
}
FANS = {  # kernel shape -> fan in, fan out
    (200, 300): (200, 300),
    (7, 32, 128): (7 * 32, 7 * 128),
    (5, 3, 32, 128): (15 * 32, 15 * 128),
    (3, 2, 2, 16, 64): (12 * 16, 12 * 64),
}


def assert_moments(sample, variance, distribution="normal"):
    """Mean, variance and fourth moment at four sigma, by the distribution's own moments up to the eighth."""
    sample = np.asarray(sample, np.float64).ravel() / math.sqrt(variance)
    moment = STANDARD[distribution].moment
    for power in (1, 2, 4):
        deviation = math.sqrt((moment(2 * power) - moment(power) ** 2) / sample.size)
        assert abs(np.mean(sample**power) - moment(power)) < 4 * deviation, power
    assert abs(sample).max() <= STANDARD[distribution].support()[1] * (1 + 1e-6)


# Scales and fans


def draw_all(initializers_and_shapes):
    """{name: kernel} from {name: (initializer, shape)}, in one program."""
    run = jax.jit(lambda key: {name: init(key, shape) for name, (init, shape) in initializers_and_shapes.items()})
    return run(KEY)


def test_variance_scaling():
    names = [(family, distribution, shape) for family in VARIANCE for distribution in STANDARD for shape in FANS]
    kernels = draw_all({n: (getattr(initializers, f"{n[0]}_{n[1]}")(), n[2]) for n in names})
    for (family, distribution, shape), kernel in kernels.items():
        assert kernel.shape == shape
        assert_moments(kernel, VARIANCE[family](*FANS[shape]), distribution)


@pytest.mark.parametrize("distribution", STANDARD)
def test_he_follows_mode_and_slope(distribution):
    shape, init = (3, 3, 20, 150), getattr(initializers, f"he_{distribution}")
    names = [(mode, slope) for mode in ("fan_in", "fan_out") for slope in (0.0, 0.2, 1.0, -3.0)]
    kernels = draw_all({(mode, slope): (init(mode=mode, slope=slope), shape) for mode, slope in names})
    for (mode, slope), kernel in kernels.items():
        fan = {"fan_in": 9 * 20, "fan_out": 9 * 150}[mode]
        assert_moments(kernel, 2 / (1 + slope**2) / fan, distribution)


def test_scales():
    shape = (300, 200)
    assert_moments(draw(initializers.gaussian(0.03), shape), 0.03**2)
    assert_moments(draw(initializers.truncated_gaussian(0.03), shape), 0.03**2, "truncated_normal")
    assert_moments(draw(initializers.uniform(0.6), shape), 0.6**2 / 3, "uniform")
    for init in (initializers.gaussian(1), initializers.uniform(1), initializers.truncated_gaussian(1)):
        assert init(KEY, (5,)).shape == (5,)  # of any shape: these have no fans
        assert init(KEY, ()).shape == ()


@pytest.mark.parametrize("name", ["gaussian", "uniform", "truncated_gaussian", "he_normal", "xavier_uniform"])
def test_bfloat16_has_the_moments_too(name):
    """Drawn by JAX in bfloat16, a uniform's mean is -1/128 and a normal ends at three deviations."""
    init = getattr(initializers, name)
    init = init(0.5) if name in ("gaussian", "uniform", "truncated_gaussian") else init()
    kernel = jax.jit(lambda: init(KEY, (1000, 400), jnp.bfloat16))()
    assert kernel.dtype == jnp.bfloat16
    exact = np.asarray(jax.jit(lambda: init(KEY, (1000, 400), jnp.float32))())
    assert_allclose(np.float32(kernel), exact, rtol=2**-8 + 1e-6)  # rounded once
    assert abs(np.float64(kernel).mean() / np.float64(kernel).std()) < 4 / math.sqrt(kernel.size)


def test_constants():
    assert (initializers.zeros(KEY, (2, 3)) == 0).all()
    assert (initializers.ones(KEY, (2, 3)) == 1).all()
    assert (draw(initializers.constant(2.5), (2, 3)) == 2.5).all()


def test_other_layouts_by_jaxs_axes():
    """[features_out, features_in], as PyTorch keeps them."""
    kernel = draw(initializers.he_normal(in_axis=-1, out_axis=-2), (300, 200))
    assert_moments(kernel, 2 / 200)
    with pytest.raises(InputError, match="groups 2 must be 1 with in_axis"):
        initializers.he_normal(in_axis=0, groups=2)


# Groups

GROUPED = [(1, 8, 24), (4, 8, 24), (8, 8, 16)]  # groups, features in, features out; the last is depthwise


@pytest.mark.parametrize(
    ("mode", "groups", "features_in", "features"),
    [("fan_in", *GROUPED[1]), ("fan_in", *GROUPED[2]), ("fan_out", *GROUPED[0]), ("fan_out", *GROUPED[1])],
)
def test_a_grouped_convolution_keeps_variance(mode, groups, features_in, features):
    """fan_in keeps it forward, fan_out backward: the mean square of a pixel far from the border, over 2,000 kernels."""
    shape = (3, 3, features_in // groups, features)
    init = initializers.he_normal(mode=mode, slope=1.0, groups=groups)

    @jax.jit
    @jax.vmap
    def mean_square(key):
        key, data = jax.random.split(key)
        kernel = init(key, shape)

        def convolve(x):
            return functional.conv(x, kernel, padding=1, groups=groups)[0]

        x = jax.random.normal(data, (1, 5, 5, features_in if mode == "fan_in" else features))
        if mode == "fan_out":
            _, back = jax.vjp(convolve, jnp.zeros((1, 5, 5, features_in)))
            y = back(x[0])[0][0]
        else:
            y = convolve(x)
        return (y[2, 2] ** 2).mean()

    squares = np.asarray(mean_square(jax.random.split(KEY, 2000)), np.float64)
    assert abs(squares.mean() - 1) < 4 * squares.std() / math.sqrt(squares.size)


def test_grouped_fans():
    for groups, features_in, features in GROUPED:
        shape = (20, 10, features_in // groups, features)
        fan_in, fan_out = 200 * features_in // groups, 200 * features // groups
        kernels = draw_all({
            "normal": (initializers.xavier_normal(groups=groups), shape),
            "uniform": (initializers.xavier_uniform(groups=groups), shape),
            "fan_out": (initializers.he_uniform(mode="fan_out", groups=groups), shape),
        })  # fmt: skip
        for distribution in ("normal", "uniform"):
            assert_moments(kernels[distribution], 2 / (fan_in + fan_out), distribution)
        assert_moments(kernels["fan_out"], 2 / fan_out, "uniform")
        parts = np.split(np.asarray(kernels["fan_out"]), groups, axis=-1)
        assert all(not np.allclose(parts[0], part) for part in parts[1:])


def test_without_groups_fans_are_pytorchs():
    torch = pytest.importorskip("torch")
    weight = torch.empty(24, 2, 3, 3)  # a convolution with 4 groups
    fans = torch.nn.init._calculate_fan_in_and_fan_out(weight)
    ours = [
        float(abs(draw(initializers.he_uniform(mode=mode), (3, 3, 2, 24))).max()) for mode in ("fan_in", "fan_out")
    ]  # of 432 numbers, the highest comes near sqrt(6 / fan)
    assert_allclose(ours, [math.sqrt(6 / fan) for fan in fans], rtol=0.03)


# Orthogonality


def assert_semi_orthogonal(matrix, gain=1.0, atol=2e-5):
    matrix = np.asarray(matrix, np.float64) / gain
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    assert_allclose(short @ short.T, np.eye(len(short)), atol=atol)


@few
@given(st.lists(st.integers(1, 4), max_size=3).map(tuple), sizes, sizes, st.floats(0.1, 10))
def test_orthogonal(window, features_in, features, gain):
    kernel = np.asarray(draw(initializers.orthogonal(gain), (*window, features_in, features)))
    assert kernel.shape == (*window, features_in, features)
    assert_semi_orthogonal(kernel.reshape(-1, features), gain)


@few
@given(windows, sizes, sizes)
def test_delta_orthogonal(window, a, b):
    features_in, features = sorted((a, b))
    kernel = np.asarray(draw(initializers.delta_orthogonal(2.0), (*window, features_in, features)))
    centre = kernel[tuple((size - 1) // 2 for size in window)]
    assert_semi_orthogonal(centre, 2.0)
    assert (kernel != 0).sum() == (centre != 0).sum()


@pytest.mark.parametrize("window", [(3,), (4, 5), (2, 1, 3)])
def test_a_delta_orthogonal_convolution_keeps_norms(window):
    (x,) = helpers.random_arrays(0, (2, *[6] * len(window), 3))

    @jax.jit
    def convolve(x):
        kernel = initializers.delta_orthogonal(2.0)(KEY, (*window, 3, 5))
        return functional.conv(x, kernel, padding="SAME")  # even windows too

    assert_allclose(np.square(convolve(x)).sum(-1), 4 * np.square(x).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("window", [(), (3,), (3, 4)])
def test_groups_are_orthogonal_each(window):
    init = initializers.delta_orthogonal if window else initializers.orthogonal
    kernel = draw(init(groups=3), (*window, 4, 15))
    centre = kernel[tuple((size - 1) // 2 for size in window)]
    blocks = np.split(np.asarray(centre), 3, axis=-1)
    for block in blocks:
        assert_semi_orthogonal(block)
    assert not np.allclose(blocks[0], blocks[1])
    assert_allclose(np.square(kernel).sum(), np.square(centre).sum())


def test_orthogonal_is_uniform():
    """Entries of a Haar matrix have mean 0 and variance 1 / n; raw QR's diagonal would be of one sign."""
    kernels = jax.jit(jax.vmap(lambda key: initializers.orthogonal()(key, (4, 4))))(jax.random.split(KEY, 4000))
    kernels = np.asarray(kernels, np.float64)
    mean, square = kernels.mean(0), (kernels**2).mean(0)
    assert (abs(mean) < 4.5 * math.sqrt(1 / 4 / 4000)).all()
    assert (abs(square - 1 / 4) < 4.5 * (kernels**2).std(0) / math.sqrt(4000)).all()


def test_orthogonal_matches_pytorchs_meaning():
    """Both make the same matrix of a convolution's kernel orthogonal: one row per output feature."""
    torch = pytest.importorskip("torch")
    kernel = np.array(draw(initializers.orthogonal(1.5), (3, 3, 2, 8)))
    theirs = torch.nn.init.orthogonal_(torch.empty(8, 2, 3, 3), gain=1.5).reshape(8, -1)
    ours = torch.from_numpy(kernel).permute(3, 2, 0, 1).reshape(8, -1)
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-5, rtol=0)


# Identities


def test_identity_is_torchs():
    torch = pytest.importorskip("torch")
    shapes = [(4, 4), (3, 5), (5, 3)]
    for shape, ours in draw_all({shape: (initializers.identity(2.0), shape) for shape in shapes}).items():
        assert_array_equal(np.asarray(ours) / 2, torch.nn.init.eye_(torch.empty(shape[::-1])).numpy().T)


def test_dirac_is_torchs():
    torch = pytest.importorskip("torch")
    sizes = [(1, 3, 3), (1, 5, 2), (1, 2, 5), (3, 6, 12), (2, 8, 4)]  # groups, features in, features out
    cases = {
        (gain, groups, (*window, features_in // groups, features))
        for gain in (1.0, 0.5)
        for groups, features_in, features in sizes
        for window in ((3,), (4, 5), (1, 3, 2))
    }
    for (gain, groups, shape), ours in draw_all({c: (initializers.dirac(c[0], c[1]), c[2]) for c in cases}).items():
        *window, part, features = shape
        weight = torch.nn.init.dirac_(torch.empty(features, part, *window), groups)
        assert_array_equal(ours, gain * np.moveaxis(weight.numpy(), (0, 1), (-1, -2)))


def test_a_dirac_convolution_passes_its_input():
    x = np.random.default_rng(0).standard_normal((2, 5, 5, 6), np.float32)

    @jax.jit
    def run(x):
        results = []
        for groups in (1, 2, 6):
            for window, padding in (((3, 5), "SAME"), ((4, 2), [(2, 1), (1, 0)])):
                kernel = initializers.dirac(groups=groups)(KEY, (*window, 6 // groups, 6))
                results.append(functional.conv(x, kernel, padding=padding, groups=groups))
        return results

    for y in run(x):
        assert_array_equal(y, x)


# Looks linear


@few
@given(sizes, sizes)
def test_looks_linear_dense(half, features):
    kernel = np.asarray(draw(initializers.looks_linear(), (2 * half, features)))
    core = kernel[::2]
    assert_semi_orthogonal(core)
    x = np.random.default_rng(0).standard_normal((5, half)).astype(np.float32)
    y = np.maximum(x, 0) @ core + np.maximum(-x, 0) @ kernel[1::2]
    assert_allclose(y, x @ core, atol=1e-5)
    if features >= half:
        assert_allclose(np.square(y).sum(-1), np.square(x).sum(-1), rtol=1e-4)


@pytest.mark.parametrize(
    ("core", "groups"),
    [(None, 1), (initializers.he_normal(), 1), (initializers.delta_orthogonal(groups=2), 2)],
)
def test_looks_linear_convolution(core, groups):
    x, z = helpers.random_arrays(0, *[(2, 5, 5, 6)] * 2)

    @jax.jit
    def run(x, z):
        kernel = initializers.looks_linear(core)(KEY, (3, 3, 12 // groups, 8))
        layer = [functional.conv(functional.crelu(v), kernel, groups=groups) for v in (x, z, x - 2 * z)]
        return *layer, functional.conv(x, kernel[:, :, ::2], groups=groups)

    of_x, of_z, of_both, linear = map(np.asarray, run(x, z))
    assert_allclose(of_both, of_x - 2 * of_z, atol=1e-4)
    assert_allclose(of_x, linear, atol=1e-5)
    if core is None or groups == 2:
        assert_allclose(np.square(of_x).sum(-1), np.square(x).sum(-1), rtol=1e-4)


def test_fifty_looks_linear_layers_are_an_isometry():
    (x,) = helpers.random_arrays(0, (3, 16))

    @jax.jit
    def run(x):
        kernels = jax.vmap(lambda key: initializers.looks_linear()(key, (32, 16)))(jax.random.split(KEY, 50))
        return jax.lax.scan(lambda x, kernel: (functional.crelu(x) @ kernel, None), x, kernels)[0]

    y = np.asarray(run(x))
    assert_allclose(y @ y.T, x @ x.T, atol=1e-3)


# Sparse


@few
@given(st.lists(st.integers(1, 3), max_size=2).map(tuple), st.integers(1, 9), sizes, st.data())
def test_sparse_has_k_connections(window, features_in, features, data):
    rows = math.prod(window) * features_in
    k = data.draw(st.integers(1, rows))
    kernel = np.asarray(draw(initializers.sparse(k), (*window, features_in, features)))
    assert ((kernel.reshape(rows, features) != 0).sum(0) == k).all()


def test_sparse_moments_and_places():
    kernel = np.asarray(draw(initializers.sparse(scale=0.5), (60, 4000)))
    assert_moments(kernel[kernel != 0], 0.5**2)
    share, expected = (kernel != 0).mean(1), 15 / 60  # every input is as likely
    assert (abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 4000)).all()


# Types, transforms, keys

FACTORIES = {name: getattr(initializers, name) for name in initializers.__all__ if name not in ("zeros", "ones")}
ARGUMENTS = {"gaussian": [0.5], "uniform": [0.5], "truncated_gaussian": [0.5], "constant": [0.5], "sparse": [3]}
FIXED = ("zeros", "ones", "constant", "identity", "dirac")


def an_initializer(name):
    return getattr(initializers, name) if name not in FACTORIES else FACTORIES[name](*ARGUMENTS.get(name, []))


@functools.cache
def drawn_in_each_way():
    """{name: (two keys by vmap, the second alone, alone again, in bfloat16, in float64)} of every initializer."""
    inits = {name: (an_initializer(name), shape_of(name)) for name in initializers.__all__}

    def every(function):
        return {name: function(init, shape) for name, (init, shape) in inits.items()}

    @jax.jit
    def run(keys):
        many = every(lambda init, shape: jax.vmap(lambda key: init(key, shape))(keys))
        coarse = every(lambda init, shape: init(keys[1], shape, jnp.bfloat16))
        return many, every(lambda init, shape: init(keys[1], shape)), coarse

    keys = jax.random.split(KEY, 2)
    many, alone, coarse = jax.device_get(run(keys))
    again = jax.device_get(run(keys)[1])
    with jax.enable_x64(True):
        fine = jax.device_get(jax.jit(lambda: every(lambda init, shape: init(KEY, shape, jnp.float64)))())
    return {name: tuple(found[name] for found in (many, alone, again, coarse, fine)) for name in inits}


def shape_of(name):
    return (8, 8) if name == "identity" else (3, 8, 8)


@pytest.mark.parametrize("name", initializers.__all__)
def test_types_transforms_and_keys(name):
    init, shape = an_initializer(name), shape_of(name)
    many, alone, again, coarse, fine = drawn_in_each_way()[name]
    assert (many.shape, many.dtype) == ((2, *shape), jnp.float32)
    assert_allclose(many[1], alone, atol=1e-5)
    assert_array_equal(again, alone)
    assert (many[0] == many[1]).all() == (name in FIXED)
    assert coarse.dtype == jnp.bfloat16
    assert_allclose(np.float32(coarse), alone, atol=1e-2)
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda: init(KEY, shape, jnp.float32)).dtype == jnp.float32
        assert jax.eval_shape(lambda: init(KEY, shape)).dtype == jnp.float64
    assert fine.dtype == np.float64
    if name not in FIXED:
        assert (fine != np.float32(fine)).any()  # no float32 in disguise


def test_orthogonal_is_as_exact_as_its_type():
    with jax.enable_x64(True):
        kernel = draw(initializers.orthogonal(), (20, 30), jnp.float64)
        assert_semi_orthogonal(kernel, atol=1e-13)
    assert_semi_orthogonal(np.float64(draw(initializers.orthogonal(), (20, 30), jnp.bfloat16)), atol=2e-2)


# Errors


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("gaussian", "scale"),
        ("uniform", "scale"),
        ("truncated_gaussian", "scale"),
        ("sparse", "scale"),
        ("orthogonal", "gain"),
        ("delta_orthogonal", "gain"),
        ("identity", "gain"),
        ("dirac", "gain"),
    ],
)
def test_scale_and_gain_must_be_positive(name, argument):
    for value in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"{name}: {argument} {value} must be"):
            getattr(initializers, name)(**{argument: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: initializers.he_normal(slope=float("nan")), "he_normal: slope nan must be finite"),
        (lambda: initializers.he_uniform(mode="fan_inn"), "mode 'fan_inn' is unknown; did you mean 'fan_in'"),
        (lambda: initializers.he_truncated_normal(mode=None), "mode None is unknown; choose from fan_in, fan_out"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("init", "shape", "message"),
    [
        (initializers.he_normal(), (5,), r"he_normal: shape \(5,\) must be \[\*window"),
        (initializers.lecun_normal(), (0, 5), r"lecun_normal: shape \(0, 5\)"),
        (initializers.orthogonal(), (), "orthogonal: shape"),
        (initializers.xavier_normal(groups=3), (3, 4, 8), "xavier_normal: groups 3 must divide the 8 features out"),
        (initializers.he_normal(groups=0), (3, 4, 8), "groups 0"),
        (initializers.he_normal(groups=-2), (3, 4, 8), "groups -2"),
        (initializers.delta_orthogonal(), (3, 5, 4), r"shape \(3, 5, 4\).*more features in than out.*use orthogonal"),
        (initializers.delta_orthogonal(groups=2), (3, 5, 8), r"shape \(3, 5, 4\) \(of a group\)"),
        (initializers.delta_orthogonal(), (5, 4), "must have 1 to 3 window axes; without, use orthogonal"),
        (initializers.delta_orthogonal(), (1, 1, 1, 1, 4, 4), "1 to 3 window axes"),
        (initializers.identity(), (3, 4, 4), "for a convolution, use dirac"),
        (initializers.dirac(), (4, 4), "without a window, use identity"),
        (initializers.dirac(groups=3), (3, 4, 4), "dirac: groups 3"),
        (
            initializers.looks_linear(),
            (5, 4),
            "looks_linear: shape .* must have an even number of features in",
        ),
        (initializers.looks_linear(), (3, 12, 4), "use orthogonal"),
        (initializers.sparse(), (14, 4), "sparse: k 15 must be from 1 to 14"),
        (initializers.sparse(0), (14, 4), "sparse: k 0"),
    ],
)
def test_bad_shapes(init, shape, message):
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: init(KEY, shape))  # while tracing, before any computation


def test_dtype_must_be_floating():
    with pytest.raises(InputError, match="dtype int32 .*; try float32"):
        draw(initializers.he_normal(), (3, 4), jnp.int32)
