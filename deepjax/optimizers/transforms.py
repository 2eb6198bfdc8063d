"""Transformations that Optax lacks, or that it defines differently from PyTorch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from optax.contrib import MuonDimensionNumbers


def scale_by_adagrad(epsilon=1e-10):
    """Make Adagrad's direction g / (sqrt(sum of g^2) + epsilon): Duchi et al. 2011, as in PyTorch.

    Optax adds epsilon under the root, and starts the sum at 0.1 instead of 0.
    """

    def init(params):
        return optax.ScaleByRssState(optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        total = jax.tree.map(lambda t, g: t + g * g, state.sum_of_squares, updates)
        return jax.tree.map(lambda g, t: g / (jnp.sqrt(t) + epsilon), updates, total), optax.ScaleByRssState(total)

    return optax.GradientTransformation(init, update)


class NadamState(NamedTuple):
    """Adam's moments, and the product of all momenta so far, which corrects the bias of the first moment."""

    count: jax.Array
    mu: Any
    nu: Any
    product: jax.Array


def scale_by_nadam(b1=0.9, b2=0.999, epsilon=1e-8, decay=4e-3):
    """Make NAdam's direction: Dozat 2016, algorithm 2, as in PyTorch, with momentum mu_t = b1 (1 - 0.96^(t decay) / 2).

    In Optax's nadam, mu_t = b1, which is the limit of a large decay.
    """

    def init(params):
        one = jnp.ones((), optax.tree.dtype(params, "highest"))
        zeros = optax.tree.zeros_like(params)
        return NadamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros), one)

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        now, after = (b1 * (1 - 0.5 * 0.96 ** (t * decay)) for t in (count, count + 1))
        product = (state.product * now).astype(state.product.dtype)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)

        def step(g, m, v):
            return (g * (1 - now) / (1 - product) + m * after / (1 - product * after)) / (jnp.sqrt(v) + epsilon)

        updates = jax.tree.map(step, updates, mu, optax.tree.bias_correction(nu, b2, count))
        return updates, NadamState(count, mu, nu, product)

    return optax.GradientTransformation(init, update)


def scale_by_rprop(first_step):
    """Make Rprop's steps: Riedmiller & Braun 1993 without backtracking, as in PyTorch.

    Factors are 0.5 and 1.2, step sizes 1e-6 to 50. Optax (0.2.8) returns the previous step; the current one is in its
    state.
    """
    inner = optax.scale_by_rprop(first_step)

    def update(updates, state, params=None):
        _, state = inner.update(updates, state, params)
        return state.prev_updates, state  # pyright: ignore[reportAttributeAccessIssue]

    return optax.GradientTransformation(inner.init, update)


class LbfgsState(NamedTuple):
    """The previous point and gradient, and the pairs of differences that describe the curvature, oldest first."""

    count: jax.Array
    params: jax.Array  # [parameters]
    gradient: jax.Array
    steps: jax.Array  # [history, parameters]
    changes: jax.Array  # [history, parameters] of the gradient
    weights: jax.Array  # [history]: 1 / (step . change); 0 for a pair that does not exist yet
    scale: jax.Array  # of the initial inverse Hessian, to which the pairs are applied


def scale_by_lbfgs(history=10):
    """Make L-BFGS's direction, inverse Hessian times gradient: Nocedal & Wright, algorithm 7.4, as in PyTorch.

    A pair with step . change <= 1e-10 is left out, so that the direction is a descent direction, on mini-batches too.
    Optax uses every pair, and relies on its line search. The first direction is the gradient times min(1, 1 / |g|_1),
    as in PyTorch; Optax divides by the 2-norm.
    """

    def init(params):
        flat = jnp.zeros_like(ravel_pytree(params)[0])
        memory = jnp.zeros((history, flat.size), flat.dtype)
        zero = jnp.zeros((), flat.dtype)
        # The arrays are copies, because the state is donated, and one buffer cannot be donated twice.
        return LbfgsState(
            jnp.zeros((), jnp.int32), flat, flat.copy(), memory, memory.copy(), memory[:, 0].copy(), zero + 1
        )

    def update(updates, state, params=None):
        (g, unravel), (x, _) = ravel_pytree(updates), ravel_pytree(params)
        s, y = x - state.params, g - state.gradient
        curvature = s @ y
        good = (state.count > 0) & (curvature > 1e-10)

        def remember(memory, new):
            return jnp.where(good, jnp.concatenate([memory[1:], new[None]]), memory)

        pairs = remember(state.steps, s), remember(state.changes, y), remember(state.weights, 1 / curvature)
        scale = jnp.where(good, curvature / (y @ y), state.scale)

        def back(q, pair):
            s, y, weight = pair
            a = weight * (s @ q)
            return q - a * y, a

        def forth(q, pair):
            s, y, weight, a = pair
            return q + (a - weight * (y @ q)) * s, None

        q, a = jax.lax.scan(back, g, pairs, reverse=True)
        direction, _ = jax.lax.scan(forth, scale * q, (*pairs, a))
        direction = jnp.where(state.count == 0, g * jnp.minimum(1, 1 / jnp.abs(g).sum()), direction)
        return unravel(direction), LbfgsState(state.count + 1, x, g, *pairs, scale)

    return optax.GradientTransformation(init, update)


def clip_adaptively(clipping, epsilon=1e-3):
    """Scale the gradient of each unit down to the norm clipping * max(|w|, epsilon): Brock et al. 2021, eq. 3.

    A unit is the weights of one output feature: [*window, in] of a kernel [*window, in, out]. A vector (bias, scale) is
    one unit. Optax defines units in the same way, except for 3-d and 5-d kernels. In a stack of units (paths with a
    part `unit`), the leading axis is the number of the unit in the stack, and each is clipped separately. Every
    parameter is clipped, as in Optax. Brock et al. do not clip the last layer; a group with clip_adaptive null does the
    same.
    """

    def clip(path, g, w):
        stacked = _stacked(path)
        axes = tuple(range(stacked, w.ndim - 1 if w.ndim - stacked > 1 else w.ndim))
        g_norm, w_norm = (optax.transforms.unitwise_norm(x, axes) for x in (g, w))
        return optax.transforms.unitwise_clip(g_norm, clipping * jnp.maximum(w_norm, epsilon), g)

    def update(updates, state, params=None):
        return jax.tree.map_with_path(clip, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def matrices(params):
    """Return `optax.contrib.MuonDimensionNumbers` for each kernel, and None for all other parameters.

    Rows are window and features in, columns features. In a stack of units (paths with a part `unit`), the leading axis
    counts matrices.

    >>> matrices({"kernel": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)})
    {'bias': None, 'kernel': MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=(3,))}
    """

    def one(path, kernel):
        if getattr(path[-1], "key", None) != "kernel" or kernel.ndim - _stacked(path) < 2:
            return None
        return MuonDimensionNumbers(tuple(range(_stacked(path), kernel.ndim - 1)), (kernel.ndim - 1,))

    return jax.tree.map_with_path(one, params)


def _stacked(path):
    """Return how many leading axes of a parameter count the units of stacks."""
    return sum(getattr(entry, "key", None) == "unit" for entry in path)


class LookaheadState(NamedTuple):
    """The number of updates so far, and the slow weights."""

    count: jax.Array
    slow: Any


def lookahead(period, rate):
    """Every `period` updates, move the slow weights `rate` of the way to the weights, and set the weights to them.

    Zhang et al. 2019, algorithm 1. It must be the last link of a chain, because it uses the weights that the preceding
    updates would give. `optax.lookahead` does the same, but represents the parameters as pairs.
    """

    def init(params):
        return LookaheadState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None):
        count = state.count + 1
        synchronize = count % period == 0

        def change(u, slow, w):
            # For equal weights, such as frozen ones, slow - w is 0, so that they do not move.
            return jnp.where(synchronize, slow - w + rate * (w - slow + u), u)

        updates = jax.tree.map(change, updates, state.slow, params)
        # Computed as the updates will be applied, so that slow weights and weights are equal to the bit.
        slow = jax.tree.map(lambda u, slow, w: jnp.where(synchronize, w + u, slow), updates, state.slow, params)
        return updates, LookaheadState(count, slow)

    return optax.GradientTransformation(init, update)


def slow_params(opt_state, params):
    """Return the slow weights of `lookahead`, which Zhang et al. evaluate, or `params` if there are none.

    Args:
      opt_state: state of any optimizer.
      params: the parameters of this state. Frozen ones have no slow weights, and are returned unchanged.
    """

    def is_lookahead(node):
        return isinstance(node, LookaheadState)

    found = [node.slow for node in jax.tree.leaves(opt_state, is_leaf=is_lookahead) if is_lookahead(node)]
    if not found:
        return params

    def is_masked(node):
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(lambda slow, w: w if is_masked(slow) else slow, found[0], params, is_leaf=is_masked)
