"""Second-order methods for small problems: Newton, saddle-free Newton, Newton-CG, nonlinear CG, BFGS.

Each minimizes a function f of a pytree from x0 and returns a `Result`: the point, the path to it, and what it cost. All
are pure, and may be under jit and vmap. They need a function without noise; training uses `deepjax.optimizers` instead,
where lbfgs is the only method of second order. JAX has BFGS (`jax.scipy.optimize.minimize`), but returns no path.

Sources: Nocedal & Wright 2006, "Numerical optimization"; Martens 2010, "Deep learning via Hessian-free optimization";
Dauphin et al. 2014 (arXiv 1406.2572).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from deepjax.errors import InputError

SEARCH_STEPS = 30  # of a line search, at most


class Result(NamedTuple):
    """The end of a minimization, and its cost."""

    x: Any  # the last point, a pytree like x0
    value: jax.Array  # f(x)
    path: jax.Array  # [steps + 1, n]: x0 and the point after each iteration, as vectors; the last one is repeated
    iterations: Any
    gradients: Any  # evaluations of f with its gradient
    products: Any  # products of the Hessian and a vector, each about two gradients; a whole Hessian counts as n


class Point(NamedTuple):
    """A point of a path."""

    x: jax.Array  # [n]
    value: jax.Array
    gradient: jax.Array  # [n]
    rate: jax.Array  # length of the step to it, as a factor of the direction; 0 at the start


def hessian_product(f: Callable, x) -> Callable:
    """Return v -> H v, with the Hessian H of f at x, by forward over reverse differentiation.

    H is not formed: a product costs about as much as two gradients (Pearlmutter 1994). x and v are pytrees alike.

    >>> import jax.numpy as jnp
    >>> hessian_product(lambda x: x[0] ** 2 * x[1], jnp.array([1.0, 2.0]))(jnp.array([1.0, 0.0]))
    Array([4., 2.], dtype=float32)
    """
    return jax.linearize(jax.grad(f), x)[1]


def gauss_newton_product(model: Callable, loss: Callable, x) -> Callable:
    """Return v -> J' L J v, with the Jacobian J of `model` at x and the Hessian L of `loss` at model(x).

    This is the Hessian of loss(model(x)) without the curvature of the model. It is positive semidefinite if the loss is
    convex, so that Martens (section 4.2) uses it in place of the Hessian.

    Args:
      model: function of x, such as parameters -> logits of a batch.
      loss: function of the model's result, with a scalar value.
      x: pytree.
    """
    outputs, forward = jax.linearize(model, x)
    backward = jax.linear_transpose(forward, x)
    bend = hessian_product(loss, outputs)
    return lambda v: backward(bend(forward(v)))[0]


def newton(f: Callable, x0, *, steps: int = 100, tolerance: float = 1e-5) -> Result:
    """Find a critical point of f by Newton's update x - H^-1 g, without a line search.

    It goes to whatever point has no gradient: a minimum, a maximum or a saddle. The whole Hessian is formed and solved.

    Args:
      f: function of a pytree like x0, with a scalar value.
      x0: pytree of floating-point arrays with n numbers.
      steps: iterations at most.
      tolerance: stop where no number of the gradient is larger.

    Raises:
      InputError: steps below 1, a negative tolerance, or an x0 that is not floating-point.
    """

    def direct(function, point, memory):
        return -jnp.linalg.solve(_hessian(function, point.x), point.gradient), memory, point.x.size

    return _run(f, x0, direct, lambda point: (), _full_step, steps, tolerance)


def saddle_free_newton(f: Callable, x0, *, steps: int = 100, tolerance: float = 1e-5, floor: float = 1e-4) -> Result:
    """Minimize f by x - |H|^-1 g, where |H| has the Hessian's eigenvectors and the sizes of its eigenvalues.

    Along directions of negative curvature, in which Newton's update climbs to a saddle, this one descends (Dauphin et
    al., algorithm 1). A line search shortens steps that do not lead down.

    Arguments and errors are those of `newton`, and:
      floor: smallest size of an eigenvalue, as a fraction of the largest.
    """

    def direct(function, point, memory):
        values, vectors = jnp.linalg.eigh(_hessian(function, point.x))
        sizes = jnp.maximum(jnp.abs(values), floor * jnp.abs(values).max())
        return -vectors @ ((vectors.T @ point.gradient) / sizes), memory, point.x.size

    return _run(f, x0, direct, lambda point: (), _newton_step, steps, tolerance)


def newton_cg(
    f: Callable,
    x0,
    *,
    steps: int = 100,
    tolerance: float = 1e-5,
    damping: float = 0.0,
    product: Callable | None = None,
    inner: int = 250,
) -> Result:
    """Minimize f by Newton-CG: solve H d = -g by conjugate gradients, which need only products of H with vectors.

    With `damping`, this is Martens' Hessian-free optimization: H + damping * I takes the place of H. The damping is
    multiplied by 2/3 where the quadratic model predicts the change of f well, and by 3/2 where it does not (section
    4.1). A line search shortens steps that do not lead down.

    Arguments and errors are those of `newton`, and:
      damping: initial damping; 0 for none.
      product: function of x that returns v -> B v, with a matrix B to take the place of the Hessian, such as
        partial(gauss_newton_product, model, loss). None: the Hessian.
      inner: iterations of conjugate gradients at most.
    """
    _, unravel = ravel_pytree(x0)

    def curvature(function, x):
        if product is None:
            return hessian_product(function, x)
        times = product(unravel(x))
        return lambda v: ravel_pytree(times(unravel(v)))[0]

    def direct(function, point, memory):
        before, damping, slope, bend = memory
        predicted = point.rate * slope + point.rate**2 * bend / 2
        ratio = (point.value - before) / jnp.where(point.rate > 0, predicted, 1)
        damping = damping * jnp.where(ratio > 3 / 4, 2 / 3, jnp.where((ratio < 1 / 4) & (point.rate > 0), 3 / 2, 1))
        times = curvature(function, point.x)
        direction, bend, products = truncated_cg(lambda v: times(v) + damping * v, -point.gradient, inner)
        slope = jnp.vdot(direction, point.gradient)
        return direction, (point.value, damping, slope, bend), products

    def start(point):
        zero = jnp.zeros_like(point.value)
        return point.value, zero + damping, zero, zero

    return _run(f, x0, direct, start, _newton_step, steps, tolerance)


def nonlinear_cg(f: Callable, x0, *, steps: int = 500, tolerance: float = 1e-5) -> Result:
    """Minimize f by nonlinear conjugate gradients (Polak & Ribiere, restarted where their factor is negative).

    The line search begins with the step that the Hessian along the direction gives, -g'd / d'Hd. On a quadratic
    function this step is exact, so that n iterations find the minimum. Arguments and errors are those of `newton`.
    """

    def direct(function, point, memory):
        gradient, (before, direction) = point.gradient, memory
        factor = jnp.vdot(gradient, gradient - before) / jnp.vdot(before, before)
        direction = -gradient + jnp.maximum(factor, 0) * direction
        direction = jnp.where(jnp.vdot(gradient, direction) < 0, direction, -gradient)
        bend = jnp.vdot(direction, hessian_product(function, point.x)(direction))
        exact = -jnp.vdot(gradient, direction) / jnp.where(bend > 0, bend, 1)
        length = jnp.where(bend > 0, exact, 1 / jnp.linalg.norm(direction))
        return length * direction, (gradient, direction), 1

    def start(point):
        return point.gradient, jnp.zeros_like(point.gradient)

    return _run(f, x0, direct, start, partial(_wolfe_step, curvature=0.1), steps, tolerance)


def bfgs(f: Callable, x0, *, steps: int = 200, tolerance: float = 1e-5) -> Result:
    """Minimize f by BFGS, which builds an approximation of H^-1 from the changes of the gradient.

    The first step has length 1. Arguments and errors are those of `newton`.
    """

    def direct(function, point, memory):
        before, inverse = memory
        inverse = _updated(inverse, point.x - before.x, point.gradient - before.gradient, first=before.rate == 0)
        return -inverse @ point.gradient, (point, inverse), 0

    def start(point):
        return point, jnp.eye(point.x.size, dtype=point.x.dtype) / jnp.linalg.norm(point.gradient)

    return _run(f, x0, direct, start, _wolfe_step, steps, tolerance)


def truncated_cg(times: Callable, b, steps: int) -> tuple[jax.Array, jax.Array, Any]:
    """Solve B d = b roughly by conjugate gradients (Nocedal & Wright, algorithm 7.1).

    They stop where the residual's norm is at most min(1/2, sqrt|b|) |b|, and at a direction p of no positive curvature:
    the first such p, which is b, gives d = b |b|^2 / |b'Bb|; a later one is left out.

    Args:
      times: function v -> B v.
      b: [n].
      steps: iterations at most.

    Returns:
      (d [n], d'Bd, number of products).
    """
    norm = jnp.linalg.norm(b)
    enough = jnp.minimum(0.5, jnp.sqrt(norm)) * norm

    def iterate(carry):
        d, r, p, count, _ = carry
        bent = times(p)
        bend, square = jnp.vdot(p, bent), jnp.vdot(r, r)
        length = square / jnp.where(bend == 0, 1, jnp.abs(bend))
        length = jnp.where((bend > 0) | (count == 0), length, 0)
        d, r = d + length * p, r - length * bent
        return d, r, r + jnp.vdot(r, r) / square * p, count + 1, bend <= 0

    def unfinished(carry):
        _, r, _, count, stopped = carry
        return (count < steps) & ~stopped & (jnp.linalg.norm(r) > enough)

    d, r, _, count, _ = jax.lax.while_loop(unfinished, iterate, (jnp.zeros_like(b), b, b, 0, False))
    return d, jnp.vdot(d, b - r), count


def _updated(inverse, step, change, *, first):
    """Return the approximation of H^-1 after a step and the gradient's change (Nocedal & Wright, 6.17 and 6.20)."""
    product = jnp.vdot(step, change)
    safe = jnp.where(product > 0, product, 1)
    scaled = safe / jnp.where(product > 0, jnp.vdot(change, change), 1) * jnp.eye(step.size, dtype=step.dtype)
    inverse_before = jnp.where(first, scaled, inverse)
    left = jnp.eye(step.size, dtype=step.dtype) - jnp.outer(step, change) / safe
    new = left @ inverse_before @ left.T + jnp.outer(step, step) / safe
    return jnp.where(product > 0, new, inverse)


def _hessian(function, x):
    return jax.vmap(hessian_product(function, x))(jnp.eye(x.size, dtype=x.dtype))


def _full_step(function, point, direction):
    x = point.x + direction
    return Point(x, *jax.value_and_grad(function)(x), jnp.ones_like(point.rate)), 1


def _wolfe_step(function, point, direction, *, longest=None, curvature=0.9):
    """Return the Point of a step that meets the strong Wolfe conditions, and the number of evaluations."""
    search = optax.scale_by_zoom_linesearch(
        SEARCH_STEPS, max_learning_rate=longest, curv_rtol=curvature, initial_guess_strategy="one"
    )
    known = {"value": point.value, "grad": point.gradient, "value_fn": function}
    step, state = search.update(direction, search.init(point.x), point.x, **known)
    after: Any = state
    return Point(point.x + step, after.value, after.grad, after.learning_rate), after.info.num_linesearch_steps


_newton_step = partial(_wolfe_step, longest=1.0)  # the length of a Newton direction is right where its model is


def _run(f, x0, direct, start, step, steps, tolerance):
    """Iterate until the gradient is within the tolerance, a step finds nothing lower, or f is not finite.

    Args:
      direct: function (function of a vector, Point, memory) -> (direction [n], memory, products).
      start: function Point -> memory.
      step: function (function of a vector, Point, direction) -> (Point, evaluations).
    """
    if steps < 1 or tolerance < 0:
        raise InputError(f"steps {steps} must be at least 1, and tolerance {tolerance} at least 0")
    x, unravel = ravel_pytree(x0)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x0 has type {x.dtype}; give floating-point numbers")

    def function(x):
        return f(unravel(x))

    def iterate(carry):
        k, point, memory, path, gradients, products = carry
        direction, memory, more_products = direct(function, point, memory)
        point, more_gradients = step(function, point, direction)
        return k + 1, point, memory, path.at[k + 1].set(point.x), gradients + more_gradients, products + more_products

    def unfinished(carry):
        k, point, *_ = carry
        moving = (point.rate > 0) | (k == 0)
        return (k < steps) & (jnp.abs(point.gradient).max() > tolerance) & moving & jnp.isfinite(point.value)

    point = Point(x, *jax.value_and_grad(function)(x), jnp.zeros((), x.dtype))
    path = jnp.zeros((steps + 1, x.size), x.dtype).at[0].set(x)
    k, point, _, path, gradients, products = jax.lax.while_loop(
        unfinished, iterate, (0, point, start(point), path, 1, 0)
    )
    path = jnp.where(jnp.arange(steps + 1)[:, None] <= k, path, point.x[None])
    return Result(unravel(point.x), point.value, path, k, gradients, products)
