"""Evaluate a jaxpr with some of its calls replaced by other functions."""

from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxprs_in_params

from deepjax.errors import InputError
from deepjax.trace.jaxpr import called_jaxpr, scan_sizes


def evaluate(jaxpr, constants, arguments, replace: Callable) -> list:
    """Return the outputs of a jaxpr, where calls such as those of `jax.nn.relu` may be computed by another function.

    Loops and branches that contain replaced calls are built again around them. All other calls are inlined, so JAX
    differentiates the bodies of a `custom_jvp`, `custom_vjp` or `remat` in place of their own rules.

    Args:
      jaxpr: a jaxpr, as `jax.make_jaxpr(f)(x).jaxpr`.
      constants: values of its constants, as `jax.make_jaxpr(f)(x).consts`.
      arguments: values of its inputs.
      replace: function (equation of a call) -> function of its operands, or None. It is asked for the outermost
        calls first; what is inside of a replaced call is not looked at.

    Returns:
      list of arrays.

    Raises:
      InputError: a call to replace is in a `while` loop, which has no gradient.

    >>> closed = jax.make_jaxpr(lambda x: 2 * jax.nn.relu(x))(1.0)
    >>> def absolute(eqn):
    ...     return abs if call_name(eqn) == "relu" else None
    >>> [float(y) for y in evaluate(closed.jaxpr, closed.consts, [-3.0], absolute)]
    [6.0]
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    for eqn in jaxpr.eqns:
        inputs = [atom.val if isinstance(atom, Literal) else values[atom] for atom in eqn.invars]
        values.update(zip(eqn.outvars, _results(eqn, inputs, replace), strict=True))
    return [atom.val if isinstance(atom, Literal) else values[atom] for atom in jaxpr.outvars]


def call_name(eqn) -> str:
    """Return the name of the function that an equation calls, or an empty string.

    The equation of a `custom_jvp` has no name. Its body is one call of the jitted function, and that call has the name.
    """
    body = called_jaxpr(eqn)
    if "name" in eqn.params or body is None or len(body.eqns) != 1:
        return str(eqn.params.get("name", ""))
    return call_name(body.eqns[0])


def _results(eqn, inputs, replace):
    name, body = eqn.primitive.name, called_jaxpr(eqn)
    loop = name in ("scan", "while", "cond")
    if body is not None and not loop:
        if function := replace(eqn):
            return [function(*inputs)]
        constants = [value for each in eqn.params.values() if isinstance(each, ClosedJaxpr) for value in each.consts]
        return evaluate(body, constants, inputs, replace)
    if not _contains(eqn, replace):
        results = eqn.primitive.bind(*inputs, **eqn.params)
        return results if eqn.primitive.multiple_results else [results]
    if name == "scan":
        return _scan(eqn, inputs, replace)
    if name == "cond":
        branches = [_function(branch, replace) for branch in eqn.params["branches"]]
        return jax.lax.switch(inputs[0], branches, *inputs[1:])
    raise InputError(f"a call to replace is inside of a {name}, which has no gradient; use a scan in its place")


def _contains(eqn, replace):
    return any(replaced_calls(body, replace) for body in jaxprs_in_params(eqn.params))


def replaced_calls(jaxpr, replace: Callable) -> list[str]:
    """Return the names of the calls that `evaluate` replaces in a jaxpr. One in the body of a loop is there once."""
    names = []
    for eqn in jaxpr.eqns:
        if called_jaxpr(eqn) is not None and replace(eqn):
            names.append(call_name(eqn))
        else:
            names += [each for body in jaxprs_in_params(eqn.params) for each in replaced_calls(body, replace)]
    return names


def _function(closed, replace):
    return lambda *values: evaluate(closed.jaxpr, closed.consts, values, replace)


def _scan(eqn, inputs, replace):
    params = eqn.params
    constants, carries = scan_sizes(params)
    function = _function(params["jaxpr"], replace)

    def step(carry, slices):
        results = function(*inputs[:constants], *carry, *slices)
        return results[:carries], results[carries:]

    first = constants + carries
    plan = {"length": params["length"], "reverse": params["reverse"], "unroll": params["unroll"]}
    carry, stacked = jax.lax.scan(step, list(inputs[constants:first]), list(inputs[first:]), **plan)
    return [*carry, *stacked]
