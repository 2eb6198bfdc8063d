"""The minimum of a smooth loss of few parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def minimize(loss, start: Any, *, steps=200, tolerance=1e-5) -> tuple[Any, Any]:
    """Minimize a loss by L-BFGS with a line search: the optimum of a convex one, such as softmax regression's.

    Args:
      loss: function of the parameters, which returns a scalar.
      start: parameters, a pytree of float arrays.
      steps: maximum number of steps.
      tolerance: the search ends earlier if the norm of the gradient is at most this.

    Returns:
      (parameters, loss at them).
    """
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        parameters, state, _, i = carry
        value, gradient = value_and_grad(parameters, state=state)
        updates, state = optimizer.update(gradient, state, parameters, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(parameters, updates), state, optax.tree.norm(gradient), i + 1

    def goes_on(carry):
        *_, norm, i = carry
        return (i < steps) & (norm > tolerance)

    norm = jnp.full_like(loss(start), jnp.inf)
    parameters, *_ = jax.lax.while_loop(goes_on, step, (start, optimizer.init(start), norm, 0))
    return parameters, loss(parameters)
