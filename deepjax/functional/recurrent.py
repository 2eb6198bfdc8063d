"""Recurrent layers as pure functions of a whole sequence."""

import jax
import jax.numpy as jnp
from jax import lax

from deepjax.errors import InputError
from deepjax.functional.activations import sigmoid, tanh
from deepjax.functional.arrays import spread
from deepjax.functional.products import product, tangent_product


def lstm(x, kernel, recurrent, bias, state):
    """Compute a long short-term memory (Hochreiter & Schmidhuber 1997; with forget gates, Gers et al. 2000):

        (i, f, g, o) = x[t] @ kernel + h[t - 1] @ recurrent + bias, in four equal parts,
        c[t] = sigmoid(f) * c[t - 1] + sigmoid(i) * tanh(g),
        h[t] = sigmoid(o) * tanh(c[t]).

    The order of the gates is that of PyTorch and of `flax.linen.OptimizedLSTMCell`. PyTorch has two biases, whose sum
    is this one. The products with x do not depend on h, so they are one product for all steps, before the loop. The
    gradient in `recurrent` is one product too, after the loop.

    Args:
      x: [batch, time, features_in].
      kernel: [features_in, 4 * features].
      recurrent: [features, 4 * features].
      bias: [4 * features], or None.
      state: (h, c), each [batch, features], before the first step.

    Returns:
      (h of all steps [batch, time, features], (h, c) after the last step).

    Raises:
      InputError: shapes that do not go together.

    >>> h = c = jnp.zeros((2, 3))
    >>> y, (h, c) = lstm(jnp.ones((2, 7, 5)), jnp.ones((5, 12)), jnp.ones((3, 12)), None, (h, c))
    >>> y.shape, h.shape
    ((2, 7, 3), (2, 3))
    """
    features = recurrent.shape[0]
    _check(x, kernel, recurrent, bias, state, features)
    inputs = product(x.swapaxes(0, 1), kernel)
    inputs = inputs if bias is None else inputs + spread(bias, inputs)
    y, state = _steps(inputs, recurrent, tuple(state))
    # XLA:CPU would move the exchange of the axes behind the next product, whose result may be far larger.
    return lax.optimization_barrier(y.swapaxes(0, 1)), state


def _scan(inputs, recurrent, state):
    """Return (h of all steps [time, batch, features], (h, c)) for inputs [time, batch, 4 * features] with biases."""

    def step(state, inputs):
        h, c = state
        i, f, g, o = jnp.split(inputs + h @ recurrent, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (h, c), h

    state, y = lax.scan(step, state, inputs)
    return y, state


_steps = jax.custom_jvp(_scan)


@_steps.defjvp
def _tangents(primals, tangents):
    """Add h[t - 1] @ drecurrent to the tangents of the inputs: one product for all steps, and so is its transpose."""
    (inputs, recurrent, state), (dinputs, drecurrent, dstate) = primals, tangents
    (y, last), linear = jax.linearize(lambda inputs, state: _scan(inputs, recurrent, state), inputs, state)
    before = jnp.concatenate([state[0][None], y])[: len(y)].astype(y.dtype)
    return (y, last), linear(dinputs + tangent_product(before, drecurrent), dstate)


def _check(x, kernel, recurrent, bias, state, features):
    wanted = {
        "x": (x, (*x.shape[:2], kernel.shape[0])),
        "kernel": (kernel, (kernel.shape[0], 4 * features)),
        "recurrent": (recurrent, (features, 4 * features)),
        "bias": (bias, (4 * features,)),
        "h": (state[0], (x.shape[0], features)),
        "c": (state[1], (x.shape[0], features)),
    }
    for name, (array, shape) in wanted.items():
        if array is not None and (array.shape != shape or (name == "x" and x.ndim != 3)):
            raise InputError(
                f"lstm: {name} has shape {array.shape}, must be {shape} for x [batch, time, features_in] "
                f"and {features} features"
            )
