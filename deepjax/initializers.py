"""Initializers: (key, shape, dtype) -> array. JAX's own under the field's names, where JAX has them.

Every name but `zeros` and `ones` is a factory: `he_normal()` is the initializer. What cannot work raises InputError: an
argument in the factory, a shape in the initializer.

A kernel is [*window, features_in / groups, features_out]: [in, out] for a dense layer. Of its groups each is a kernel
of its own, [*window, features_in / groups, features_out / groups], and the groups lie side by side. So fan in is
window x features_in / groups, fan out is window x features_out / groups. A shape does not tell its groups: `groups`
says them where they matter. (PyTorch's fan out does not divide by groups; with groups=1 neither does ours.)

dtype None is JAX's default. Numbers of less than 32 bits are drawn in float32 and rounded: what JAX draws in bfloat16
itself has a mean of -1/128 (uniform) and ends at three deviations (normal), and QR does not run in it.
"""

import math

import jax
import jax.numpy as jnp
from jax.nn.initializers import constant, ones, zeros

from deepjax.errors import InputError, choices

# Of a given scale


def gaussian(scale):
    """Normal with mean 0 and standard deviation `scale`, for any shape.

    Raises InputError for a scale that is not a positive number.

    >>> round(float(gaussian(0.01)(jax.random.key(0), (500, 500)).std()), 4)
    0.01
    """
    _positive("gaussian", "scale", scale)
    return _initializer(jax.nn.initializers.normal(scale))


def uniform(scale):
    """Uniform on [-scale, scale), for any shape: standard deviation scale / sqrt(3).

    Raises InputError for a scale that is not a positive number.

    >>> round(float(uniform(0.3)(jax.random.key(0), (500, 500)).max()), 2)
    0.3
    """
    _positive("uniform", "scale", scale)
    return _initializer(lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -scale, scale))


def truncated_gaussian(scale):
    """Normal cut at two of its deviations and widened until its own is `scale`: no value beyond 2.274 scale.

    JAX's `truncated_normal` and PyTorch's `trunc_normal_` take the deviation before the cut, which lowers it to 0.8796
    of that. Raises InputError for a scale that is not a positive number.

    >>> sample = truncated_gaussian(0.01)(jax.random.key(0), (500, 500))
    >>> round(float(sample.std()), 4), round(float(abs(sample).max()), 3)
    (0.01, 0.023)
    """
    _positive("truncated_gaussian", "scale", scale)
    return _initializer(jax.nn.initializers.truncated_normal(scale / _TRUNCATED))


# What a standard normal's deviation becomes by cutting it at 2: variance 1 - 2 c density(c) / probability(|x| < c)
_TRUNCATED = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


# Of a variance that fans tell. `axes` are JAX's in_axis, out_axis and batch_axis, for kernels of another layout.


def lecun_normal(**axes):
    """Normal of variance 1 / fan_in: a linear layer keeps the variance. LeCun et al. 1998, Efficient BackProp, 4.6.

    >>> round(float(lecun_normal()(jax.random.key(0), (400, 1000)).std()), 2)
    0.05
    """
    return _variance_scaling("lecun_normal", 1, "fan_in", "normal", axes)


def lecun_uniform(**axes):
    """Uniform of variance 1 / fan_in, as `lecun_normal`: on [-sqrt(3 / fan_in), sqrt(3 / fan_in)).

    >>> round(float(lecun_uniform()(jax.random.key(0), (300, 1000)).max()), 2)
    0.1
    """
    return _variance_scaling("lecun_uniform", 1, "fan_in", "uniform", axes)


def lecun_truncated_normal(**axes):
    """Normal cut at two deviations, of variance 1 / fan_in after the cut, as `lecun_normal`. Flax's default.

    >>> round(float(lecun_truncated_normal()(jax.random.key(0), (400, 1000)).std()), 2)
    0.05
    """
    return _variance_scaling("lecun_truncated_normal", 1, "fan_in", "truncated_normal", axes)


def xavier_normal(*, groups=1, **axes):
    """Normal of variance 2 / (fan_in + fan_out): forward and backward as one. Glorot & Bengio 2010, eq. 12.

    >>> round(float(xavier_normal()(jax.random.key(0), (300, 500)).std()), 2)
    0.05
    """
    return _variance_scaling("xavier_normal", 1, "fan_avg", "normal", axes, groups)


def xavier_uniform(*, groups=1, **axes):
    """Uniform on +-sqrt(6 / (fan_in + fan_out)), as `xavier_normal`. Glorot & Bengio 2010, eq. 16.

    >>> round(float(xavier_uniform()(jax.random.key(0), (300, 300)).max()), 2)
    0.1
    """
    return _variance_scaling("xavier_uniform", 1, "fan_avg", "uniform", axes, groups)


def xavier_truncated_normal(*, groups=1, **axes):
    """Normal cut at two deviations, of variance 2 / (fan_in + fan_out) after the cut, as `xavier_normal`.

    >>> round(float(xavier_truncated_normal()(jax.random.key(0), (300, 500)).std()), 2)
    0.05
    """
    return _variance_scaling("xavier_truncated_normal", 1, "fan_avg", "truncated_normal", axes, groups)


def he_normal(*, mode="fan_in", slope=0.0, groups=1, **axes):
    """Normal of variance 2 / ((1 + slope^2) fan), for layers that (leaky) ReLUs feed. He et al. 2015, rectifiers.

    Args:
      mode: "fan_in" keeps the variance of the activations (eq. 10), "fan_out" that of the gradients (eq. 14).
      slope: of the leaky ReLU for negative inputs (eq. 15); 0 is ReLU, 1 the identity.
      groups: of the convolution; of effect with "fan_out".
      **axes: JAX's in_axis, out_axis, batch_axis.

    Raises:
      InputError: an unknown mode, a slope that is not finite, groups that do not divide the features.

    >>> round(float(he_normal()(jax.random.key(0), (800, 500)).std()), 2)
    0.05
    >>> depthwise = he_normal(mode="fan_out", groups=500)(jax.random.key(0), (20, 20, 1, 500))
    >>> round(float(depthwise.std()), 2)  # each input feature reaches 400 numbers
    0.07
    """
    return _he("he_normal", "normal", mode, slope, groups, axes)


def he_uniform(*, mode="fan_in", slope=0.0, groups=1, **axes):
    """Uniform on +-sqrt(6 / ((1 + slope^2) fan)): variance and arguments as of `he_normal`.

    >>> round(float(he_uniform()(jax.random.key(0), (600, 500)).max()), 2)
    0.1
    """
    return _he("he_uniform", "uniform", mode, slope, groups, axes)


def he_truncated_normal(*, mode="fan_in", slope=0.0, groups=1, **axes):
    """Normal cut at two deviations: variance after the cut, and arguments, as of `he_normal`.

    >>> round(float(he_truncated_normal()(jax.random.key(0), (800, 500)).std()), 2)
    0.05
    """
    return _he("he_truncated_normal", "truncated_normal", mode, slope, groups, axes)


def _he(name, distribution, mode, slope, groups, axes):
    if mode not in ("fan_in", "fan_out"):
        raise InputError(f"{name}: mode {mode!r} is unknown; {choices(str(mode), ('fan_in', 'fan_out'))}")
    if not math.isfinite(slope):
        raise InputError(f"{name}: slope {slope} must be finite; 0 is ReLU")
    return _variance_scaling(name, 2 / (1 + slope**2), mode, distribution, axes, groups)


def _variance_scaling(name, scale, mode, distribution, axes, groups=1):
    if axes and groups != 1:
        raise InputError(f"{name}: groups {groups} lie in the last axis, so they do not go with {', '.join(axes)}")
    return _kernel(name, jax.nn.initializers.variance_scaling(scale, mode, distribution, **axes), groups)


# Of a given structure


def orthogonal(gain=1.0, groups=1):
    """`gain` times a uniformly distributed matrix with orthonormal rows or columns, whichever are fewer.

    The matrix is [window x features_in / groups, features_out / groups], for any number of window axes, so each output
    feature's whole kernel is one column: that is PyTorch's `orthogonal_`. With no fewer features out than rows, a dense
    layer keeps norms (times gain); a convolution does so with `delta_orthogonal`. Saxe et al. 2014.

    Raises InputError for a gain that is not a positive number, or a shape of fewer than two axes.

    >>> kernel = orthogonal()(jax.random.key(0), (3, 5))
    >>> bool(jnp.allclose(kernel @ kernel.T, jnp.eye(3), atol=1e-5))
    True
    """
    _positive("orthogonal", "gain", gain)
    return _kernel("orthogonal", jax.nn.initializers.orthogonal(gain), groups)


def delta_orthogonal(gain=1.0, groups=1):
    """A convolution that keeps norms (times gain): an orthogonal centre tap, zeros around it. Xiao et al. 2018.

    For kernels of one to three window axes. An even window's tap is the one before the middle, which is where "SAME"
    padding aligns it with its pixel.

    Raises InputError for a gain that is not a positive number, another number of axes, fewer features out than in.

    >>> kernel = delta_orthogonal()(jax.random.key(0), (3, 3, 4, 6))
    >>> bool(jnp.allclose(kernel[1, 1] @ kernel[1, 1].T, jnp.eye(4), atol=1e-5)), bool(kernel[0].any())
    (True, False)
    """
    _positive("delta_orthogonal", "gain", gain)

    def draw(key, shape, dtype):
        if len(shape) not in (3, 4, 5):
            raise InputError(f"delta_orthogonal: shape {shape} needs one to three window axes; without, use orthogonal")
        if shape[-1] < shape[-2]:
            raise InputError(
                f"delta_orthogonal: shape {shape} (of a group) has more features in than out, so norms cannot be kept; "
                f"use orthogonal"
            )
        return jax.nn.initializers.delta_orthogonal(gain, dtype=dtype)(key, shape)

    return _kernel("delta_orthogonal", draw, groups)


def identity(gain=1.0):
    """`gain` times the identity, for a dense layer: as many features as there are on both sides pass, the rest are 0.

    Raises InputError for a gain that is not a positive number, or a shape that is not [features_in, features_out].

    >>> identity()(jax.random.key(0), (2, 3)).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    _positive("identity", "gain", gain)

    def draw(key, shape, dtype):
        del key
        if len(shape) != 2:
            raise InputError(
                f"identity: shape {shape} must be [features_in, features_out]; for a convolution, use dirac"
            )
        return gain * jnp.eye(*shape, dtype=dtype)

    return _kernel("identity", draw)


def dirac(gain=1.0, groups=1):
    """`gain` times the identity at the centre tap, for a convolution: PyTorch's `dirac_`, any number of window axes.

    In each group as many features as there are on both sides pass, the rest are 0. An even window has its tap behind
    the middle, at window // 2, as in PyTorch; there, padding (window // 2, window // 2 - 1) gives the identity.

    Raises InputError for a gain that is not a positive number, or a shape without a window.

    >>> dirac()(jax.random.key(0), (3, 2, 2))[1].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    _positive("dirac", "gain", gain)

    def draw(key, shape, dtype):
        del key
        if len(shape) < 3:
            raise InputError(f"dirac: shape {shape} must be [*window, features_in, features_out]; else, use identity")
        centre = tuple(size // 2 for size in shape[:-2])
        return jnp.zeros(shape, dtype).at[centre].set(gain * jnp.eye(*shape[-2:], dtype=dtype))

    return _kernel("dirac", draw, groups)


def looks_linear(core=None):
    """Mirrored weights W, -W for a layer that `crelu` feeds: together they are linear. Balduzzi et al. 2017.

    `crelu` gives the positive part of a feature, then its negative part, then those of the next feature. So rows 2q and
    2q + 1 of the kernel are W[q] and -W[q], and kernel(crelu(x)) = W max(x, 0) - W max(-x, 0) = W x.

    Args:
      core: draws W [*window, features_in / 2, features_out]; None: `orthogonal()` for a dense layer and
        `delta_orthogonal()` for a convolution, which keep norms. For a convolution with groups: one with these groups.

    Raises:
      InputError: an odd number of features in, or a shape that the core cannot have.

    >>> kernel = looks_linear()(jax.random.key(0), (6, 4))
    >>> bool((kernel[::2] == -kernel[1::2]).all())
    True
    """

    def draw(key, shape, dtype):
        *window, features_in, features = shape
        if features_in % 2:
            raise InputError(f"looks_linear: shape {shape} has {features_in} features in; crelu gives two per feature")
        init = core or (delta_orthogonal() if window else orthogonal())
        half = init(key, (*window, features_in // 2, features), dtype)
        return jnp.stack([half, -half], axis=-2).reshape(shape)

    return _kernel("looks_linear", draw)


def sparse(k=15, scale=1.0):
    """Each output feature gets k connections, normal of deviation `scale`; the others are 0. Martens 2010.

    Saturating units stay apart however wide the layer: their input's variance is k scale^2. A convolution's taps count
    as connections. PyTorch's `sparse_` takes a share of zeros instead, and makes the number per input feature exact.

    Raises InputError for a k below 1 or above window x features_in, or a scale that is not a positive number.

    >>> kernel = sparse(k=3)(jax.random.key(0), (50, 4))
    >>> (kernel != 0).sum(0).tolist()
    [3, 3, 3, 3]
    """
    _positive("sparse", "scale", scale)

    def draw(key, shape, dtype):
        rows, features = math.prod(shape[:-1]), shape[-1]
        if not 1 <= k <= rows:
            raise InputError(f"sparse: k {k} must be from 1 to {rows}, the connections in of shape {shape}")
        places, values = jax.random.split(key)
        kept = jax.random.uniform(places, (rows, features)).argsort(0) < k  # a random order of each column
        return jnp.where(kept, scale * jax.random.normal(values, kept.shape, dtype), 0).reshape(shape)

    return _kernel("sparse", draw)


# What they share


def _positive(name, argument, value):
    if not 0 < value < math.inf:
        raise InputError(f"{name}: {argument} {value} must be a finite number greater than 0")


def _initializer(draw):
    """(key, shape, dtype=None) -> array, from draw(key, shape, dtype) of at least 32 bits."""

    def init(key, shape, dtype=None):
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise InputError(f"initializers draw floating-point numbers, not dtype {dtype}; try float32")
        return draw(key, tuple(shape), jnp.promote_types(dtype, jnp.float32)).astype(dtype)

    return init


def _kernel(name, draw, groups=1):
    """An initializer of kernels, where draw gives the kernel of one group."""

    def grouped(key, shape, dtype):
        if len(shape) < 2 or min(shape) < 1:
            raise InputError(f"{name}: shape {shape} must be [*window, features_in, features_out], each at least 1")
        if groups == 1:
            return draw(key, shape, dtype)
        if groups < 1 or shape[-1] % groups:
            raise InputError(f"{name}: groups {groups} must divide the {shape[-1]} features out of shape {shape}")
        group = (*shape[:-1], shape[-1] // groups)
        keys = jax.random.split(key, groups)
        return jax.vmap(lambda key: draw(key, group, dtype), out_axes=-2)(keys).reshape(shape)

    return _initializer(grouped)


__all__ = [
    "constant",
    "delta_orthogonal",
    "dirac",
    "gaussian",
    "he_normal",
    "he_truncated_normal",
    "he_uniform",
    "identity",
    "lecun_normal",
    "lecun_truncated_normal",
    "lecun_uniform",
    "looks_linear",
    "ones",
    "orthogonal",
    "sparse",
    "truncated_gaussian",
    "uniform",
    "xavier_normal",
    "xavier_truncated_normal",
    "xavier_uniform",
    "zeros",
]
