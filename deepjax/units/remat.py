"""Part of a module whose insides the backward pass computes again, on every platform."""

import jax
import jax.numpy as jnp
from flax.core import lift
from flax.linen.transforms import lift_direct_transform

from deepjax.trace.calls import with_current_rules


def recompute(function, module, *inputs):
    """function(module, *inputs), of which only the inputs and the module's variables are kept for the backward pass.

    To be called in a Linen module that owns `module`. `nn.remat` does the same by an optimization barrier, which XLA on
    CPU takes away before it merges equal computations, the second with the first. Here what is computed again stands in
    a branch that depends on the gradient that arrives, so that it cannot be merged, nor start before.

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
                    scope.rng_counters = dict(scope.rng_counters)  # what is run again must draw the same
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

        def again(cotangents, floats, others):
            return jax.vjp(lambda floats: run(floats, others), floats)[1](cotangents)[0]

        def lost(cotangents, floats, others):  # as the gradients that follow from a NaN
            return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), floats)

        return jax.lax.cond(nan, lost, again, cotangents, floats, others), None

    function = jax.custom_vjp(run)
    function.defvjp(with_current_rules(lambda *args: (run(*args), args)), with_current_rules(backward))
    return function(*([leaf for leaf, v in zip(leaves, varies, strict=True) if v == kind] for kind in (True, False)))
