"""Losses from logits. Each gives one value per example; the mean over a batch is the caller's."""

import jax
import jax.numpy as jnp
import optax

from deepjax.errors import InputError


def smooth_labels(labels, smoothing, num_classes, dtype=jnp.float32):
    """Integer labels [...] -> targets [..., classes]: (1 - smoothing) one-hot + smoothing / classes.

    Szegedy et al. 2016 (Rethinking Inception), section 7. Raises InputError for smoothing outside [0, 1].
    """
    if not 0 <= smoothing <= 1:
        raise InputError(f"label smoothing {smoothing} is not in [0, 1]")
    one_hot = jnp.asarray(labels)[..., None] == jnp.arange(num_classes).reshape((1,) * jnp.ndim(labels) + (-1,))
    return optax.smooth_labels(one_hot.astype(dtype), smoothing)


def cross_entropy(logits, labels, *, smoothing=0.0):
    """Cross entropy of softmax(logits) with integer labels, in nats: [..., classes], int [...] -> [...].

    Computed in at least float32 from log-softmax, so that it is finite for logits of any finite size.

    Raises:
      InputError: shapes that do not match, labels that are not integers, or smoothing outside [0, 1].
    """
    if logits.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"cross_entropy: logits {logits.shape} and labels {labels.dtype}{labels.shape} do not match; "
            f"labels must be integers of shape {logits.shape[:-1]}"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if smoothing == 0:
        # Not log-sum-exp minus the logit: at logits of 1e4 that leaves three digits less.
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    return optax.softmax_cross_entropy(logits, smooth_labels(labels, smoothing, logits.shape[-1], logits.dtype))
