"""Split a model before the output of its last layer: what the layer returns, and what is done with it afterwards.

The last layer's output is found in the model's jaxpr, so that this works for every model: the last product of an array
that depends on the inputs with one that depends on the parameters only, and the addition of a bias to it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Var

from deepjax.doctor.compiling import compile_quickly
from deepjax.functional.convolution.primitives import stated
from deepjax.trace import evaluate

PRODUCTS = ("dot_general", "conv_general_dilated")
SHAPED = (
    "reshape",
    "transpose",
    "convert_element_type",
    "squeeze",
    "broadcast_in_dim",
    "copy",
    "name",
    "reduce_precision",
)
WIDE = 5.0  # standard deviation of the random outputs of a layer that show what is done with them


class Head(NamedTuple):
    """The last layer of a model, and what follows it."""

    shape: tuple[int, ...]  # of the layer's output, without the batch axis
    features: tuple[int, ...]  # shape of the layer's input, without the batch axis
    activation: str
    """What the tail does: "none", "softmax", "sigmoid", "tanh", "relu", "log softmax", "constant" or "other"."""
    rectified: bool  # whether the layer's negative outputs are cut before another activation
    split: Callable[..., tuple[Any, Any, Any]]
    """(variables, inputs, train, key) -> (the layer's input, its output, the collections of state after the call)."""
    tail: Callable[[Any], Any]
    """The layer's output, of the batch that was given to `find_head` -> predictions, in evaluation mode."""


def find_head(subject, variables, inputs, key) -> Head | None:
    """Return the last layer of a model, or None where it is not visible, as in the body of a loop.

    Args:
      subject: `Subject`.
      variables: of the model.
      inputs: a batch.
      key: PRNG key of the random outputs.
    """
    flat, tree = jax.tree.flatten((variables, inputs))
    closed = inlined(lambda *leaves: subject.apply(*jax.tree.unflatten(tree, leaves), False, key)[0], flat)
    jaxpr = closed.jaxpr
    if len(jaxpr.outvars) != 1 or isinstance(jaxpr.outvars[0], Literal):
        return None
    counts = [len(jax.tree.leaves(part)) for part in (variables, inputs)]
    found = last_layer(jaxpr, set(jaxpr.invars[counts[0] :]))
    if found is None:
        return None
    place, features, output = found
    tail = _tail(closed, place, output, flat)
    n = len(jax.tree.leaves(inputs)[0])
    shape, entering = tuple(output.aval.shape), tuple(features.aval.shape)
    if shape[:1] != (n,) or entering[:1] != (n,) or tail is None:
        return None
    activation, rectified = _activation(tail, shape, key)
    return Head(
        shape[1:],
        entering[1:],
        activation,
        rectified,
        splitter(subject),
        tail,
    )


def inlined(function, arguments):
    """Return the closed jaxpr of a function, without calls inside of it."""
    closed = jax.make_jaxpr(function)(*arguments)
    return jax.make_jaxpr(lambda *a: evaluate(closed.jaxpr, closed.consts, list(a), lambda eqn: None))(*arguments)


def last_layer(jaxpr, inputs) -> tuple[int, Any, Any] | None:
    """Return (number of the equation, the layer's input, its output), or None."""
    moving = set(inputs)  # variables that depend on the inputs
    found = None
    for place, eqn in enumerate(jaxpr.eqns):
        operands = [a for a in eqn.invars if isinstance(a, Var)]
        depends = [a for a in operands if a in moving]
        if not depends:
            continue
        moving.update(eqn.outvars)
        if _is_product(eqn) and len(depends) == 1 and len(operands) == 2:
            found = place, depends[0], eqn.outvars[0]
        elif found and eqn.primitive.name == "add" and len(operands) == 2 and len(depends) == 1:
            biased = _reaches(jaxpr, found[2], depends[0], found[0], place)
            found = (place, found[1], eqn.outvars[0]) if biased else found
    return found


def _is_product(eqn):
    if eqn.primitive.name in PRODUCTS:
        return True
    body = stated(eqn)
    return body is not None and any(each.primitive.name in PRODUCTS for each in body.eqns)


def _reaches(jaxpr, start, end, first, last):
    """Whether an array is another one in a new shape or type only."""
    same = {start}
    for eqn in jaxpr.eqns[first + 1 : last]:
        if eqn.primitive.name in SHAPED and isinstance(eqn.invars[0], Var) and eqn.invars[0] in same:
            same.update(eqn.outvars)
    return end in same


def _tail(closed, place, output, flat):
    """Return the function from the last layer's output to the predictions, or None if it needs other arrays."""
    jaxpr = closed.jaxpr
    needed, known = set(), {output}
    for eqn in jaxpr.eqns[place + 1 :]:
        operands = [a for a in eqn.invars if isinstance(a, Var)]
        if any(a in known for a in operands):
            needed.update(a for a in operands if a not in known)
            known.update(eqn.outvars)
    if jaxpr.outvars[0] not in known:
        return None
    before = jaxpr.replace(outvars=sorted(needed, key=str)) if needed else None
    others = dict(zip(before.outvars, _run(before, closed.consts, flat), strict=True)) if before else {}
    follows = [any(a in known for a in eqn.invars if isinstance(a, Var)) for eqn in jaxpr.eqns[place + 1 :]]
    after = [eqn for eqn, kept in zip(jaxpr.eqns[place + 1 :], follows, strict=True) if kept]

    def tail(z):
        values = dict(others) | {output: z}
        _run_equations(after, values, lambda eqn: None)
        return values[jaxpr.outvars[0]]

    return tail


def run_flat(closed, arguments, replace):
    """Return the results of a jaxpr without calls, with some equations replaced.

    Args:
      closed: the closed jaxpr, as from `inlined`.
      arguments: list of arrays.
      replace: function (equation) -> function of its operands, which returns an array or a list of arrays; or None.
    """
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arguments], strict=True))
    _run_equations(jaxpr.eqns, values, replace)
    return [atom.val if isinstance(atom, Literal) else values[atom] for atom in jaxpr.outvars]


def _run_equations(equations, values, replace):
    for eqn in equations:
        operands = [atom.val if isinstance(atom, Literal) else values[atom] for atom in eqn.invars]
        if function := replace(eqn):
            results = function(*operands)
            results = results if isinstance(results, list) else [results]
        else:
            results = eqn.primitive.bind(*operands, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        values.update(zip(eqn.outvars, results, strict=True))


def _run(jaxpr, constants, flat):
    return compile_quickly(lambda *a: evaluate(jaxpr, constants, list(a), lambda eqn: None))(*flat)


def _activation(tail, shape, key):
    """Return (name of the activation, whether negative outputs are cut before it) of a tail."""
    z = WIDE * jax.random.normal(key, shape)
    apply = compile_quickly(tail)
    points = z, -2 * z, -jnp.abs(z), -2 * jnp.abs(z), 2 + jnp.abs(z)
    y, again, below, lower, above = (np.asarray(apply(a), np.float64) for a in points)
    cut = bool(np.abs(below - lower).max() < 1e-6) and bool(np.abs(above - below).max() > 1e-6)
    if max(np.ptp(y), np.abs(above - y).max(), np.abs(lower - y).max()) == 0:
        return "constant", cut
    total = y.sum(-1) if y.ndim else y
    if np.allclose(total, 1, atol=1e-4) and (y >= 0).all():
        return "softmax", cut
    if np.allclose(np.exp(np.minimum(y, 50)).sum(-1), 1, atol=1e-4):
        return "log softmax", cut
    if np.allclose(again, -2 * y, rtol=1e-4, atol=1e-5 * np.abs(y).max()):
        return "none", False
    if (y >= 0).all() and max(y.max(), above.max()) <= 1 + 1e-6:
        return "sigmoid", cut
    if max(np.abs(y).max(), above.max()) <= 1 + 1e-6:
        return "tanh", cut
    if cut and (y >= 0).all():
        return "relu", False
    return "other", cut


def splitter(subject):
    """Return the function `Head.split` of a subject, which traces the model again for the mode and batch it gets."""

    def split(variables, inputs, train, key):
        flat, tree = jax.tree.flatten((variables, inputs))
        structure = []

        def call(*leaves):
            out, state = subject.apply(*jax.tree.unflatten(tree, leaves), train, key)
            structure.append(jax.tree.structure(state))
            return [jax.tree.leaves(out)[0], *jax.tree.leaves(state)]

        closed = inlined(call, flat)
        counts = [len(jax.tree.leaves(part)) for part in (variables, inputs)]
        found = last_layer(closed.jaxpr, set(closed.jaxpr.invars[counts[0] :]))
        assert found is not None, "find_head has found it for another batch"
        _, x, z = found
        wanted = closed.jaxpr.replace(outvars=[x, z, *closed.jaxpr.outvars[1:]])
        x, z, *state = evaluate(wanted, closed.consts, flat, lambda eqn: None)
        return x, z, jax.tree.unflatten(structure[0], state)

    return split
