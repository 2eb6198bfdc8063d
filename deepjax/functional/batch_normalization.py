"""Batch norm and its variants as pure functions: running moments come in and go out.

All normalize alike when not training, by the running moments; they differ in what a training batch is normalized by.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepjax.errors import InputError
from deepjax.functional.normalization import (
    affine,
    at_least_float32,
    check_epsilon,
    check_shapes,
    floating,
    to_rank,
)


class Moments(NamedTuple):
    """Per-feature statistics of a batch, or their running average."""

    mean: jax.Array  # f32[features]
    var: jax.Array  # f32[features], of a batch: biased (divided by n)


def batch_norm(
    x, scale, bias, running, *, train, mask=None, momentum=0.9, epsilon=1e-5, unbiased=False, axis_name=None
):
    """Normalize each feature over all other axes (Ioffe & Szegedy 2015, algorithm 1).

    Args:
      x: [batch, ..., features].
      scale, bias: [features], or None to leave that step out.
      running: `Moments`, used when not training.
      train: normalize by this batch's moments, and move the running ones towards them.
      mask: bool [batch], False for rows that are padding: in training they are taken as zeros, whatever they
        hold, and do not enter the moments.
      momentum: share of the old running moments that is kept (PyTorch's momentum is one minus this).
      epsilon: added to the variance.
      unbiased: move the running variance towards the batch's variance divided by n - 1 in place of n, where n counts
        the values of a feature over all rows that are not padding, and over `axis_name`. PyTorch's running moments
        are those of `unbiased=True`, Flax's those of False. What a training batch is normalized by stays the same.
      axis_name: name of a mapped axis over which the moments are averaged too, row count for row count.

    Returns:
      (y, Moments): y like x, and the running moments to keep: updated in training, else as they came.

    Raises:
      InputError: x's features do not match scale, bias or the running moments, the mask is not [batch], x is not
        floating, momentum is not in [0, 1], or `unbiased` with a single value of each feature.

    >>> running = Moments(jnp.zeros(2), jnp.ones(2))
    >>> y, running = batch_norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]), None, None, running, train=True, epsilon=0.0)
    >>> print(y, running.mean)
    [[-1. -1.]
     [ 1.  1.]] [0.2 2. ]
    """
    x = _checked("batch_norm", x, scale, bias, running, mask, momentum, epsilon)
    if not train:
        return _normalize(x, scale, bias, running, epsilon), running
    x = _without_padding(x, mask)
    batch, count = _moments_and_count(x, mask, axis_name)
    y = _normalize(x, scale, bias, batch, epsilon)
    return y, _mix(momentum, running, _corrected("batch_norm", batch, count, unbiased))


def batch_norm_backward(dy, x, scale, moments, epsilon=1e-5):
    """Gradients of training batch norm, written out as the chain rule gives them (Ioffe & Szegedy 2015, section 3).

    With n values of each feature, z = (x - mean) / std and dz = scale dy:

        dbias = sum dy                        dscale = sum dy z
        dvar  = -1/2 std^-3 sum dz (x - mean) dmean  = -1/std sum dz - 2 dvar mean(x - mean)
        dx    = dz / std + dvar 2 (x - mean) / n + dmean / n

    Args:
      dy: gradient of the loss with respect to y, like x.
      x: [batch, ..., features], no row of it padding.
      scale: [features], or None where there was none.
      moments: of x itself, from `batch_moments`.
      epsilon: added to the variance.

    Returns:
      (dx, dscale, dbias): dx like x, the others [features]; dscale also where scale is None.

    Raises:
      InputError: shapes that do not match, or x that is not floating.

    >>> x = jnp.array([[1.0], [3.0], [8.0]])
    >>> dx, dscale, dbias = batch_norm_backward(jnp.ones((3, 1)), x, jnp.array([2.0]), batch_moments(x))
    >>> print(dbias, abs(dx).max() < 1e-6, abs(dscale).max() < 1e-6)  # the mean takes a shift of all y away
    [3.] True True
    """
    x = floating("batch_norm_backward", x)
    check_epsilon("batch_norm_backward", epsilon)
    check_shapes("batch_norm_backward", x, x.shape, dy=dy)
    features = x.shape[-1:]
    check_shapes("batch_norm_backward", x, features, scale=scale, mean=moments.mean, var=moments.var)
    axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    wide, dy = at_least_float32(x), at_least_float32(jnp.asarray(dy))
    inverse = to_rank(jax.lax.rsqrt(moments.var + epsilon), x.ndim)
    centred = wide - to_rank(moments.mean, x.ndim)
    dz = affine(dy, scale, None)
    dvar = -0.5 * inverse**3 * (dz * centred).sum(axes, keepdims=True)
    dmean = -inverse * dz.sum(axes, keepdims=True) - 2 * dvar * centred.mean(axes, keepdims=True)
    dx = dz * inverse + dvar * 2 * centred / n + dmean / n
    return dx.astype(x.dtype), (dy * centred * inverse).sum(axes), dy.sum(axes)


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
    """Batch norm that corrects a training batch towards the running moments (Ioffe 2017, algorithm 1).

    In training z = (x - batch mean) / batch std * r + d, with r = batch std / running std clipped to
    [1 / r_max, r_max] and d = (batch mean - running mean) / running std clipped to [-d_max, d_max]; no gradient passes
    through r and d. Unclipped, a batch is normalized just as in evaluation. `r_max=1, d_max=0` is batch norm: the
    paper starts there and widens over some thousand steps. Here the average runs over variances, as in `batch_norm`,
    where the paper's runs over standard deviations.

    Args:
      x, scale, bias, running, train, mask, momentum, epsilon, unbiased, axis_name: as in `batch_norm`.
      r_max: at least 1; may be a traced number.
      d_max: at least 0; may be a traced number.

    Returns:
      (y, Moments), as `batch_norm`.

    Raises:
      InputError: as `batch_norm`, and for r_max below 1 or d_max below 0.

    >>> x, running = jnp.array([[1.0], [3.0]]), Moments(jnp.array([1.0]), jnp.array([4.0]))
    >>> for train in (True, False):
    ...     y, _ = batch_renorm(x, None, None, running, train=train, epsilon=0.0)
    ...     print(y.ravel())
    [0. 1.]
    [0. 1.]
    """
    x = _checked("batch_renorm", x, scale, bias, running, mask, momentum, epsilon)
    for name, value, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
        if isinstance(value, (int, float)) and not value >= least:
            raise InputError(f"batch_renorm: {name} {value} must be at least {least}")
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
    """Batch norm for small batches: training uses the running moments too (Dinh et al. 2016, appendix E).

    The running moments take up this batch's first, and the batch is normalized by the result. A gradient passes only
    through this batch's share of them, 1 - momentum.

    Args:
      x, scale, bias, running, train, mask, momentum, epsilon, axis_name: as in `batch_norm`.

    Returns:
      (y, Moments), as `batch_norm`.

    Raises:
      InputError: as `batch_norm`.

    >>> x, running = jnp.array([[1.0], [3.0]]), Moments(jnp.zeros(1), jnp.ones(1))
    >>> y, running = moving_average_batch_norm(x, None, None, running, train=True, momentum=0.5, epsilon=0.0)
    >>> print(y.ravel(), running.mean, running.var)
    [0. 2.] [1.] [1.]
    """
    x = _checked("moving_average_batch_norm", x, scale, bias, running, mask, momentum, epsilon)
    if train:
        x = _without_padding(x, mask)
        batch, _ = _moments_and_count(x, mask, axis_name)
        running = _mix(momentum, jax.lax.stop_gradient(running), batch)
    return _normalize(x, scale, bias, running, epsilon), running


def ghost_batch_norm(
    x, scale, bias, running, *, train, group_size, mask=None, momentum=0.9, epsilon=1e-5, unbiased=False
):
    """Batch norm whose statistics are those of groups of a batch (Hoffer et al. 2017, algorithm 1).

    The running moments move as if the groups had come as batches of their own, one after the other: with G groups,
    running <- momentum^G running + sum over i of momentum^(G - i) (1 - momentum) moments of group i. A group that is
    all padding leaves them where they are. So `momentum` belongs to the group, not to the batch.

    Args:
      x, scale, bias, running, train, mask, momentum, epsilon, unbiased: as in `batch_norm`.
      group_size: rows of a group; the first group is the first rows, and so on. Must divide the batch in training.

    Returns:
      (y, Moments), as `batch_norm`.

    Raises:
      InputError: as `batch_norm`, and for a group size that does not divide the batch.

    >>> x, running = jnp.array([[1.0], [3.0], [10.0], [30.0]]), Moments(jnp.zeros(1), jnp.ones(1))
    >>> y, running = ghost_batch_norm(x, None, None, running, train=True, group_size=2, momentum=0.5, epsilon=0.0)
    >>> print(y.ravel(), running.mean)  # (0 / 2 + 2 / 2) / 2 + 20 / 2
    [-1.  1. -1.  1.] [10.5]
    """
    x = _checked("ghost_batch_norm", x, scale, bias, running, mask, momentum, epsilon)
    if not isinstance(group_size, int) or group_size < 1 or (train and len(x) % group_size):
        raise InputError(f"ghost_batch_norm: group_size {group_size!r} must divide the batch of {len(x)} (x {x.shape})")
    if not train:
        return _normalize(x, scale, bias, running, epsilon), running

    def one_group(rows, mask):
        rows = _without_padding(rows, mask)
        batch, count = _moments_and_count(rows, mask, None)
        y = _normalize(rows, scale, bias, batch, epsilon)
        return y, _corrected("ghost_batch_norm", batch, count, unbiased), jnp.asarray(count, batch.var.dtype)

    groups = len(x) // group_size
    mask = None if mask is None else mask.reshape(groups, group_size)
    y, moments, count = jax.vmap(one_group)(x.reshape(groups, group_size, *x.shape[1:]), mask)
    kept = jnp.where(count > 0, momentum, 1)
    later = jnp.append(jnp.cumprod(kept[:0:-1])[::-1], jnp.ones((), kept.dtype))  # what the groups after it leave
    share = (1 - kept) * later
    running = Moments(*(kept.prod() * old + share @ new for old, new in zip(running, moments, strict=True)))
    return y.reshape(x.shape), running


def batch_moments(x, *, mask=None, axis_name=None):
    """Mean and biased variance of each feature of x [batch, ..., features], in at least float32.

    The variance is the mean squared distance from the mean, which stays right where the mean is large. `mask` (bool
    [batch]) and `axis_name` are as in `batch_norm`; a batch that is all padding has moments 0.

    >>> print(*batch_moments(jnp.array([[1.0, 10.0], [3.0, 30.0]])))
    [ 2. 20.] [  1. 100.]
    """
    x = floating("batch_moments", x)
    check_shapes("batch_moments", x, x.shape[:1], mask=mask)
    return _moments_and_count(x, mask, axis_name)[0]


def _moments_and_count(x, mask, axis_name):
    """The moments, and the number of values of each feature that they are of."""
    x = at_least_float32(x)
    axes = tuple(range(x.ndim - 1))
    if mask is None and axis_name is None:
        mean = x.mean(axes)
        return Moments(mean, jnp.square(x - to_rank(mean, x.ndim)).mean(axes)), x.size // x.shape[-1]
    if mask is None:
        mask = jnp.ones(x.shape[:1], bool)
    weight = mask.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))

    def total(value):
        value = jnp.sum(value, axes)
        return value if axis_name is None else jax.lax.psum(value, axis_name)

    count = total(jnp.broadcast_to(weight, (*x.shape[:-1], 1)))[0]
    n = jnp.maximum(count, 1)  # an empty batch has moments 0, not NaN: a device may hold nothing but padding
    mean = total(x * weight) / n
    return Moments(mean, total(jnp.square(x - to_rank(mean, x.ndim)) * weight) / n), count


def _corrected(name, batch, count, unbiased):
    """The batch's moments as the running ones take them up."""
    if not unbiased:
        return batch
    if isinstance(count, int) and count < 2:
        raise InputError(f"{name}: unbiased=True needs at least 2 values of each feature; here is {count}")
    return Moments(batch.mean, batch.var * (count / jnp.maximum(count - 1, 1)))


def _mix(momentum, old, new):
    return Moments(*(momentum * a + (1 - momentum) * b for a, b in zip(old, new, strict=True)))


def _without_padding(x, mask):
    """Nothing normalizes padding: in a deep net it could grow to infinity, and infinity times 0 is NaN."""
    return x if mask is None else jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def _normalize(x, scale, bias, moments, epsilon):
    factor = jax.lax.rsqrt(moments.var + epsilon)
    if scale is not None:
        factor = factor * scale
    y = (at_least_float32(x) - to_rank(moments.mean, x.ndim)) * to_rank(factor, x.ndim)
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
        raise InputError(f"{name}: momentum {momentum} is not in [0, 1]; it is the share of the old moments kept")
    return x
