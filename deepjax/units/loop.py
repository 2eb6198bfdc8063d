"""The loop over the units of a stack, and what its backward pass stores.

`nn.scan` is enough for the plain loop. The backward passes of the other loops are written out here. All loops use one
layout of variables, with a leading axis of units. Here, a unit is a function of (variables, keys, numbers of this unit,
x). Flax's `lift.pack` turns a module into such a function and writes its variables back, as for `nn.scan`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import lift
from flax.linen.transforms import lift_direct_transform
from jax import lax

from deepjax.errors import InputError
from deepjax.trace.calls import with_current_rules


class Each(NamedTuple):
    """Variables, keys and numbers of one unit, or, with a leading axis of units, of all units."""

    variables: Any
    keys: Any
    per_unit: Any


def run(unit, x, per_unit, functions, *, depth, remat, unroll, forward_only):
    """Return x after `depth` units, whose variables are stacked. Call it in a Linen module that owns `unit`.

    Args:
      unit: a Linen module.
      x: input of the first unit.
      per_unit: {name: values [depth]}: further arguments of each unit.
      functions: (step,), where step is (unit, x, per_unit) -> y. For remat "reversible" (step, f, g): on halves x1, x2
        of the features, step computes y1 = x1 + f(x2), y2 = x2 + g(y1).
      depth: number of units.
      remat: "none", "unit", "sqrt" or "reversible": see `stack`.
      unroll: units per iteration, for "none" and "unit".
      forward_only: run the plain loop with every remat, and raise InputError when it is differentiated.
    """

    def transform(*functions_and_scopes):
        *functions, scopes, x, per_unit = functions_and_scopes
        inner = partial(_inner, functions, depth, remat, unroll, forward_only)
        return lift.pack(inner, (True,), (True,), (True,), name="stack")(scopes, x, per_unit)

    return lift_direct_transform(transform, functions, unit, x, per_unit)


def _inner(functions, depth, remat, unroll, forward_only, scope_fn, repack, variables, keys, x, per_unit):
    def pure(function, x, each):
        scopes = scope_fn(each.variables, each.keys)
        for scope in jax.tree.leaves(scopes):
            scope.rng_counters = dict(scope.rng_counters)  # the recomputation must draw the same random numbers
        return function(scopes, x, each.per_unit), repack(scopes)

    split = lift.tree_map_rngs(lambda key: jax.random.split(jax.random.clone(key), depth), keys)
    each = Each(variables, split, per_unit)
    step, *halves = [partial(pure, function) for function in functions]
    if forward_only:
        return _forward_only(step, depth, remat)(x, each)
    if remat == "sqrt":
        return _keeping_groups(step, depth, group_size(depth))(x, each)
    if remat == "reversible":
        return _keeping_nothing(step, *halves)(x, each)
    step = jax.checkpoint(step, prevent_cse=False) if remat == "unit" else step
    return lax.scan(step, x, each, length=depth, unroll=unroll)


def _forward_only(step: Callable, depth: int, remat: str):
    """Return a function like `lax.scan(step, x, each)` that raises InputError when it is differentiated."""

    def refuse(*_):
        some = "'params', 'intermediates' or 'perturbations'"
        what = some if remat == "sqrt" else "a collection other than 'batch_stats'"
        raise InputError(
            f"stack: remat {remat} cannot be differentiated while {what} is mutable, because all activations would "
            f"be stored; take gradients with mutable=['batch_stats'], and observe the rest in a separate forward pass"
        )

    looped = jax.custom_vjp(lambda x, each: lax.scan(step, x, each, length=depth))
    looped.defvjp(refuse, refuse)
    return looped


# Groups: the input of every group of units is stored


def group_size(depth):
    """Return the number of units in a group that needs the least memory.

    The backward pass stores depth / size inputs, and about INSIDES arrays for each unit of the group it recomputes.
    """
    return max(1, round(math.sqrt(depth / INSIDES)))


INSIDES = 4  # arrays of the input's size in a unit's backward pass; 4 to 6 for two of convolution, norm and ReLU


def _keeping_groups(step: Callable, depth: int, size: int):
    """Return a function like `lax.scan(step, x, each)` that stores the inputs of groups for the backward pass."""
    groups, rest = divmod(depth, size)
    starts = size * np.arange(groups)
    group = partial(lax.scan, step)  # called as group(x, each, length=...)

    def forward(x, each):
        def body(x, start):
            y, variables = group(x, _slice(each, start, size), length=size)
            return y, (x, variables)

        last, (inputs, variables) = lax.scan(body, x, starts)
        variables = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), variables)
        y = last
        if rest:
            y, more = group(last, _slice(each, groups * size, rest), length=rest)
            variables = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), variables, more)
        return (y, variables), (inputs, last, each)

    def backward(saved, cotangents):
        inputs, last, each = saved
        dy, dvariables = cotangents

        def undo(carry, x, start, length):
            dy, gradients = carry
            run, part = partial(group, length=length), _slice(each, start, length)
            dx, new = _pull_back(run, x, part, (dy, _slice(dvariables, start, length)))
            return dx, jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, start, 0), gradients, new)

        carry = dy, jax.tree.map(jnp.zeros_like, _floats(each)[0])
        if rest:
            carry = undo(carry, last, groups * size, rest)

        def body(carry, place):
            x, start = place
            return undo(carry, x, start, size), None

        return lax.scan(body, carry, (inputs, starts), reverse=True)[0]

    return _custom_vjp(forward, backward)


def _pull_back(run, x, each, cotangents):
    """Return the gradients of run(x, each) with respect to x and to the floats of `each`."""
    floats, others = _floats(each)
    _, pull = jax.vjp(lambda x, floats: run(x, _together(floats, others)), x, floats)
    return pull(cotangents)


def _slice(tree, start, length):
    def part(a):
        if a.dtype == jax.dtypes.float0:
            return np.zeros((length, *a.shape[1:]), a.dtype)
        return lax.dynamic_slice_in_dim(a, start, length)

    return jax.tree.map(part, tree)


# Reversible: only the last output is stored


def _keeping_nothing(step: Callable, f: Callable, g: Callable):
    """Return a function like `lax.scan(step, x, each)` whose backward pass computes inputs from outputs.

    Gomez et al. 2017, "The reversible residual network" (arXiv 1707.04585), algorithm 1. No gradient passes through the
    new variables, which are running moments.
    """

    def forward(x, each):
        y, variables = lax.scan(step, x, each)
        return (y, variables), (y, each)

    def backward(saved, cotangents):
        y, each = saved

        def half(function, x, part):
            floats, others = _floats(part)
            value, pull, _ = jax.vjp(lambda x, floats: function(x, _together(floats, others)), x, floats, has_aux=True)
            return value, pull

        def body(carry, part):
            (y1, y2), (dy1, dy2) = carry
            value, pull = half(g, y1, part)
            x2 = y2 - value
            dx, of_g = pull(dy2)
            dy1 = dy1 + dx
            value, pull = half(f, x2, part)
            x1 = y1 - value
            dx, of_f = pull(dy1)
            return ((x1, x2), (dy1, dy2 + dx)), jax.tree.map(jnp.add, of_g, of_f)

        halves = tuple(jnp.split(y, 2, -1)), tuple(jnp.split(cotangents[0], 2, -1))
        (_, dx), gradients = lax.scan(body, halves, each, reverse=True)
        return jnp.concatenate(dx, -1), gradients

    return _custom_vjp(forward, backward)


def _custom_vjp(forward, backward):
    looped = jax.custom_vjp(lambda x, each: forward(x, each)[0])
    looped.defvjp(with_current_rules(forward), with_current_rules(backward))
    return looped


def _floats(each):
    """Split `each` into the leaves that have a gradient and the rest, with None in the place of missing leaves."""

    def keep(floats):
        return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) == floats else None, each)

    return keep(True), keep(False)


def _together(floats, others):
    return jax.tree.map(lambda a, b: b if a is None else a, floats, others, is_leaf=lambda a: a is None)
