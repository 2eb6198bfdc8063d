"""The largest value and the sum of each window, with derivatives that are fast on CPU.

On CPU, derivatives are those of a choice among shifted views of x, or of their sum. The gradients that XLA:CPU has for
`lax.reduce_window` take about five times as long, for small windows twenty times (measured). Other platforms use them.
"""

import math
from functools import partial

import jax
import numpy as np
from jax import lax

from deepjax.functional import window_choice
from deepjax.functional.window_choice import MAX_TAPS, views


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def largest(x, window, stride, pads):
    """Return the largest value of each window of x, whose gradient goes to the first of equal ones, as in PyTorch.

    Args:
      x: [batch, *spatial, features].
      window, stride: one number for each axis of x; 1 for the first and the last.
      pads: (low, high) for each axis of x; (0, 0) for the first and the last. Padding is never the largest value.
    """
    return window_choice.largest(x, window, stride, pads)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def total(x, window, stride, pads):
    """Return the sum of each window of x. For the arguments see `largest`; padding counts as zeros."""
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, window, stride, pads)


@largest.defjvp
def _tangent_of_largest(window, stride, pads, primals, tangents):
    (x,), (dx,) = primals, tangents
    return largest(x, window, stride, pads), window_choice.pick(x, dx, window, stride, pads)


@total.defjvp
def _tangent_of_total(window, stride, pads, primals, tangents):
    (x,), (dx,) = primals, tangents

    def on_cpu(dx):
        return sum(views(dx, 0.0, window, stride, pads))

    def derived(dx):
        return total.fun(dx, window, stride, pads)

    # In explicit sharding mode, the branches of a choice would need equal shardings.
    if math.prod(window) > MAX_TAPS or jax.typeof(dx).sharding.mesh.explicit_axes:
        return total(x, window, stride, pads), derived(dx)
    return total(x, window, stride, pads), lax.platform_dependent(dx, cpu=on_cpu, default=derived)
