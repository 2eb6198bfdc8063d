"""Initializers: functions (key, shape, dtype=None) -> array, as in `jax.nn.initializers`.

Every name but `zeros` and `ones` is a factory: `he_normal()` returns an initializer. Factories raise InputError if
`scale` or `gain` is not a positive number or another argument is invalid. Initializers raise it for a shape or a dtype
that they cannot draw.

A kernel is [*window, features_in // groups, features_out]; for a dense layer, [features_in, features_out]. The kernels
of the groups, [*window, features_in // groups, features_out // groups], are concatenated in the last axis. Therefore

    fan_in = window * features_in / groups,   fan_out = window * features_out / groups.

The number of groups cannot be inferred from the kernel's shape; pass `groups=`. (PyTorch does not divide fan_out by the
groups. With groups=1, fan_out is PyTorch's.)

dtype None is JAX's default. Dtypes of less than 32 bits are drawn in float32 and rounded, because bfloat16 samples of
JAX have mean -1/128 (uniform) or no values beyond 3 standard deviations (normal), and QR does not support bfloat16.
"""

import math

import jax
import jax.numpy as jnp
from jax.nn.initializers import constant, ones, zeros

from deepjax.errors import InputError, choices
from deepjax.functional.arrays import float32_or_wider

# With a given scale


def gaussian(scale):
    """Draw from a normal distribution with mean 0 and standard deviation `scale`, for any shape.

    >>> round(float(gaussian(0.01)(jax.random.key(0), (400, 400)).std()), 4)
    0.01
    """
    _positive("gaussian", "scale", scale)
    return _initializer(jax.nn.initializers.normal(scale))


def uniform(scale):
    """Draw uniformly from [-scale, scale), for any shape. The standard deviation is scale / sqrt(3).

    >>> round(float(uniform(0.3)(jax.random.key(0), (400, 400)).max()), 2)
    0.3
    """
    _positive("uniform", "scale", scale)
    return _initializer(lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -scale, scale))


def truncated_gaussian(scale):
    """Draw from a normal distribution truncated at two standard deviations, for any shape.

    The standard deviation after truncation is `scale`, so that no value exceeds 2.274 scale. JAX's `truncated_normal`
    and PyTorch's `trunc_normal_` take the standard deviation before truncation, which lowers it by a factor of 0.8796.

    >>> sample = truncated_gaussian(0.01)(jax.random.key(0), (400, 400))
    >>> round(float(sample.std()), 4), round(float(sample.max()), 3)
    (0.01, 0.023)
    """
    _positive("truncated_gaussian", "scale", scale)
    return _initializer(jax.nn.initializers.truncated_normal(scale / _TRUNCATED))


# The standard deviation of a standard normal truncated at c = 2: its variance is 1 - 2 c density(c) / P(|x| < c)
_TRUNCATED = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


# With a variance given by the fans. `axes` are JAX's in_axis, out_axis and batch_axis, for kernels in another layout.


def lecun_normal(**axes):
    """Draw from a normal distribution of variance 1 / fan_in (LeCun et al. 1998, "Efficient BackProp", section 4.6).

    A linear layer then preserves the variance of its input. `axes` are JAX's in_axis, out_axis and batch_axis, for
    kernels in another layout.

    >>> round(float(lecun_normal()(jax.random.key(0), (400, 400)).std()), 2)
    0.05
    """
    return _variance_scaling("lecun_normal", 1, "fan_in", "normal", axes)


def lecun_uniform(**axes):
    """Draw uniformly from [-sqrt(3 / fan_in), sqrt(3 / fan_in)). The variance is that of `lecun_normal`.

    >>> round(float(lecun_uniform()(jax.random.key(0), (400, 400)).max()), 3)
    0.087
    """
    return _variance_scaling("lecun_uniform", 1, "fan_in", "uniform", axes)


def lecun_truncated_normal(**axes):
    """Draw from a normal distribution truncated at two standard deviations. It is Flax's default.

    The variance after truncation is that of `lecun_normal`.

    >>> round(float(lecun_truncated_normal()(jax.random.key(0), (400, 400)).std()), 2)
    0.05
    """
    return _variance_scaling("lecun_truncated_normal", 1, "fan_in", "truncated_normal", axes)


def xavier_normal(*, groups=1, **axes):
    """Draw from a normal distribution of variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010, eq. 12).

    The variance is a compromise: 1 / fan_in preserves the variance of activations, 1 / fan_out that of gradients. For
    the arguments, see `he_normal`.

    >>> round(float(xavier_normal()(jax.random.key(0), (400, 400)).std()), 2)
    0.05
    """
    return _variance_scaling("xavier_normal", 1, "fan_avg", "normal", axes, groups)


def xavier_uniform(*, groups=1, **axes):
    """Draw uniformly between +-sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16).

    The variance and the arguments are those of `xavier_normal`.

    >>> round(float(xavier_uniform()(jax.random.key(0), (400, 400)).max()), 3)
    0.087
    """
    return _variance_scaling("xavier_uniform", 1, "fan_avg", "uniform", axes, groups)


def xavier_truncated_normal(*, groups=1, **axes):
    """Draw from a normal distribution truncated at two standard deviations.

    The variance after truncation and the arguments are those of `xavier_normal`.

    >>> round(float(xavier_truncated_normal()(jax.random.key(0), (400, 400)).std()), 2)
    0.05
    """
    return _variance_scaling("xavier_truncated_normal", 1, "fan_avg", "truncated_normal", axes, groups)


def he_normal(*, mode="fan_in", slope=0.0, groups=1, **axes):
    """Draw from a normal distribution of variance 2 / ((1 + slope^2) fan), for layers that follow a (leaky) ReLU.

    The source is He et al. 2015, "Delving deep into rectifiers". The slope must be finite.

    Args:
      mode: "fan_in" preserves the variance of the activations (eq. 10), "fan_out" that of the gradients (eq. 14).
      slope: slope of the leaky ReLU for negative inputs (eq. 15); 0 is ReLU, 1 the identity.
      groups: number of groups of the convolution.
      **axes: JAX's in_axis, out_axis and batch_axis, for kernels in another layout. They require groups=1.

    >>> round(float(he_normal()(jax.random.key(0), (400, 400)).std()), 2)
    0.07
    >>> depthwise = he_normal(mode="fan_out", groups=500)  # of a window of 20 x 20 pixels: fan_out is 400
    >>> round(float(depthwise(jax.random.key(0), (20, 20, 1, 500)).std()), 2)
    0.07
    """
    return _he("he_normal", "normal", mode, slope, groups, axes)


def he_uniform(*, mode="fan_in", slope=0.0, groups=1, **axes):
    """Draw uniformly between +-sqrt(6 / ((1 + slope^2) fan)).

    The variance and the arguments are those of `he_normal`.

    >>> round(float(he_uniform()(jax.random.key(0), (400, 400)).max()), 3)
    0.122
    """
    return _he("he_uniform", "uniform", mode, slope, groups, axes)


def he_truncated_normal(*, mode="fan_in", slope=0.0, groups=1, **axes):
    """Draw from a normal distribution truncated at two standard deviations.

    The variance after truncation and the arguments are those of `he_normal`.

    >>> round(float(he_truncated_normal()(jax.random.key(0), (400, 400)).std()), 2)
    0.07
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
        raise InputError(f"{name}: groups {groups} must be 1 with {', '.join(axes)}; groups are in the last axis")
    return _kernel(name, jax.nn.initializers.variance_scaling(scale, mode, distribution, **axes), groups)


# With a given structure


def orthogonal(gain=1.0, groups=1):
    """Draw `gain` times a uniformly distributed matrix with orthonormal rows or columns (Saxe et al. 2014).

    The matrix is [window * features_in / groups, features_out / groups], so each column is the complete kernel of one
    output feature, as in PyTorch's `orthogonal_`. The columns are orthonormal if there are at most as many columns as
    rows; otherwise the rows are. Each of the `groups` of a convolution has its own matrix. A dense layer with
    features_out >= features_in multiplies norms by `gain`. For convolutions, use `delta_orthogonal`.

    >>> kernel = orthogonal()(jax.random.key(0), (2, 6))
    >>> print(abs(kernel @ kernel.T).round(4))
    [[1. 0.]
     [0. 1.]]
    """
    _positive("orthogonal", "gain", gain)
    return _kernel("orthogonal", jax.nn.initializers.orthogonal(gain), groups)


def delta_orthogonal(gain=1.0, groups=1):
    """Draw a convolution that multiplies norms by `gain`: an orthogonal center tap, other taps 0 (Xiao et al. 2018).

    Kernels have one to three window axes, and at least as many features out as in. The center of an even window is the
    tap before the middle, which "SAME" padding aligns with the output's pixel. Each group has its own matrix.

    >>> kernel = jax.jit(delta_orthogonal(), static_argnums=1)(jax.random.key(0), (3, 2, 6))
    >>> print(abs(kernel[1] @ kernel[1].T).round(4), kernel[0].any())
    [[1. 0.]
     [0. 1.]] False
    """
    _positive("delta_orthogonal", "gain", gain)

    def draw(key, shape, dtype):
        if len(shape) not in (3, 4, 5):
            raise InputError(f"delta_orthogonal: shape {shape} must have 1 to 3 window axes; without, use orthogonal")
        if shape[-1] < shape[-2]:
            raise InputError(
                f"delta_orthogonal: shape {shape} (of a group) has more features in than out, so norms cannot be "
                "preserved; use orthogonal"
            )
        return jax.nn.initializers.delta_orthogonal(gain, dtype=dtype)(key, shape)

    return _kernel("delta_orthogonal", draw, groups)


def identity(gain=1.0):
    """Return `gain` times the identity [features_in, features_out], for a dense layer. Extra rows or columns are 0.

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
    """Return `gain` times the identity at the center tap, for a convolution, as PyTorch's `dirac_`.

    There is at least one window axis. In each of the `groups`, extra features in or out are 0. The center of an even
    window is the tap after the middle, window // 2, as in PyTorch. The convolution is then the identity if it is padded
    by (window // 2, window // 2 - 1).

    >>> dirac()(jax.random.key(0), (3, 2, 2))[1].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    _positive("dirac", "gain", gain)

    def draw(key, shape, dtype):
        del key
        if len(shape) < 3:
            raise InputError(
                f"dirac: shape {shape} must be [*window, features_in, features_out]; without a window, use identity"
            )
        center = tuple(size // 2 for size in shape[:-2])
        return jnp.zeros(shape, dtype).at[center].set(gain * jnp.eye(*shape[-2:], dtype=dtype))

    return _kernel("dirac", draw, groups)


def looks_linear(core=None):
    """Draw mirrored weights W, -W for a layer that follows `crelu`: the two together are linear (Balduzzi et al. 2017).

    `crelu` returns the positive and the negative part of each feature in adjacent positions. Rows 2q and 2q + 1 of the
    kernel are W[q] and -W[q], so kernel(crelu(x)) = W max(x, 0) - W max(-x, 0) = W x. features_in must be even.

    Args:
      core: initializer of W [*window, features_in / 2, features_out]. None: `orthogonal()` for a dense layer and
        `delta_orthogonal()` for a convolution, which preserve norms. For a convolution with groups, pass an
        initializer with the same groups.

    >>> kernel = jax.jit(looks_linear(), static_argnums=1)(jax.random.key(0), (6, 4))
    >>> bool((kernel[::2] == -kernel[1::2]).all())
    True
    """

    def draw(key, shape, dtype):
        *window, features_in, features = shape
        if features_in % 2:
            raise InputError(f"looks_linear: shape {shape} must have an even number of features in, as crelu's output")
        init = core or (delta_orthogonal() if window else orthogonal())
        half = init(key, (*window, features_in // 2, features), dtype)
        return jnp.stack([half, -half], axis=-2).reshape(shape)

    return _kernel("looks_linear", draw)


def sparse(k=15, scale=1.0):
    """Draw k connections per output feature from a normal distribution; the others are 0 (Martens 2010).

    The variance of a unit's input is k scale^2 at every width of the layer, so that saturating units stay diverse. The
    taps of a convolution count as connections. PyTorch's `sparse_` has a fraction of zeros as its argument instead, and
    fixes the number of connections per input feature.

    Args:
      k: connections per output feature, from 1 to window * features_in.
      scale: standard deviation of the connections.

    >>> kernel = jax.jit(sparse(k=3), static_argnums=1)(jax.random.key(0), (50, 4))
    >>> (kernel != 0).sum(0).tolist()
    [3, 3, 3, 3]
    """
    _positive("sparse", "scale", scale)

    def draw(key, shape, dtype):
        rows, features = math.prod(shape[:-1]), shape[-1]
        if not 1 <= k <= rows:
            raise InputError(f"sparse: k {k} must be from 1 to {rows}, the number of inputs of shape {shape}")
        places, values = jax.random.split(key)
        kept = jax.random.uniform(places, (rows, features)).argsort(0) < k  # the first k of a random order
        return jnp.where(kept, scale * jax.random.normal(values, kept.shape, dtype), 0).reshape(shape)

    return _kernel("sparse", draw)


# Shared


def _positive(name, argument, value):
    if not 0 < value < math.inf:
        raise InputError(f"{name}: {argument} {value} must be finite and greater than 0")


def _initializer(draw):
    """Make an initializer (key, shape, dtype=None) from a function that draws at least 32 bits."""

    def init(key, shape, dtype=None):
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise InputError(f"dtype {dtype} of an initializer must be floating point; try float32")
        return draw(key, tuple(shape), float32_or_wider(dtype)).astype(dtype)

    return init


def _kernel(name, draw, groups=1):
    """Make an initializer of kernels from a function that draws the kernel of one group."""

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
