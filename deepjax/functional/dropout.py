"""Regularization by noise: drop or mix activations, connections or whole branches in training.

`rate` is always the probability to drop and `survival` the probability to keep. Both may be traced scalars, for example
one per unit of a scan. Traced values are not checked, but 0 and 1 give finite values and gradients. A mask depends only
on the PRNG key, the shape and the rate, not on the dtype of x.
"""

import math

import jax
import jax.numpy as jnp
from jax.core import Tracer

from deepjax.errors import InputError, choices
from deepjax.functional.arrays import at_least_float32, float32_or_wider

# The limit of SELU for very negative inputs: minus its alpha times its scale.
_SELU_SATURATION = -1.7580993408473766


def dropout(key, x, rate, *, train, scaling="inverted"):
    """Set each entry of x to zero with probability `rate` (Srivastava et al. 2014).

    Args:
      key: PRNG key. May be None if nothing is random (`train=False` or `rate=0`).
      x: floating-point array of any shape.
      rate: probability to drop, in [0, 1]; a number or a traced scalar. 0 is the identity, 1 gives zeros.
      train: True drops; False only scales, depending on `scaling`.
      scaling: "inverted" divides what is kept by 1 - rate in training and returns x in evaluation, as PyTorch does.
        "original" (section 4 of the paper) does not scale in training and multiplies by 1 - rate in evaluation.

    Returns:
      An array like x.

    Raises:
      InputError: a rate outside [0, 1] or that is not a scalar, an unknown scaling, x that is not floating point, or
        no key in training.

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
    """Set each feature map to zero as a whole, with probability `rate` (Tompson et al. 2015, section 3.2).

    It equals `nn.Dropout1d`, `nn.Dropout2d` and `nn.Dropout3d` of PyTorch, with features last.

    Args:
      key, rate, train, scaling: as in `dropout`.
      x: [..., *spatial, features]. One value is drawn per leading index (usually the example) and feature.
      spatial: number of spatial axes, 1 to 3. None: all axes between the first and the last.

    Returns:
      An array like x.

    Raises:
      InputError: see `dropout`; also for x without 1 to 3 spatial axes.

    >>> y = spatial_dropout(jax.random.key(0), jnp.ones((2, 4, 4, 3)), 0.5, train=True)
    >>> bool((y == y[:, :1, :1]).all())
    True
    """
    _check_probability("spatial_dropout", "rate", rate)
    axes = jnp.ndim(x) - 2 if spatial is None else spatial
    if axes not in (1, 2, 3) or jnp.ndim(x) <= axes:
        raise InputError(
            f"spatial_dropout: x of shape {jnp.shape(x)} with spatial={spatial} does not have 1 to 3 spatial axes "
            "before its features; pass their number as `spatial`, or use dropout"
        )
    maps = (*x.shape[: -1 - axes], *(1,) * axes, x.shape[-1])
    return _drop("spatial_dropout", key, x, 1 - rate, maps, train=train, scaling=scaling)


def alpha_dropout(key, x, rate, *, train):
    """Drop entries of x so that mean 0 and variance 1 are preserved, for SELU networks (Klambauer et al. 2017).

    A dropped entry is set to SELU's negative limit, alpha' = -1.758. Then the result is mapped to a x + b with

        a = ((1 - rate) (1 + rate alpha'^2))^(-1/2),   b = -a rate alpha',

    which restores mean and variance (section "New dropout technique"). It equals `nn.AlphaDropout` of PyTorch.

    Args:
      key, x, rate, train: as in `dropout`. A rate of 1 gives zeros, the limit.

    Returns:
      An array like x; x itself in evaluation.

    Raises:
      InputError: see `dropout`.

    >>> y = jax.jit(lambda key: alpha_dropout(key, jnp.zeros(1000), 0.5, train=True))(jax.random.key(0))
    >>> sorted({round(v, 4) for v in y.tolist()})  # b where kept, a alpha' + b where dropped
    [-0.7792, 0.7792]
    """
    _check_probability("alpha_dropout", "rate", rate)
    _check_floating("alpha_dropout", "x", x)
    if not train or _is(rate, 0):
        return x
    keep = jnp.asarray(1 - rate, float32_or_wider(x.dtype))
    mask = _bernoulli("alpha_dropout", key, keep, x.shape)
    scale = jax.lax.rsqrt(_or_one(keep) * (1 + (1 - keep) * _SELU_SATURATION**2))
    y = scale * (jnp.where(mask, x, _SELU_SATURATION) - (1 - keep) * _SELU_SATURATION)
    return y.astype(x.dtype)


def drop_path(key, branch, survival, *, train, scaling="inverted", per="example"):
    """Drop a whole residual branch: stochastic depth (Huang et al. 2016). Use as `skip + drop_path(key, branch, ...)`.

    Args:
      key: PRNG key. May be None if nothing is random (`train=False` or `survival=1`).
      branch: floating-point array [batch, ...].
      survival: probability to keep, in [0, 1]; a number or a traced scalar. 1 is the identity, 0 gives zeros.
        `linear_survival` computes the paper's.
      train: True drops; False only scales, depending on `scaling`.
      scaling: "inverted" divides a surviving branch by `survival` in training. "original" (eqs. 2 and 5 of the paper)
        does not scale in training and multiplies by `survival` in evaluation.
      per: "example" draws once per row of the batch, "batch" once for the whole batch, as in the paper.

    Returns:
      An array like `branch`.

    Raises:
      InputError: a survival outside [0, 1] or that is not a scalar, an unknown `scaling` or `per`, a branch that is not
        floating point or has no batch axis, or no key in training.

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
    """Compute the survival of a residual unit by the linear decay rule (Huang et al. 2016, eq. 4):

        1 - unit / units * (1 - last).

    Of 54 units with a last survival of 0.5, about 40 are expected to survive.

    Args:
      unit: number of the unit, starting from 1; or an array of numbers, such as `jnp.arange(1, units + 1)` for a scan.
      units: total number of units.
      last: survival of the last unit, in [0, 1].

    Returns:
      A float, or an array like `unit`.

    Raises:
      InputError: `last` outside [0, 1], `units` below 1, or an int `unit` that is not between 0 and `units`.

    >>> [linear_survival(unit, 4) for unit in (1, 2, 3, 4)]
    [0.875, 0.75, 0.625, 0.5]
    """
    _check_probability("linear_survival", "last", last)
    if units < 1 or (isinstance(unit, int) and not 0 <= unit <= units):
        raise InputError(
            f"linear_survival: unit {unit} of {units} units; there must be 1 unit or more, and this one of them"
        )
    return 1 - unit / units * (1 - last)


def shake_shake(key, a, b, *, train, forward="shake", backward="shake", per="image"):
    """Mix two residual branches in a random ratio, and their gradients in another one (Gastaldi 2017, section 2):

        y = alpha a + (1 - alpha) b,   da = beta dy,   db = (1 - beta) dy.

    Args:
      key: PRNG key. May be None if nothing is random (`train=False`, or no "shake").
      a, b: the two branches, floating-point arrays [batch, ...] of the same shape and dtype.
      train: True draws; False uses 0.5 for alpha and beta.
      forward: "shake" draws alpha uniformly from [0, 1), "even" uses 0.5.
      backward: "shake" draws beta uniformly from [0, 1), independently of alpha; "even" uses 0.5; "keep" uses alpha.
      per: "image" draws once per row of the batch, "batch" once for the whole batch.

    Returns:
      An array like a.

    Raises:
      InputError: branches of different shapes or dtypes, that are not floating point or have no batch axis; an unknown
        `forward`, `backward` or `per`; no key in training.

    >>> a, b = jnp.ones((4, 2)), jnp.zeros((4, 2))
    >>> alpha, gradient = jax.vjp(lambda a: shake_shake(jax.random.key(0), a, b, train=True), a)
    >>> (beta,) = gradient(a)
    >>> bool((alpha[:, 0] == alpha[:, 1]).all()), bool((alpha == beta).any())
    (True, False)
    """
    _check_choice("shake_shake", "forward", forward, ("shake", "even"))
    _check_choice("shake_shake", "backward", backward, ("shake", "even", "keep"))
    shape = _per("shake_shake", "a", a, per, "image")
    if a.shape != b.shape or a.dtype != b.dtype:
        raise InputError(f"shake_shake: a {a.dtype}{a.shape} and b {b.dtype}{b.shape} must have one shape and dtype")
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
    """Apply a dense layer whose connections are dropped, each with probability `rate` (Wan et al. 2013).

    In training (algorithm 1) y = activation(x @ (M * kernel) + m * bias), with masks M and m drawn per example. The
    bias is dropped too, as in the paper, where it is the weight of an input of 1.

    In evaluation (algorithm 2) the sum that reaches a unit is approximated by a Gaussian with its mean and variance
    under the mask, (1 - rate) x @ W and rate (1 - rate) x^2 @ W^2. The result is the mean activation of
    `samples` draws.

    Memory: training allocates masks and masked kernels [batch, features_in + 1, features], up to 16 bytes per entry on
    CPU. Of these, the masks (1 byte per entry) are stored for the gradient. Evaluation needs [samples, ..., features].

    Args:
      key: PRNG key. May be None if nothing is random.
      x: [batch, ..., features_in], or [features_in] for one example. All positions of an example share its mask; use
        `jax.vmap` with split keys for one mask per position.
      kernel: [features_in, features].
      bias: [features], or None.
      rate: probability to drop, in [0, 1]; a number or a traced scalar. 0 is a dense layer.
      train: True drops connections; False computes by the method `inference`.
      activation: elementwise function, applied after the sum. None is the identity.
      inference: "moments" as above, or "mean" for activation((1 - rate) (x @ kernel + bias)), which draws nothing.
      samples: number of draws per unit and row, at least 1. The error is proportional to 1 / sqrt(samples).

    Returns:
      [batch, ..., features], in the dtype of x @ kernel.

    Raises:
      InputError: a rate outside [0, 1] or that is not a scalar; kernel or bias that do not fit x; an unknown
        `inference`; samples below 1; no key where one is needed.

    >>> x, kernel = jnp.ones((2, 3)), jnp.ones((3, 4))
    >>> jax.eval_shape(lambda key: drop_connect(key, x, kernel, None, 0.5, train=True), jax.random.key(0)).shape
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
    wide = float32_or_wider(dtype)
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
    # The derivative of the square root at 0 is infinite, so units without variance take the other branch.
    std = jnp.where(var > 0, jnp.sqrt(_or_one(var)), 0)
    noise = jax.random.normal(key, (samples, *mean.shape), wide)
    return activation(mean[None] + std[None] * noise).mean(0).astype(dtype)


@jax.checkpoint
def _masked_product(x, kernel, mask):
    """Multiply x [batch, positions, in] by a kernel [in, out] under a mask [batch, in, out].

    Because of the checkpoint, the masks are stored for the gradient, and not a masked kernel per example.
    """
    kernels = jnp.where(mask, at_least_float32(kernel)[None], 0)  # the kernel's gradient is a sum over the batch
    return jnp.einsum("bpi,bio->bpo", x, kernels.astype(kernel.dtype))


@jax.custom_jvp
def _mix(a, b, alpha, beta):
    return (alpha * a + (1 - alpha) * b).astype(a.dtype)


@_mix.defjvp
def _mix_jvp(primals, tangents):
    # This is linear in the tangents, so JAX transposes it into the gradient. alpha and beta have no gradient.
    a, b, alpha, beta = primals
    return _mix(a, b, alpha, beta), (beta * tangents[0] + (1 - beta) * tangents[1]).astype(a.dtype)


def _drop(name, key, x, keep, mask_shape, *, train, scaling):
    """Keep each part of x, an entry of `mask_shape`, with probability `keep`."""
    _check_choice(name, "scaling", scaling, ("inverted", "original"))
    _check_floating(name, "x", x)
    if _is(keep, 1) or (not train and scaling == "inverted"):
        return x
    keep = jnp.asarray(keep, float32_or_wider(x.dtype))
    if not train:
        return (x * keep).astype(x.dtype)
    mask = _bernoulli(name, key, keep, mask_shape)
    if scaling == "inverted":
        x = (x / _or_one(keep)).astype(x.dtype)
    return jnp.where(mask, x, 0)


def _bernoulli(name, key, keep, shape):
    """Draw a bool mask that is True with probability `keep`; in float32, so it does not depend on the dtype of x."""
    _check_key(name, key)
    return jax.random.bernoulli(key, keep.astype(jnp.float32), shape)


def _per(name, argument, x, per, row):
    """Return the shape of one value per row of x, or of one per batch, that broadcasts against x."""
    _check_choice(name, "per", per, (row, "batch"))
    if jnp.ndim(x) < 1:
        raise InputError(f"{name}: {argument} of shape {jnp.shape(x)} must have a batch axis: [batch, ...]")
    return (x.shape[0] if per == row else 1, *(1,) * (x.ndim - 1))


def _or_one(value):
    """Replace 0 by 1 in a divisor. The quotient is masked there anyway, but its gradient must be finite."""
    return jnp.where(value > 0, value, 1)


def _is(value, number):
    """Return whether a probability equals `number`; False for a traced one."""
    return not isinstance(value, Tracer) and float(value) == number


def _check_probability(name, argument, value):
    if jnp.ndim(value) != 0:
        raise InputError(
            f"{name}: {argument} has shape {jnp.shape(value)}; it must be a scalar; use jax.vmap for several"
        )
    if not isinstance(value, Tracer) and not 0 <= float(value) <= 1:
        raise InputError(f"{name}: {argument} {value} must be a probability, in [0, 1]")


def _check_choice(name, argument, value, valid):
    if value not in valid:
        raise InputError(f"{name}: {argument} {value!r} is unknown; {choices(str(value), valid)}")


def _check_floating(name, argument, x):
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise InputError(f"{name}: {argument} has dtype {x.dtype}; it must be floating point; cast it first")


def _check_key(name, key):
    if key is None:
        raise InputError(f"{name}: key None must be a jax.random.key in training; pass one, or train=False")


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
        raise InputError("drop_connect: key None must be a jax.random.key; pass one, or evaluate with inference='mean'")
