"""Transformations that Optax has not, or defines otherwise than PyTorch does."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


def scale_by_adagrad(epsilon=1e-10):
    """g / (sqrt(sum of g^2) + epsilon): Duchi et al. 2011, as PyTorch has it.

    Optax puts epsilon under the root, and starts the sum at 0.1 where PyTorch starts at 0.
    """

    def init(params):
        return optax.ScaleByRssState(optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        total = jax.tree.map(lambda t, g: t + g * g, state.sum_of_squares, updates)
        return jax.tree.map(lambda g, t: g / (jnp.sqrt(t) + epsilon), updates, total), optax.ScaleByRssState(total)

    return optax.GradientTransformation(init, update)


class NadamState(NamedTuple):
    """Adam's moments, and the product of all momenta so far, which corrects the first moment's bias."""

    count: jax.Array
    mu: Any
    nu: Any
    product: jax.Array


def scale_by_nadam(b1=0.9, b2=0.999, epsilon=1e-8, decay=4e-3):
    """Dozat 2016, algorithm 2, with its schedule of momentum, mu_t = b1 (1 - 0.96^(t decay) / 2), as PyTorch has it.

    Optax's nadam keeps mu_t at b1, which is the limit of a large decay.
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
    """Riedmiller & Braun 1993 without backtracking, as PyTorch has it: factors 0.5 and 1.2, steps from 1e-6 to 50.

    Optax's returns the step before this one (0.2.8); this step is what its state remembers.
    """
    inner = optax.scale_by_rprop(first_step)

    def update(updates, state, params=None):
        _, state = inner.update(updates, state, params)
        return state.prev_updates, state  # pyright: ignore[reportAttributeAccessIssue]

    return optax.GradientTransformation(inner.init, update)


class LbfgsState(NamedTuple):
    """The last point and gradient, and the pairs of differences that describe the curvature, oldest first."""

    count: jax.Array
    params: jax.Array  # [parameters]
    gradient: jax.Array
    steps: jax.Array  # [history, parameters]
    changes: jax.Array  # [history, parameters] of the gradient
    weights: jax.Array  # [history]: 1 / (step . change); 0: an empty place
    scale: jax.Array  # of the inverse Hessian before those pairs


def scale_by_lbfgs(history=10):
    """Gradient times L-BFGS's inverse Hessian: Nocedal & Wright, algorithm 7.4, with PyTorch's safeguards.

    A pair whose step . change is at most 1e-10 is left out, so that the direction always descends, on mini-batches
    too; Optax takes every pair, and counts on its line search for good ones. The first direction is the gradient times
    min(1, 1 / |g|_1), as in PyTorch; Optax divides by the 2-norm.
    """

    def init(params):
        flat = jnp.zeros_like(ravel_pytree(params)[0])
        memory = jnp.zeros((history, flat.size), flat.dtype)
        zero = jnp.zeros((), flat.dtype)
        # Copies: the state is donated, and one buffer cannot be donated twice.
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
    """Scale the gradient of each unit down to clipping * max(|w|, epsilon): Brock et al. 2021, eq. 3.

    A unit is all that leads to one output feature, [*window, in] of a kernel [*window, in, out]; a vector (bias, scale)
    is one unit, as in Optax, which takes 3 dimensions for a dense layer's and 5 for 3-d windows. In a `deepjax` stack
    (paths with a part `unit`) the leading axis counts units of the network, which are clipped each by itself. Every
    parameter is clipped, as in Optax; Brock et al. leave the last layer out, as a group with clip_adaptive null does.
    """

    def clip(path, g, w):
        stacked = sum(getattr(entry, "key", None) == "unit" for entry in path)
        axes = tuple(range(stacked, w.ndim - 1 if w.ndim - stacked > 1 else w.ndim))
        g_norm, w_norm = (optax.transforms.unitwise_norm(x, axes) for x in (g, w))
        return optax.transforms.unitwise_clip(g_norm, clipping * jnp.maximum(w_norm, epsilon), g)

    def update(updates, state, params=None):
        return jax.tree.map_with_path(clip, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class LookaheadState(NamedTuple):
    """Updates done, and the slow weights."""

    count: jax.Array
    slow: Any


def lookahead(period, rate):
    """Every `period` updates: slow weights go `rate` of the way to the weights, which go to the slow weights.

    Zhang et al. 2019, algorithm 1. To be the last link of a chain, as it speaks of the weights that the updates before
    it would make. `optax.lookahead` does the same with parameters that are pairs; here they stay what they were.
    """

    def init(params):
        return LookaheadState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None):
        count = state.count + 1
        meet = count % period == 0

        def turn(u, slow, w):
            # Of equal weights, such as frozen ones, the difference is 0, and nothing moves.
            return jnp.where(meet, slow - w + rate * (w - slow + u), u)

        updates = jax.tree.map(turn, updates, state.slow, params)
        # What applying the updates will make of the weights, to the bit.
        slow = jax.tree.map(lambda u, slow, w: jnp.where(meet, w + u, slow), updates, state.slow, params)
        return updates, LookaheadState(count, slow)

    return optax.GradientTransformation(init, update)


def slow_params(opt_state, params):
    """Lookahead's slow weights, which Zhang et al. evaluate; `params` themselves where there are none.

    Args:
      opt_state: of any optimizer.
      params: the parameters that it goes with. Frozen ones have no slow weights, and stay.
    """

    def is_lookahead(node):
        return isinstance(node, LookaheadState)

    found = [node.slow for node in jax.tree.leaves(opt_state, is_leaf=is_lookahead) if is_lookahead(node)]
    if not found:
        return params

    def is_masked(node):
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(lambda slow, w: w if is_masked(slow) else slow, found[0], params, is_leaf=is_masked)
