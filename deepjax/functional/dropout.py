"""Noise against overfitting: activations, connections or whole branches that are dropped or mixed while training.

Everywhere `rate` is the probability to drop and `survival` the probability to keep. Both may be traced scalars, one per
unit of a scan; then nobody can check them, but 0 and 1 still give finite values and gradients. A mask depends on the
key, the shape and the rate alone, not on the dtype of x. `key` may be None where nothing is drawn.
"""

import math

import jax
import jax.numpy as jnp
from jax.core import Tracer

from deepjax.errors import InputError, choices

# What a SELU unit tends to for very negative inputs: minus its alpha times its scale.
_SELU_SATURATION = -1.7580993408473766


def dropout(key, x, rate, *, train, scaling="inverted"):
    """Set each entry of x to zero with probability `rate` (Srivastava et al. 2014).

    Args:
      key: of the mask; None will do when nothing is dropped.
      x: floating point, of any shape.
      rate: probability to drop, in [0, 1]: a number or a traced scalar. 0 is the identity, 1 gives zeros.
      train: drop; False: only scale, if at all.
      scaling: "inverted" divides what is kept by 1 - rate in training and leaves x alone at test, as PyTorch does;
        "original" (section 4 of the paper) leaves it alone in training and multiplies by 1 - rate at test.

    Returns:
      An array like x.

    Raises:
      InputError: rate outside [0, 1] or not a scalar, an unknown scaling, an x of integers, no key in training.

    >>> x = jnp.ones((2, 3))
    >>> y = dropout(jax.random.key(0), x, 0.5, train=True)
    >>> bool(((y == 0) | (y == 2)).all())
    True
    >>> print(dropout(None, x, 0.5, train=False, scaling="original")[0])
    [0.5 0.5 0.5]
    """
    _check_probability("dropout", "rate", rate)
    return _drop("dropout", key, x, 1 - rate, jnp.shape(x), train=train, scaling=scaling)


def spatial_dropout(key, x, rate, *, train, scaling="inverted", spatial=None):
    """Drop whole feature maps, each with probability `rate` (Tompson et al. 2015, "SpatialDropout").

    As `nn.Dropout1d`, `2d` and `3d` of PyTorch, with features last.

    Args:
      key, rate, train, scaling: as in `dropout`.
      x: [..., *spatial, features]. Every leading index, usually the batch, has feature maps of its own.
      spatial: how many spatial axes x has, 1 to 3; None: all axes between the first and the last.

    Raises:
      InputError: as in `dropout`; x without 1 to 3 spatial axes.

    >>> y = spatial_dropout(jax.random.key(0), jnp.ones((2, 4, 4, 3)), 0.5, train=True)
    >>> bool((y == y[:, :1, :1]).all())
    True
    """
    _check_probability("spatial_dropout", "rate", rate)
    axes = jnp.ndim(x) - 2 if spatial is None else spatial
    if axes not in (1, 2, 3) or jnp.ndim(x) <= axes:
        raise InputError(
            f"spatial_dropout: x of shape {jnp.shape(x)} with spatial={spatial} has not 1 to 3 spatial axes before its "
            f"features; say how many with `spatial`, or use dropout"
        )
    maps = (*x.shape[: -1 - axes], *(1,) * axes, x.shape[-1])
    return _drop("spatial_dropout", key, x, 1 - rate, maps, train=train, scaling=scaling)


def alpha_dropout(key, x, rate, *, train):
    """Dropout for SELU networks, which keeps mean 0 and variance 1 (Klambauer et al. 2017, "New dropout technique").

    A dropped entry gets SELU's negative limit, alpha' = -1.758. Then a x + b brings mean and variance back, with
    a = ((1 - rate) (1 + rate alpha'^2))^-1/2 and b = -a rate alpha'. Arguments, shapes and errors are those of
    `dropout`; nothing happens at test, and a rate of 1 gives zeros, the limit. Equals `nn.AlphaDropout` of PyTorch.

    >>> y = alpha_dropout(jax.random.key(0), jnp.zeros(1000), 0.5, train=True)
    >>> [round(float(v), 4) for v in jnp.unique(y)]  # b where kept, a alpha' + b where dropped
    [-0.7792, 0.7792]
    """
    _check_probability("alpha_dropout", "rate", rate)
    _check_floating("alpha_dropout", "x", x)
    if not train or _is(rate, 0):
        return x
    keep = jnp.asarray(1 - rate, _at_least_float32(x.dtype))
    mask = _bernoulli("alpha_dropout", key, keep, x.shape)
    scale = jax.lax.rsqrt(_or_one(keep) * (1 + (1 - keep) * _SELU_SATURATION**2))
    y = scale * (jnp.where(mask, x, _SELU_SATURATION) - (1 - keep) * _SELU_SATURATION)
    return y.astype(x.dtype)


def drop_path(key, branch, survival, *, train, scaling="inverted", per="example"):
    """Drop a whole residual branch: stochastic depth (Huang et al. 2016). Used as `skip + drop_path(key, branch, ...)`.

    Args:
      key: of the mask; None will do when nothing is dropped.
      branch: floating point, [batch, ...].
      survival: probability to keep, in [0, 1]: a number or a traced scalar; `linear_survival` gives the paper's.
        1 is the identity, 0 gives zeros.
      train: drop; False: only scale, if at all.
      scaling: "inverted" divides a surviving branch by `survival` in training; "original" (the paper's equations 2
        and 5) leaves it alone in training and multiplies by `survival` at test.
      per: "example" decides for every row of the batch, "batch" (the paper's) for all of them together.

    Returns:
      An array like `branch`.

    Raises:
      InputError: survival outside [0, 1] or not a scalar, an unknown `scaling` or `per`, a branch of integers or
        without a batch axis, no key in training.

    >>> branch = jnp.ones((4, 2))
    >>> y = drop_path(jax.random.key(0), branch, 0.8, train=True, scaling="original")
    >>> bool((y[:, 0] == y[:, 1]).all())
    True
    >>> print(drop_path(None, branch, 0.8, train=False, scaling="original")[0])
    [0.8 0.8]
    """
    _check_probability("drop_path", "survival", survival)
    _check_floating("drop_path", "branch", branch)
    shape = _per("drop_path", "branch", branch, per, "example")
    return _drop("drop_path", key, branch, survival, shape, train=train, scaling=scaling)


def linear_survival(unit, units, last=0.5):
    """Survival of residual unit 1, ..., `units` under the linear decay rule: 1 - unit / units (1 - last).

    Huang et al. 2016, eq. 4. Of 54 units with a last survival of 0.5, about 40 are expected to survive.

    Args:
      unit: number of the unit, from 1 on; or an array of them, as `jnp.arange(1, units + 1)` for a scan.
      units: how many there are.
      last: survival of the last one.

    Raises:
      InputError: `last` outside [0, 1], no units, or a `unit` (an int) that is not one of them.

    >>> [linear_survival(unit, 4) for unit in (1, 2, 3, 4)]
    [0.875, 0.75, 0.625, 0.5]
    """
    _check_probability("linear_survival", "last", last)
    if units < 1 or (isinstance(unit, int) and not 0 <= unit <= units):
        raise InputError(f"linear_survival: unit {unit} of {units} units; count units from 1 to at least 1")
    return 1 - unit / units * (1 - last)


def shake_shake(key, a, b, *, train, forward="shake", backward="shake", per="image"):
    """Mix two residual branches by random shares, with other shares for the gradient (Gastaldi 2017).

    Forward, y = alpha a + (1 - alpha) b. Backward, the gradient of y goes to a times beta, to b times (1 - beta).

    Args:
      key: of the shares; None will do when none is drawn.
      a, b: the two branches, floating point [batch, ...] of one shape and dtype.
      train: shake; False: alpha and beta are 0.5.
      forward: alpha is uniform on [0, 1) ("shake") or 0.5 ("even").
      backward: beta is uniform on [0, 1), drawn apart from alpha ("shake"), or 0.5 ("even"), or alpha ("keep").
      per: a share for every "image" of the batch, or one for the whole "batch".

    Returns:
      An array like a.

    Raises:
      InputError: branches of different shape or dtype, of integers or without a batch axis; an unknown `forward`,
        `backward` or `per`; no key in training.

    >>> a, b = jnp.ones((4, 2)), jnp.zeros((4, 2))
    >>> mix = lambda a: shake_shake(jax.random.key(0), a, b, train=True)
    >>> alpha, beta = mix(a), jax.grad(lambda a: mix(a).sum())(a)
    >>> bool((alpha[:, 0] == alpha[:, 1]).all()), bool((alpha == beta).any())
    (True, False)
    """
    _check_choice("shake_shake", "forward", forward, ("shake", "even"))
    _check_choice("shake_shake", "backward", backward, ("shake", "even", "keep"))
    shape = _per("shake_shake", "a", a, per, "image")
    if a.shape != b.shape or a.dtype != b.dtype:
        raise InputError(f"shake_shake: a is {a.dtype}{a.shape}, b {b.dtype}{b.shape}; branches must be alike")
    _check_floating("shake_shake", "a", a)
    alpha = beta = jnp.full(shape, 0.5, jnp.float32)
    if train and "shake" in (forward, backward):
        _check_key("shake_shake", key)
        if forward == "shake":
            alpha = jax.random.uniform(jax.random.fold_in(key, 0), shape, jnp.float32)
        if backward == "shake":
            beta = jax.random.uniform(jax.random.fold_in(key, 1), shape, jnp.float32)
    return _mix(a, b, alpha, alpha if backward == "keep" else beta)


def drop_connect(key, x, kernel, bias, rate, *, train, activation=None, inference="moments", samples=100):
    """A dense layer whose connections are dropped, each with probability `rate` (Wan et al. 2013).

    Training (algorithm 1): activation((M * kernel) x), with a mask M of its own for every example. Biases are
    weights from an input of one, and dropped like the others, as in the paper. Test (algorithm 2): the sum that reaches
    a unit is taken as Gaussian with the moments that it has under M, mean (1 - rate) W v and variance
    rate (1 - rate) (W * W) (v * v); `samples` values are drawn of it, and the mean of their activations is returned.

    Memory: training holds masks and masked kernels [batch, features_in + 1, features], up to 16 bytes per entry on CPU;
    of them the masks, one byte per entry, are kept for the gradient. Test needs [samples, ..., features].

    Args:
      key: of the masks or the samples; None will do when nothing is drawn.
      x: [batch, ..., features_in], or [features_in] for one example. Every row of the first axis is an example; the
        positions between first and last axis share its mask (`jax.vmap` with split keys gives them masks of their own).
      kernel: [features_in, features].
      bias: [features], or None.
      rate: probability to drop, in [0, 1]: a number or a traced scalar. 0 is a dense layer.
      train: drop connections; False: infer as `inference` says.
      activation: elementwise, after the sum; None: the identity.
      inference: "moments", as above, or "mean": activation((1 - rate) W v), as with dropout; draws nothing.
      samples: drawn per unit and row, at least 1; the error falls with their square root.

    Returns:
      [batch, ..., features] in the dtype of x @ kernel.

    Raises:
      InputError: rate outside [0, 1] or not a scalar; kernel or bias that do not fit x; unknown `inference`; samples
        below 1; no key where one is needed.

    >>> x, kernel = jnp.ones((2, 3)), jnp.ones((3, 4))
    >>> drop_connect(jax.random.key(0), x, kernel, jnp.zeros(4), 0.5, train=True).shape
    (2, 4)
    >>> print(drop_connect(None, x, kernel, jnp.ones(4), 0.5, train=False, inference="mean")[0])
    [2. 2. 2. 2.]
    """
    _check_drop_connect(key, x, kernel, bias, rate, train, inference, samples)
    activation = activation or (lambda u: u)
    if bias is not None:
        x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)
        kernel = jnp.concatenate([kernel, bias[None]])
    dtype = jnp.result_type(x, kernel)
    wide = _at_least_float32(dtype)
    if _is(rate, 0):
        return activation(jnp.matmul(x, kernel))
    keep = jnp.asarray(1 - rate, wide)
    if train:
        batch, *positions = x.shape[:-1] or (1,)
        mask = _bernoulli("drop_connect", key, keep, (batch, *kernel.shape))
        y = _masked_product(x.reshape(batch, math.prod(positions), x.shape[-1]), kernel, mask)
        return activation(y.reshape(*x.shape[:-1], kernel.shape[1]))
    mean = keep * jnp.matmul(x, kernel, preferred_element_type=wide)
    if inference == "mean":
        return activation(mean.astype(dtype))
    x, kernel = x.astype(wide), kernel.astype(wide)
    var = keep * (1 - keep) * (jnp.square(x) @ jnp.square(kernel))
    # The slope of the square root at 0 is infinite: a unit that cannot vary is kept from it.
    std = jnp.where(var > 0, jnp.sqrt(_or_one(var)), 0)
    noise = jax.random.normal(key, (samples, *mean.shape), wide)
    return activation(mean[None] + std[None] * noise).mean(0).astype(dtype)


@jax.checkpoint
def _masked_product(x, kernel, mask):
    """[batch, positions, in] times [in, out] under mask [batch, in, out].

    The checkpoint keeps a mask of bools for the gradient, not a masked kernel for every example.
    """
    return jnp.einsum("bpi,bio->bpo", x, jnp.where(mask, kernel[None], 0))


@jax.custom_jvp
def _mix(a, b, alpha, beta):
    return (alpha * a + (1 - alpha) * b).astype(a.dtype)


@_mix.defjvp
def _mix_jvp(primals, tangents):
    # Linear in the tangents, so that JAX transposes it to the gradient; the shares themselves have none.
    a, b, alpha, beta = primals
    return _mix(a, b, alpha, beta), (beta * tangents[0] + (1 - beta) * tangents[1]).astype(a.dtype)


def _drop(name, key, x, keep, mask_shape, *, train, scaling):
    """x with its parts, the entries of `mask_shape`, kept with probability `keep`."""
    _check_choice(name, "scaling", scaling, ("inverted", "original"))
    _check_floating(name, "x", x)
    if _is(keep, 1) or (not train and scaling == "inverted"):
        return x
    keep = jnp.asarray(keep, _at_least_float32(x.dtype))
    if not train:
        return (x * keep).astype(x.dtype)
    mask = _bernoulli(name, key, keep, mask_shape)
    if scaling == "inverted":
        x = (x / _or_one(keep)).astype(x.dtype)
    return jnp.where(mask, x, 0)


def _bernoulli(name, key, keep, shape):
    """bool [*shape], True with probability `keep`; float32, so that one key gives one mask for every dtype."""
    _check_key(name, key)
    return jax.random.bernoulli(key, keep.astype(jnp.float32), shape)


def _per(name, argument, x, per, row):
    """Shape of one value for every row of x, or for the batch, which broadcasts to x."""
    _check_choice(name, "per", per, (row, "batch"))
    if jnp.ndim(x) < 1:
        raise InputError(f"{name}: {argument} of shape {jnp.shape(x)} has no batch axis; it must be [batch, ...]")
    return (x.shape[0] if per == row else 1, *(1,) * (x.ndim - 1))


def _or_one(value):
    """A divisor that is never 0. Where it would be, the quotient is masked anyway, but its gradient must be finite."""
    return jnp.where(value > 0, value, 1)


def _at_least_float32(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _is(value, number):
    """Whether a probability is known to be `number` while tracing."""
    return not isinstance(value, Tracer) and float(value) == number


def _check_probability(name, argument, value):
    if jnp.ndim(value) != 0:
        raise InputError(f"{name}: {argument} has shape {jnp.shape(value)}; it must be one number, vmap for more")
    if not isinstance(value, Tracer) and not 0 <= float(value) <= 1:
        raise InputError(f"{name}: {argument} {value} is a probability; it must be in [0, 1]")


def _check_choice(name, argument, value, valid):
    if value not in valid:
        raise InputError(f"{name}: {argument} {value!r} is unknown; {choices(str(value), valid)}")


def _check_floating(name, argument, x):
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise InputError(f"{name}: {argument} has dtype {x.dtype}; it must be floating point, cast it first")


def _check_key(name, key):
    if key is None:
        raise InputError(f"{name}: key None cannot draw; give a jax.random.key, or train=False")


def _check_drop_connect(key, x, kernel, bias, rate, train, inference, samples):
    _check_probability("drop_connect", "rate", rate)
    _check_choice("drop_connect", "inference", inference, ("moments", "mean"))
    _check_floating("drop_connect", "x", x)
    if kernel.ndim != 2 or x.ndim < 1 or kernel.shape[0] != x.shape[-1]:
        raise InputError(
            f"drop_connect: kernel has shape {kernel.shape}, x {x.shape}; kernel must be [features_in, features] with "
            f"features_in the last axis of x"
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise InputError(
            f"drop_connect: bias has shape {bias.shape}; for kernel {kernel.shape} it must be {kernel.shape[1:]}"
        )
    if samples < 1:
        raise InputError(f"drop_connect: samples {samples} must be at least 1")
    if key is None and not _is(rate, 0) and (train or inference == "moments"):
        raise InputError("drop_connect: key None cannot draw; give a jax.random.key, or inference='mean' at test")
