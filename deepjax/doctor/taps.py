"""Evaluate a model's jaxpr again, with numbers taken out at its layers and activations.

Numbers of the forward pass leave loops as further outputs. Numbers of the backward pass are gradients in `sinks`: a
sink is a small array of zeros that `tap` takes and ignores, and the gradient in it is by definition what `tap` measures
of the gradient that passes. So one reverse pass measures all of them, and no activation is stored for it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from deepjax.doctor import statistics
from deepjax.doctor.follow import CUSTOM, Follow, Layer, Place, Site
from deepjax.trace.jaxpr import called_jaxpr, scan_sizes


@jax.custom_vjp
def tap(x, sink):
    """Return x. The gradient in `sink`, an array [2], is the gradient's root mean square and share of non-finite."""
    return x


def _tap_backward(_, gradient):
    return gradient, jnp.stack([statistics.rms(gradient), statistics.non_finite(gradient)])


tap.defvjp(lambda x, sink: (x, None), _tap_backward)


class Key(NamedTuple):
    """What is measured where."""

    what: str  # "z": a layer's output, "a": an activation's, "kernel"
    place: Place  # of the equation that computes the array; for "kernel" of the product
    result: int = 0


class Plan:
    """What to take out of a jaxpr, from what `Follow` has found."""

    def __init__(self, follow: Follow, examples: int):
        self.examples, self.scans = examples, follow.scans
        self.outputs: dict[Key, Layer] = {Key("z", *layer.z): layer for layer in follow.layers.values()}
        self.kernels: dict[Key, Layer] = {Key("kernel", place): layer for place, layer in follow.layers.items()}
        self.activations: dict[Key, tuple[Site, Layer]] = {
            Key("a", *site.at): (site, follow.layers[min(site.layers)]) for site in follow.sites.values()
        }
        self.keys: list[Key] = [*self.outputs, *self.kernels, *self.activations]
        self.varying = {place for layer in follow.layers.values() for place in layer.varies}

    def loops(self, place: Place) -> list[Place]:
        """Return the scans that a place is in, the outermost first."""
        return [place[:i] for i in range(1, len(place)) if place[:i] in self.scans]

    def lengths(self, key: Key) -> tuple[int, ...]:
        """Return the leading axes of what is taken out under a key: the steps of the scans that it is in."""
        return tuple(self.scans[place] for place in self.loops(key.place))

    def rows(self, key: Key) -> int:
        """Return how many rows of activations one step keeps, so that a layer keeps about `statistics.ROWS`."""
        shared = [self.scans[place] for place in self.loops(key.place) if place not in self.varying]
        return max(1, statistics.ROWS // max(1, math.prod(shared)))

    def sinks(self) -> dict[Key, Any]:
        """Return zeros: one sink for every layer's output and kernel, and for every step of a loop."""
        return {key: jnp.zeros((*self.lengths(key), 2)) for key in self.keys if key.what != "a"}

    def within(self, place: Place) -> bool:
        """Whether anything is taken out inside of an equation's body."""
        return any(len(key.place) > len(place) and key.place[: len(place)] == place for key in self.keys)

    def entering(self, place, operands, sinks):
        """Return the operands of an equation, with a tap on a kernel; and what is measured of the kernel."""
        key = Key("kernel", place)
        if key not in self.kernels:
            return operands, {}
        product = self.kernels[key].product
        operands, i = list(operands), product.kernel
        operands[i] = tap(operands[i], sinks[key])
        return operands, {key: statistics.of_kernel(product.matrix(operands[i]))}

    def leaving(self, place, results, sinks):
        """Return the results of an equation, with taps on layers' outputs; and what is measured of them."""
        results, notes = list(results), {}
        for i in range(len(results)):
            z, a = Key("z", place, i), Key("a", place, i)
            if z in self.outputs:
                results[i] = tap(results[i], sinks[z])
                found = statistics.arrange(results[i], self.examples, self.outputs[z].product.features)
                notes[z] = statistics.of_output(results[i]) | statistics.of_units(found, self.rows(z), "none")
            if a in self.activations:
                site, layer = self.activations[a]
                found = statistics.arrange(results[i], self.examples, layer.product.features)
                notes[a] = statistics.of_units(found, self.rows(a), site.name)
        return results, notes


def run(plan: Plan, jaxpr, consts, arguments, sinks, place: Place = ()) -> tuple[list, dict]:
    """Return (the outputs of a jaxpr, {key: what is measured}).

    Args:
      plan: what to take out.
      jaxpr, consts, arguments: as for `trace.evaluate`.
      sinks: those of the taps inside; see `Plan.sinks`.
      place: of the jaxpr.
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def of(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    notes = {}
    for i, eqn in enumerate(jaxpr.eqns):
        here = (*place, i)
        operands, kernel = plan.entering(here, [of(v) for v in eqn.invars], sinks)
        results, inside = _results(plan, eqn, operands, sinks, here)
        results, outputs = plan.leaving(here, results, sinks)
        notes |= kernel | inside | outputs
        values.update(zip(eqn.outvars, results, strict=True))
    return [of(v) for v in jaxpr.outvars], notes


def _results(plan, eqn, operands, sinks, here):
    name, within = eqn.primitive.name, plan.within(here)
    if name == "scan" and within:
        return _scan(plan, eqn, operands, sinks, here)
    if name == "cond" and within:
        return _cond(plan, eqn, operands, sinks, here)
    body = called_jaxpr(eqn)
    if body is not None and name not in ("scan", "while", "cond") and (within or name not in CUSTOM):
        consts = [c for value in eqn.params.values() if hasattr(value, "consts") for c in value.consts]
        return run(plan, body, consts, operands, sinks, here)
    if name in CUSTOM and body is not None:
        return _whole(eqn, body, operands), {}
    results = eqn.primitive.bind(*operands, **eqn.params)
    return (results if eqn.primitive.multiple_results else [results]), {}


def _whole(eqn, body, operands):
    """Compute a function with a custom derivative, and keep that derivative."""
    alone = body.replace(constvars=[], outvars=eqn.outvars, eqns=[eqn.replace(invars=body.invars)])
    return jaxpr_as_fun(ClosedJaxpr(alone, []))(*operands)


def _scan(plan, eqn, operands, sinks, here):
    params, body = eqn.params, eqn.params["jaxpr"]
    consts, carries = scan_sizes(params)
    inner = {key: sink for key, sink in sinks.items() if key.place[: len(here)] == here}

    def step(carry, slices):
        slices, sinks = slices
        results, notes = run(plan, body.jaxpr, body.consts, [*operands[:consts], *carry, *slices], sinks, here)
        return results[:carries], (results[carries:], notes)

    first = consts + carries
    plain = {"length": params["length"], "reverse": params["reverse"], "unroll": params["unroll"]}
    carry, (stacked, notes) = jax.lax.scan(step, operands[consts:first], (operands[first:], inner), **plain)
    return [*carry, *stacked], notes


def _cond(plan, eqn, operands, sinks, here):
    """Branches have the notes of all branches: zeros for those that are not taken."""

    def branch(b):
        body = eqn.params["branches"][b]
        return lambda values, sinks: run(plan, body.jaxpr, body.consts, values, sinks, (*here, b))

    functions = [branch(b) for b in range(len(eqn.params["branches"]))]
    shapes = [jax.eval_shape(function, operands[1:], sinks)[1] for function in functions]

    def padded(b):
        def function(values, sinks):
            results, notes = functions[b](values, sinks)
            others = [shapes[other] for other in range(len(shapes)) if other != b]
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), others)
            return results, {key: value for each in [*zeros, notes] for key, value in each.items()}

        return function

    return jax.lax.switch(operands[0], [padded(b) for b in range(len(functions))], operands[1:], sinks)
