"""Initializers: moments at four sigma, PyTorch's fans, types, transforms, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from deepjax import functional, initializers
from deepjax.errors import InputError
from helpers import draw_initializer, draw_initializers

KEY = jax.random.key(0)


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


def test_variance_scaling():
    names = [(family, kind, shape) for family in VARIANCE for kind in STANDARD for shape in ((200, 300), (7, 32, 128))]
    names += [("he", "normal", (5, 3, 32, 128)), ("xavier", "normal", (3, 2, 2, 16, 64))]
    kernels = draw_initializers({n: (getattr(initializers, f"{n[0]}_{n[1]}")(), n[2]) for n in names})
    for (family, distribution, shape), kernel in kernels.items():
        assert kernel.shape == shape
        assert_moments(kernel, VARIANCE[family](*FANS[shape]), distribution)


@pytest.mark.parametrize("distribution", STANDARD)
def test_he_follows_mode_and_slope(distribution):
    shape, init = (3, 3, 20, 150), getattr(initializers, f"he_{distribution}")
    names = [(mode, slope) for mode in ("fan_in", "fan_out") for slope in (0.2, -3.0)]
    kernels = draw_initializers({(mode, slope): (init(mode=mode, slope=slope), shape) for mode, slope in names})
    for (mode, slope), kernel in kernels.items():
        fan = {"fan_in": 9 * 20, "fan_out": 9 * 150}[mode]
        assert_moments(kernel, 2 / (1 + slope**2) / fan, distribution)


def test_scales():
    scales = {
        "normal": (initializers.gaussian, 0.03, 0.03**2),
        "truncated_normal": (initializers.truncated_gaussian, 0.03, 0.03**2),
        "uniform": (initializers.uniform, 0.6, 0.6**2 / 3),
    }
    kernels = draw_initializers({name: (make(scale), (300, 200)) for name, (make, scale, _) in scales.items()})
    for name, (make, _, variance) in scales.items():
        assert_moments(kernels[name], variance, name)
        for shape in ((5,), ()):  # of any shape: these have no fans
            assert jax.eval_shape(lambda shape=shape, make=make: make(1.0)(KEY, shape)).shape == shape


@pytest.mark.parametrize("name", ["gaussian", "uniform", "truncated_gaussian", "xavier_uniform"])
def test_bfloat16_has_the_moments_too(name):
    """Drawn by JAX in bfloat16, a uniform's mean is -1/128 and a normal ends at three deviations."""
    init = getattr(initializers, name)
    init = init(0.5) if name in ("gaussian", "uniform", "truncated_gaussian") else init()
    kernel, exact = jax.jit(lambda: [init(KEY, (1000, 400), dtype) for dtype in (jnp.bfloat16, jnp.float32)])()
    assert kernel.dtype == jnp.bfloat16
    assert_allclose(np.float32(kernel), np.asarray(exact), rtol=2**-8 + 1e-6)  # rounded once
    assert abs(np.float64(kernel).mean() / np.float64(kernel).std()) < 4 / math.sqrt(kernel.size)


def test_constants():
    inits = {0: initializers.zeros, 1: initializers.ones, 2.5: initializers.constant(2.5)}
    for value, kernel in draw_initializers({value: (init, (2, 3)) for value, init in inits.items()}).items():
        assert (kernel == value).all()


def test_other_layouts_by_jaxs_axes():
    """[features_out, features_in], as PyTorch keeps them."""
    kernel = draw_initializer(initializers.he_normal(in_axis=-1, out_axis=-2), (300, 200))
    assert_moments(kernel, 2 / 200)
    with pytest.raises(InputError, match="groups 2 must be 1 with in_axis"):
        initializers.he_normal(in_axis=0, groups=2)


# Groups

GROUPED = [(1, 8, 24), (4, 8, 24), (8, 8, 16)]  # groups, features in, features out; the last is depthwise


@pytest.mark.parametrize(("mode", "case"), [("fan_in", 1), ("fan_out", 1), ("fan_out", 2)])
def test_a_grouped_convolution_keeps_variance(mode, case):
    """fan_in keeps it forward, fan_out backward: the mean square of a pixel far from the border, over 2,000 kernels."""
    groups, features_in, features = GROUPED[case]
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
        kernels = draw_initializers({
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
    modes = ("fan_in", "fan_out")
    kernels = draw_initializers({mode: (initializers.he_uniform(mode=mode), (3, 3, 2, 24)) for mode in modes})
    ours = [abs(kernels[mode]).max() for mode in modes]  # of 432 numbers, the highest comes near sqrt(6 / fan)
    assert_allclose(ours, [math.sqrt(6 / fan) for fan in fans], rtol=0.03)


# Sparse


def test_sparse_has_k_connections():
    cases = [(1, (1, 1)), (9, (9, 4)), (3, (9, 12)), (5, (3, 4, 7)), (17, (3, 2, 3, 5))]
    for (k, shape), kernel in draw_initializers(
        {(k, shape): (initializers.sparse(k), shape) for k, shape in cases}
    ).items():
        assert ((kernel.reshape(-1, shape[-1]) != 0).sum(0) == k).all()


def test_sparse_moments_and_places():
    kernel = np.asarray(draw_initializer(initializers.sparse(scale=0.5), (60, 4000)))
    assert_moments(kernel[kernel != 0], 0.5**2)
    share, expected = (kernel != 0).mean(1), 15 / 60  # every input is as likely
    assert (abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 4000)).all()


# Types, transforms, keys

FACTORIES = {name: getattr(initializers, name) for name in initializers.__all__ if name not in ("zeros", "ones")}
ARGUMENTS = {"gaussian": [0.5], "uniform": [0.5], "truncated_gaussian": [0.5], "constant": [0.5], "sparse": [3]}
SCALED = {name for name in initializers.__all__ if name.split("_")[0] in ("he", "xavier", "lecun")}  # of one kind
FIXED = ("zeros", "ones", "constant", "identity", "dirac")


def an_initializer(name):
    return getattr(initializers, name) if name not in FACTORIES else FACTORIES[name](*ARGUMENTS.get(name, []))


ONE_OF_EACH = [*sorted(set(initializers.__all__) - SCALED), "he_normal", "xavier_uniform", "lecun_truncated_normal"]


@pytest.mark.parametrize("name", initializers.__all__)
def test_types(name):
    init, shape = an_initializer(name), (8, 8) if name == "identity" else (3, 8, 8)

    def dtype(*wanted):
        return jax.eval_shape(lambda: init(KEY, shape, *wanted)).dtype

    assert [dtype(), dtype(jnp.bfloat16)] == [jnp.float32, jnp.bfloat16]
    with jax.enable_x64(True):
        assert [dtype(), dtype(jnp.float32)] == [jnp.float64, jnp.float32]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_precision_transforms_and_keys(name):
    init, shape = an_initializer(name), (8, 8) if name == "identity" else (3, 8, 8)
    keys = jax.random.split(KEY, 2)

    @jax.jit
    def run(keys):
        many = jax.vmap(lambda key: init(key, shape, jnp.float32))(keys)
        return many, *(init(keys[1], shape, dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.float64))

    with jax.enable_x64(True):
        many, alone, coarse, fine = map(np.asarray, run(keys))
        assert_array_equal(run(keys)[1], alone)
    assert many.shape == (2, *shape)
    assert_allclose(many[1], alone, atol=1e-5)
    assert (many[0] == many[1]).all() == (name in FIXED)
    assert_allclose(np.float32(coarse), alone, atol=1e-2)
    if name not in FIXED:
        assert (fine != np.float32(fine)).any()  # no float32 in disguise


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
        draw_initializer(initializers.he_normal(), (3, 4), jnp.int32)
