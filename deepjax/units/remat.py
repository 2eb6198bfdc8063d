"""Recompute a part of a module in the backward pass, on every platform."""

import jax
import jax.numpy as jnp
from flax.core import lift
from flax.linen.transforms import lift_direct_transform

from deepjax.trace.calls import with_current_rules


def recompute(function, module, *inputs):
    """Return function(module, *inputs), and keep only the inputs and the variables of `module` for the backward pass.

    Call it in a Linen module that owns `module`. `nn.remat` does the same with an optimization barrier, but XLA on CPU
    removes the barrier and then merges the recomputation with the forward pass. Here, the recomputation is wrapped in a
    `lax.cond` on the incoming gradient, so XLA can neither merge it with the forward pass nor schedule it early.

    >>> import flax.linen as nn
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return recompute(lambda dense, x: nn.relu(dense(x)), nn.Dense(3), x)
    >>> Net().init_with_output(jax.random.key(0), jnp.ones((2, 4)))[0].shape
    (2, 3)
    """

    def transform(function, scopes, *inputs):
        def inner(scope_fn, repack, variables, keys, *inputs):
            def pure(variables, keys, *inputs):
                scopes = scope_fn(variables, keys)
                for scope in jax.tree.leaves(scopes):
                    scope.rng_counters = dict(scope.rng_counters)  # the recomputation must draw the same random numbers
                return function(scopes, *inputs), repack(scopes)

            return _recomputed(pure, (variables, keys, *inputs))

        return lift.pack(inner, (True,), (True,), (True,), name="recompute")(scopes, *inputs)

    return lift_direct_transform(transform, (function,), module, *inputs)


def _recomputed(pure, args):
    leaves, structure = jax.tree.flatten(args)
    varies = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def run(floats, others):
        floats, others = iter(floats), iter(others)
        return pure(*structure.unflatten([next(floats if float_ else others) for float_ in varies]))

    def backward(saved, cotangents):
        floats, others = saved
        nan = jnp.isnan(jnp.stack([leaf.ravel()[0] for leaf in jax.tree.leaves(cotangents[0])])).any()

        def recomputed(cotangents, floats, others):
            return jax.vjp(lambda floats: run(floats, others), floats)[1](cotangents)[0]

        def lost(cotangents, floats, others):  # the gradients that follow from a NaN
            return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), floats)

        return jax.lax.cond(nan, lost, recomputed, cotangents, floats, others), None

    function = jax.custom_vjp(run)
    function.defvjp(with_current_rules(lambda *args: (run(*args), args)), with_current_rules(backward))
    return function(*([leaf for leaf, v in zip(leaves, varies, strict=True) if v == kind] for kind in (True, False)))
