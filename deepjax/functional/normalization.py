"""Normalization as pure functions. Batch norm's running moments come in and go out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepjax.errors import InputError


class Moments(NamedTuple):
    """Per-feature statistics of a batch, or their running average."""

    mean: jax.Array  # f32[features]
    var: jax.Array  # f32[features], biased


def batch_norm(x, scale, bias, running, *, train, mask=None, momentum=0.9, epsilon=1e-5, axis_name=None):
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
      axis_name: name of a mapped axis over which the moments are averaged too, row count for row count.

    Returns:
      (y, Moments): y like x, and the running moments to keep: updated in training, else as they came.
      The running variance is the biased one (divided by n, not n - 1), as the batch's own.

    Raises:
      InputError: x's features do not match the running moments', or the mask is not [batch].
    """
    features = x.shape[-1]
    if running.mean.shape != (features,):
        raise InputError(
            f"batch_norm: x has {features} features (shape {x.shape}), the running mean {running.mean.shape}; "
            f"they must match"
        )
    if mask is not None and mask.shape != x.shape[:1]:
        raise InputError(f"batch_norm: mask has shape {mask.shape}; for x {x.shape} it must be {x.shape[:1]}")
    used = running
    if train:
        if mask is not None:
            # Nothing normalizes padding: in a deep net it could grow to infinity, and infinity times 0 is NaN.
            x = jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        used = batch_moments(x, mask=mask, axis_name=axis_name)
        running = Moments(*(momentum * old + (1 - momentum) * new for old, new in zip(running, used, strict=True)))
    factor = jax.lax.rsqrt(used.var + epsilon)
    if scale is not None:
        factor = factor * scale
    wide = _at_least_float32(x)
    y = (wide - _to_rank(used.mean, x.ndim)) * _to_rank(factor, x.ndim)
    if bias is not None:
        y = y + _to_rank(bias, x.ndim)
    return y.astype(x.dtype), running


def batch_moments(x, *, mask=None, axis_name=None):
    """Mean and biased variance of each feature of x [batch, ..., features], in at least float32.

    The variance is the mean squared distance from the mean, which stays right where the mean is large.
    """
    x = _at_least_float32(x)
    axes = tuple(range(x.ndim - 1))
    if mask is None and axis_name is None:
        mean = x.mean(axes)
        return Moments(mean, jnp.square(x - _to_rank(mean, x.ndim)).mean(axes))
    if mask is None:
        mask = jnp.ones(x.shape[:1], bool)
    weight = mask.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))

    def total(value):
        value = jnp.sum(value, axes)
        return value if axis_name is None else jax.lax.psum(value, axis_name)

    # An empty batch has moments 0, not NaN: a device may hold nothing but padding.
    count = jnp.maximum(total(jnp.broadcast_to(weight, (*x.shape[:-1], 1))), 1)
    mean = total(x * weight) / count
    return Moments(mean, total(jnp.square(x - _to_rank(mean, x.ndim)) * weight) / count)


def _at_least_float32(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _to_rank(per_feature, rank):
    return per_feature.reshape((1,) * (rank - 1) + per_feature.shape)
