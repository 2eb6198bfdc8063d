"""The largest value and the sum of each window, with derivatives that are fast on CPU.

On CPU, derivatives are those of a choice among shifted views of x, or of their sum. The gradients that XLA:CPU has for
`lax.reduce_window` take about five times as long, for small windows twenty times (measured). Other platforms use them.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MAX_TAPS = 32  # larger windows would be too many operations to compile


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def largest(x, window, stride, pads):
    """Return the largest value of each window of x, whose gradient goes to the first of equal ones, as in PyTorch.

    Args:
      x: [batch, *spatial, features].
      window, stride: one number for each axis of x; 1 for the first and the last.
      pads: (low, high) for each axis of x; (0, 0) for the first and the last. Padding is never the largest value.
    """
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(x, np.asarray(lowest, x.dtype), lax.max, window, stride, pads)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def total(x, window, stride, pads):
    """Return the sum of each window of x. For the arguments see `largest`; padding counts as zeros."""
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, window, stride, pads)


@largest.defjvp
def _tangent_of_largest(window, stride, pads, primals, tangents):
    (x,), (dx,) = primals, tangents

    def on_cpu(dx):
        return _chosen(x, dx, window, stride, pads)

    def derived(dx):
        return jax.jvp(lambda x: largest.fun(x, window, stride, pads), (x,), (dx,))[1]

    return largest(x, window, stride, pads), _by_platform(dx, window, on_cpu, derived)


@total.defjvp
def _tangent_of_total(window, stride, pads, primals, tangents):
    (x,), (dx,) = primals, tangents

    def on_cpu(dx):
        return sum(_views(dx, 0.0, window, stride, pads))

    def derived(dx):
        return total.fun(dx, window, stride, pads)

    return total(x, window, stride, pads), _by_platform(dx, window, on_cpu, derived)


def _by_platform(dx, window, on_cpu, derived):
    # In explicit sharding mode, the branches of a choice would need equal shardings.
    if math.prod(window) > MAX_TAPS or jax.typeof(dx).sharding.mesh.explicit_axes:
        return derived(dx)
    return lax.platform_dependent(dx, cpu=on_cpu, default=derived)


def _chosen(x, dx, window, stride, pads):
    """Return the entry of dx at the first of the largest values of each window of x."""
    first, *others = _views(x, -np.inf, window, stride, pads)
    best, place = first, jnp.zeros(first.shape, jnp.uint8)
    for i, view in enumerate(others, 1):
        larger = view > best
        best, place = jnp.where(larger, view, best), jnp.where(larger, jnp.uint8(i), place)
    views = enumerate(_views(dx, 0.0, window, stride, pads))
    return sum(jnp.where(place == i, view, jnp.zeros((), dx.dtype)) for i, view in views)


def _views(x, padding, window, stride, pads):
    """Yield, for each pixel of a window, the values that all windows have there."""
    padded = lax.pad(x, jnp.asarray(padding, x.dtype), [(low, high, 0) for low, high in pads])
    spans = [(size - w) // s * s + 1 for size, w, s in zip(padded.shape, window, stride, strict=True)]
    for tap in itertools.product(*map(range, window)):
        yield lax.slice(padded, tap, [t + span for t, span in zip(tap, spans, strict=True)], stride)
