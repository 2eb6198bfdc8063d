"""The outputs of every Linen module in a function, in scans too, from one forward pass."""

from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Literal

from deepjax.trace import marks, read_mark
from deepjax.trace.jaxpr import called_jaxpr, scan_sizes


def module_outputs(function: Callable, *arguments) -> dict[tuple[str, ...], jax.Array]:
    """Call a function that applies Linen modules, and return the output of each module that has parameters.

    Args:
      function: pure function; it may be traced.
      *arguments: pytrees of arrays.

    Returns:
      {path: array} in the order in which calls end, so that the whole model, with the path (), is the last. Of a module
      with several outputs it is the last array, of one that is called several times the last call, and of one in a
      scan the last step. Modules in a `cond` or `while` are left out.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> model, x = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), jnp.ones((4, 5))
    >>> found = module_outputs(model.apply, model.init(jax.random.key(0), x), x)
    >>> [("/".join(path), y.shape) for path, y in found.items()]
    [('layers_0', (4, 3)), ('layers_2', (4, 2)), ('', (4, 2))]
    """
    with marks():
        closed = jax.make_jaxpr(function)(*arguments)
    _, taps = _run(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
    owners = {mark.path for mark, _ in taps if mark.parameters}
    found = {}
    for mark, value in taps:
        if value.ndim and any(path[: len(mark.path)] == mark.path for path in owners):
            found.pop(mark.path, None)
            found[mark.path] = value[(-1,) * (value.ndim - 1 - len(mark.shape))]
    return found


def _run(jaxpr, constants, arguments):
    """Return (the outputs of a jaxpr, [(mark, array) of each array that leaves a module])."""
    values, taps = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True)), []
    for eqn in jaxpr.eqns:
        inputs = [atom.val if isinstance(atom, Literal) else values[atom] for atom in eqn.invars]
        results, inner = _results(eqn, inputs)
        taps += inner
        values.update(zip(eqn.outvars, results, strict=True))
    return [atom.val if isinstance(atom, Literal) else values[atom] for atom in jaxpr.outvars], taps


def _results(eqn, inputs):
    body = called_jaxpr(eqn)
    if eqn.primitive.name == "scan":
        return _scan(eqn, inputs)
    if body is not None and eqn.primitive.name not in ("while", "cond"):
        constants = [value for each in eqn.params.values() if isinstance(each, ClosedJaxpr) for value in each.consts]
        return _run(body, constants, inputs)
    mark, results = read_mark(eqn), eqn.primitive.bind(*inputs, **eqn.params)
    taps = [(mark, inputs[0])] if mark is not None and (mark.role, mark.method) == ("exit", "__call__") else []
    return (results if eqn.primitive.multiple_results else [results]), taps


def _scan(eqn, inputs):
    params, found = eqn.params, []
    constants, carries = scan_sizes(params)
    first = constants + carries

    def step(carry, slices):
        closed = params["jaxpr"]
        results, taps = _run(closed.jaxpr, closed.consts, [*inputs[:constants], *carry, *slices])
        found[:] = [mark for mark, _ in taps]  # the same whenever the body is traced
        return results[:carries], (results[carries:], [value for _, value in taps])

    plan = {"length": params["length"], "reverse": params["reverse"], "unroll": params["unroll"]}
    carry, (stacked, taps) = jax.lax.scan(step, list(inputs[constants:first]), list(inputs[first:]), **plan)
    return [*carry, *stacked], list(zip(found, taps, strict=True))
