"""Batch norm and its variants as pure functions: the running moments are an argument and a result.

In evaluation all of them normalize by the running moments. They differ in the moments that normalize a training batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32, float32_or_wider, per_example, per_feature
from deepjax.functional.normalization import affine, check_epsilon, check_shapes, floating


class Moments(NamedTuple):
    """The mean and the variance of each feature in a batch, or their running averages."""

    mean: jax.Array  # float32 [features]
    var: jax.Array  # float32 [features]; of a batch it is biased: divided by n, not by n - 1


def batch_norm(
    x, scale, bias, running, *, train, mask=None, momentum=0.9, epsilon=1e-5, unbiased=False, axis_name=None
):
    """Normalize each feature over all other axes (Ioffe & Szegedy 2015, algorithm 1):

        y = scale (x - mean) / sqrt(var + epsilon) + bias,
        running <- momentum * running + (1 - momentum) * moments of the batch (in training).

    Args:
      x: [batch, ..., features].
      scale, bias: [features], or None to omit that step.
      running: running `Moments`, by which x is normalized in evaluation.
      train: True normalizes by the moments of this batch and updates the running moments.
      mask: bool [batch], or None. False marks a row that is padding: in training it is replaced by zeros and does not
        enter the moments.
      momentum: share of the old running moments that is kept. PyTorch's momentum is one minus this.
      epsilon: number added to the variance.
      unbiased: True updates the running variance with the batch's variance divided by n - 1 in place of n, where n is
        the number of values of a feature in all rows that are not padding, over `axis_name` too. PyTorch does this,
        Flax does not. It does not change y in training.
      axis_name: name of a mapped axis, or None. The moments are then those of all rows on that axis.

    Returns:
      (y, running): y like x; in training the updated running moments, in evaluation the given ones.

    Raises:
      InputError: features of x that do not match scale, bias or the running moments; a mask that is not [batch]; x that
        is not floating point; a momentum outside [0, 1]; `unbiased` with a single value of each feature.

    >>> running = Moments(jnp.zeros(2), jnp.ones(2))
    >>> y, running = batch_norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]), None, None, running, train=True, epsilon=0.0)
    >>> print(y, running.mean)
    [[-1. -1.]
     [ 1.  1.]] [0.2 2. ]
    """
    x = _checked("batch_norm", x, scale, bias, running, mask, momentum, epsilon)
    if not train:
        return _normalize(x, scale, bias, running, epsilon), running
    y, batch, count = _normalized_batch(_without_padding(x, mask), scale, bias, mask, epsilon, axis_name)
    return y, _mix(momentum, running, _corrected("batch_norm", batch, count, unbiased))


def batch_norm_backward(dy, x, scale, moments, epsilon=1e-5):
    """Compute the gradients of batch norm in training by the chain rule (Ioffe & Szegedy 2015, section 3).

    With n values of each feature, std = sqrt(var + epsilon), z = (x - mean) / std and dz = scale dy:

        dbias = sum dy                        dscale = sum dy z
        dvar  = -1/2 std^-3 sum dz (x - mean) dmean  = -1/std sum dz - 2 dvar mean(x - mean)
        dx    = dz / std + dvar 2 (x - mean) / n + dmean / n

    Args:
      dy: gradient of the loss in y, like x.
      x: [batch, ..., features], without padding.
      scale: [features], or None for 1.
      moments: `Moments` of x, from `batch_moments`.
      epsilon: number added to the variance.

    Returns:
      (dx, dscale, dbias): dx like x, the others [features]. If scale is None, dscale is the gradient in a scale of 1.

    Raises:
      InputError: shapes that do not match, or x that is not floating point.

    >>> x = jnp.array([[1.0], [3.0], [8.0]])
    >>> backward = jax.jit(batch_norm_backward)
    >>> dx, dscale, dbias = backward(jnp.ones((3, 1)), x, jnp.array([2.0]), batch_moments(x))
    >>> print(abs(dx).ravel().round(6), abs(dscale).round(6), dbias)  # the mean removes a shift of all y
    [0. 0. 0.] [0.] [3.]
    """
    x = floating("batch_norm_backward", x)
    check_epsilon("batch_norm_backward", epsilon)
    check_shapes("batch_norm_backward", x, x.shape, dy=dy)
    features = x.shape[-1:]
    check_shapes("batch_norm_backward", x, features, scale=scale, mean=moments.mean, var=moments.var)
    axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    wide, dy = at_least_float32(x), at_least_float32(jnp.asarray(dy))
    inverse = per_feature(jax.lax.rsqrt(moments.var + epsilon), x.ndim)
    centered = wide - per_feature(moments.mean, x.ndim)
    dz = affine(dy, scale, None)
    dvar = -0.5 * inverse**3 * (dz * centered).sum(axes, keepdims=True)
    dmean = -inverse * dz.sum(axes, keepdims=True) - 2 * dvar * centered.mean(axes, keepdims=True)
    dx = dz * inverse + dvar * 2 * centered / n + dmean / n
    return dx.astype(x.dtype), (dy * centered * inverse).sum(axes), dy.sum(axes)


def batch_renorm(
    x,
    scale,
    bias,
    running,
    *,
    train,
    mask=None,
    momentum=0.9,
    epsilon=1e-5,
    r_max=3.0,
    d_max=5.0,
    unbiased=False,
    axis_name=None,
):
    """Normalize a training batch by its moments, corrected towards the running ones (Ioffe 2017, algorithm 1):

        z = (x - batch mean) / batch std * r + d,   y = scale z + bias,
        r = batch std / running std, clipped to [1 / r_max, r_max],
        d = (batch mean - running mean) / running std, clipped to [-d_max, d_max].

    No gradient passes through r and d. Without clipping, training normalizes as evaluation does. `r_max=1, d_max=0` is
    batch norm; the paper starts there and raises both over some thousand steps. Here the running average is one of
    variances, as in `batch_norm`; in the paper it is one of standard deviations.

    Args:
      x, scale, bias, running, train, mask, momentum, epsilon, unbiased, axis_name: as in `batch_norm`.
      r_max: number of at least 1; may be traced.
      d_max: number of at least 0; may be traced.

    Returns:
      (y, running), as `batch_norm`.

    Raises:
      InputError: see `batch_norm`; also for r_max below 1 or d_max below 0.

    >>> x, running = jnp.array([[1.0], [3.0]]), Moments(jnp.array([1.0]), jnp.array([4.0]))
    >>> for train in (True, False):
    ...     y, _ = batch_renorm(x, None, None, running, train=train, epsilon=0.0)
    ...     print(y.ravel())
    [0. 1.]
    [0. 1.]
    """
    x = _checked("batch_renorm", x, scale, bias, running, mask, momentum, epsilon)
    for name, value, lowest in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        if isinstance(value, (int, float)) and not value >= lowest:
            raise InputError(f"batch_renorm: {name} {value} must be at least {lowest}")
    if not train:
        return _normalize(x, scale, bias, running, epsilon), running
    x = _without_padding(x, mask)
    batch, count = _moments_and_count(x, mask, axis_name)
    std = jnp.sqrt(running.var + epsilon)
    r = jax.lax.stop_gradient(jnp.clip(jnp.sqrt(batch.var + epsilon) / std, 1 / r_max, r_max))
    d = jax.lax.stop_gradient(jnp.clip((batch.mean - running.mean) / std, -d_max, d_max))
    z = _normalize(at_least_float32(x), r, d, batch, epsilon)
    new = _mix(momentum, running, _corrected("batch_renorm", batch, count, unbiased))
    return affine(z, scale, bias).astype(x.dtype), new


def moving_average_batch_norm(x, scale, bias, running, *, train, mask=None, momentum=0.9, epsilon=1e-5, axis_name=None):
    """Normalize a training batch by the updated running moments, for small batches (Dinh et al. 2016, appendix E).

    The running moments are updated with those of the batch first, and the batch is normalized by the result. The
    gradient passes only through the batch's share of them, 1 - momentum.

    Args:
      x, scale, bias, running, train, mask, momentum, epsilon, axis_name: as in `batch_norm`.

    Returns:
      (y, running), as `batch_norm`.

    Raises:
      InputError: see `batch_norm`.

    >>> x, running = jnp.array([[1.0], [3.0]]), Moments(jnp.zeros(1), jnp.ones(1))
    >>> y, running = moving_average_batch_norm(x, None, None, running, train=True, momentum=0.5, epsilon=0.0)
    >>> print(y.ravel(), running.mean, running.var)
    [0. 2.] [1.] [1.]
    """
    x = _checked("moving_average_batch_norm", x, scale, bias, running, mask, momentum, epsilon)
    if not train:
        return _normalize(x, scale, bias, running, epsilon), running
    x = _without_padding(x, mask)
    batch, _ = _moments_and_count(x, mask, axis_name)
    new = _average(momentum, jax.lax.stop_gradient(running), batch)
    return _normalize(x, scale, bias, new, epsilon), _like(running, new)


def ghost_batch_norm(
    x, scale, bias, running, *, train, group_size, mask=None, momentum=0.9, epsilon=1e-5, unbiased=False
):
    """Normalize each group of rows of a training batch by its own moments (Hoffer et al. 2017, algorithm 1).

    The running moments are updated as if the G groups were batches that follow each other:

        running <- momentum^G running + sum over i of momentum^(G - i) (1 - momentum) moments of group i.

    So `momentum` applies per group, not per batch. A group that is all padding does not change the running moments.

    Args:
      x, scale, bias, running, train, mask, momentum, epsilon, unbiased: as in `batch_norm`.
      group_size: number of rows of a group. Groups are consecutive rows. It must divide the batch in training.

    Returns:
      (y, running), as `batch_norm`.

    Raises:
      InputError: see `batch_norm`; also for a group size that does not divide the batch.

    >>> from functools import partial
    >>> x, running = jnp.array([[1.0], [3.0], [10.0], [30.0]]), Moments(jnp.zeros(1), jnp.ones(1))
    >>> norm = partial(ghost_batch_norm, train=True, group_size=2, momentum=0.5, epsilon=0.0)
    >>> y, running = jax.jit(norm)(x, None, None, running)
    >>> print(y.ravel(), running.mean)  # (0 / 2 + 2 / 2) / 2 + 20 / 2
    [-1.  1. -1.  1.] [10.5]
    """
    x = _checked("ghost_batch_norm", x, scale, bias, running, mask, momentum, epsilon)
    if not isinstance(group_size, int) or group_size < 1 or (train and len(x) % group_size):
        raise InputError(f"ghost_batch_norm: group_size {group_size!r} must divide the batch of {len(x)} (x {x.shape})")
    if not train:
        return _normalize(x, scale, bias, running, epsilon), running

    def one_group(rows, mask):
        y, batch, count = _normalized_batch(_without_padding(rows, mask), scale, bias, mask, epsilon, None)
        return y, _corrected("ghost_batch_norm", batch, count, unbiased), jnp.asarray(count, batch.var.dtype)

    groups = len(x) // group_size
    mask = None if mask is None else mask.reshape(groups, group_size)
    y, moments, count = jax.vmap(one_group)(x.reshape(groups, group_size, *x.shape[1:]), mask)
    kept = jnp.where(count > 0, momentum, 1)
    later = jnp.append(jnp.cumprod(kept[:0:-1])[::-1], jnp.ones((), kept.dtype))  # what is left after the later groups
    share = (1 - kept) * later
    mixed = Moments(*(kept.prod() * old + share @ new for old, new in zip(running, moments, strict=True)))
    return y.reshape(x.shape), _like(running, mixed)


def batch_moments(x, *, mask=None, axis_name=None):
    """Compute the mean and the biased variance of each feature, in at least float32.

    The variance is the mean squared distance from the mean, which is accurate even if the mean is large.

    Args:
      x: [batch, ..., features].
      mask, axis_name: as in `batch_norm`. A batch that is all padding has moments 0.

    Returns:
      `Moments`.

    Raises:
      InputError: a mask that is not [batch], or x that is not floating point.

    >>> print(*batch_moments(jnp.array([[1.0, 10.0], [3.0, 30.0]])))
    [ 2. 20.] [  1. 100.]
    """
    x = floating("batch_moments", x)
    check_shapes("batch_moments", x, x.shape[:1], mask=mask)
    return _moments_and_count(x, mask, axis_name)[0]


def _normalized_batch(x, scale, bias, mask, epsilon, axis_name):
    """Normalize a batch by its own moments. Return (y, moments, number of values of each feature)."""
    # Inside jit, custom_jvp does not take a NumPy array over which vmap maps; `asarray` would keep it.
    return _normalized(axis_name, *jax.tree.map(jnp.array, (x, scale, bias, mask)), epsilon)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalized(axis_name, x, scale, bias, mask, epsilon):
    moments, count = _moments_and_count(x, mask, axis_name)
    return _normalize(x, scale, bias, moments, epsilon), moments, count


@_normalized.defjvp
def _tangents(axis_name, primals, tangents):
    """Compute the tangents so that their transpose, the gradient, takes two sums over the pixels and one pass.

    With z = (x - mean) / std: dmean = mean dx, dvar = 2 std mean(dx z), and

        dy = scale / std dx + (dbias - scale / std dmean) + z (dscale - scale / (2 std^2) (dvar + depsilon)).

    What JAX derives from the definition stores x - mean twice and takes four sums.
    """
    (x, scale, bias, mask, epsilon), (dx, dscale, dbias, _, depsilon) = primals, tangents
    moments, count = _moments_and_count(x, mask, axis_name)
    mean_of, _ = _mean_and_count(x, mask, axis_name)
    inverse = jax.lax.rsqrt(moments.var + epsilon)
    wide = at_least_float32(dx)
    z = (at_least_float32(x) - per_feature(moments.mean, x.ndim)) * per_feature(inverse, x.ndim)
    slope = inverse if scale is None else inverse * scale
    dmean, dvar = mean_of(wide), 2 * mean_of(wide * z) / inverse
    shift = -slope * dmean if bias is None else dbias - slope * dmean
    stretch = -slope * inverse / 2 * (dvar + depsilon)
    stretch = stretch if scale is None else dscale + stretch
    dy = affine(wide, slope, shift) + affine(z, stretch, None)
    y = affine(z, scale, bias).astype(x.dtype)
    zero = np.zeros((), jax.dtypes.float0) if isinstance(count, int) else jnp.zeros_like(count)
    return (y, moments, count), (dy.astype(x.dtype), Moments(dmean, dvar), zero)


def _moments_and_count(x, mask, axis_name):
    """Return the moments, and the number of values of each feature that they are computed from."""
    mean_of, count = _mean_and_count(x, mask, axis_name)
    x = at_least_float32(x)
    mean = mean_of(x)
    return Moments(mean, mean_of(jnp.square(x - per_feature(mean, x.ndim)))), count


def _mean_and_count(x, mask, axis_name):
    """Return (a function that averages an array like x per feature, without padding; the number of values of each)."""
    axes = tuple(range(x.ndim - 1))
    if mask is None and axis_name is None:
        return lambda values: values.mean(axes), x.size // x.shape[-1]
    if mask is None:
        mask = jnp.ones(x.shape[:1], bool)
    weight = per_example(mask.astype(float32_or_wider(x.dtype)), x.ndim)

    def total(value):
        value = jnp.sum(value, axes)
        return value if axis_name is None else jax.lax.psum(value, axis_name)

    count = total(jnp.broadcast_to(weight, (*x.shape[:-1], 1)))[0]
    n = jnp.maximum(count, 1)  # a device may hold only padding: its moments are 0, not NaN
    return lambda values: total(values * weight) / n, count


def _corrected(name, batch, count, unbiased):
    """Return the batch's moments with which to update the running ones."""
    if not unbiased:
        return batch
    if isinstance(count, int) and count < 2:
        raise InputError(f"{name}: unbiased=True needs at least 2 values of each feature, but x has {count}")
    return Moments(batch.mean, batch.var * (count / jnp.maximum(count - 1, 1)))


def _mix(momentum, old, new):
    return _like(old, _average(momentum, old, new))


def _average(momentum, old, new):
    return Moments(*(momentum * a + (1 - momentum) * b for a, b in zip(old, new, strict=True)))


def _like(running, moments):
    """Cast moments to the dtype of the running ones, which may be the carry of a scan."""
    return jax.tree.map(lambda old, new: new.astype(old.dtype), running, moments)


def _without_padding(x, mask):
    """Replace padding by zeros. Without this it could overflow in a deep network, where infinity times 0 is NaN."""
    return x if mask is None else jnp.where(per_example(mask, x.ndim), x, 0)


def _normalize(x, scale, bias, moments, epsilon):
    factor = jax.lax.rsqrt(moments.var + epsilon)
    if scale is not None:
        factor = factor * scale
    y = (at_least_float32(x) - per_feature(moments.mean, x.ndim)) * per_feature(factor, x.ndim)
    return affine(y, None, bias).astype(x.dtype)


def _checked(name, x, scale, bias, running, mask, momentum, epsilon):
    x = floating(name, x)
    features = x.shape[-1:]
    if running.mean.shape != features or running.var.shape != features:
        raise InputError(
            f"{name}: x has {features[0]} features (shape {x.shape}), the running mean {running.mean.shape}, the "
            f"running var {running.var.shape}; they must match"
        )
    check_shapes(name, x, features, scale=scale, bias=bias)
    check_shapes(name, x, x.shape[:1], mask=mask)
    check_epsilon(name, epsilon)
    if isinstance(momentum, (int, float)) and not 0 <= momentum <= 1:
        raise InputError(f"{name}: momentum {momentum} must be in [0, 1], the share of the old moments to keep")
    return x
