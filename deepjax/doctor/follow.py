"""Follow the arrays of a model's jaxpr: which products are layers, and which activation follows each of them.

A layer is a product (matrix product, convolution, look-up in a table) of data with parameters. This holds for Linen,
NNX and plain functions. Every array has a `Tag`: what it depends on, and which layers' outputs it still is a linear map
of. An elementwise function is read off numerically: its operations are computed on a grid of numbers, and
`curves.classify` names the result. Thus it does not matter how a model writes its activation.

A place in a jaxpr is a tuple of indices of equations: the equation, then the equation in its body, and so on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal

from deepjax.doctor.curves import ELEMENTWISE, GRID, SPREADING, STATISTICS, classify, compute, literal, number
from deepjax.doctor.products import Product, product
from deepjax.trace.jaxpr import called_jaxpr, scan_sizes

NORM = "deepjax norm "  # begins the names of the marks on what enters a batch normalization
CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")

Place = tuple[int, ...]
At = tuple[Place, int]  # an equation and the index of its result


class Way(NamedTuple):
    """How an array came from a layer's output."""

    reduced: bool = False  # by a sum, mean or maximum over an axis
    mixed: bool = False  # added to other data


@dataclass(frozen=True)
class Tag:
    """What is known about an array."""

    data: bool = False  # depends on the inputs
    random: bool = False  # depends on random numbers, and not on the inputs
    leaves: frozenset[int] = frozenset()  # parameters that it depends on
    varies: frozenset[Place] = frozenset()  # scans of whose step it depends, if it is no data
    const: Any = None  # the number, where it is known
    pending: Mapping[Place, Way] = field(default_factory=dict)  # layers whose output it is a linear map of
    mode: str = "linear"  # or "bool", "stat", "exp", "expsum", "logexpsum", "logsoftmax": of these layers' output
    dropped: bool = False  # dropout since the last layer
    raw: Place | None = None  # the layer whose output it is, while no bias has been added
    at: At = ((), 0)  # where it is computed
    anchor: At = ((), 0)  # array of which it is an elementwise function
    curve: Any = None  # values of this function on `GRID`; None: it is the array itself

    def key(self):
        """Return what a loop's repeated reading compares."""
        return self.data, self.random, self.leaves, self.varies, dict(self.pending), self.mode, self.dropped


@dataclass
class Layer:
    """One product of data with parameters."""

    place: Place
    product: Product
    leaves: frozenset[int]
    varies: frozenset[Place]  # scans in which every step has its own kernel
    z: At  # its output, after the bias
    bias: bool = False
    straight: bool = False  # the next layer takes its output without a nonlinear function between
    other: bool = False  # the next layer takes another function of it


@dataclass
class Site:
    """The output of an activation."""

    at: At
    name: str
    layers: dict[Place, bool]  # place of a layer: whether its output came here without other data being added


class Follow:
    """Read a jaxpr. Afterwards `layers`, `sites`, `scans` and the paths of the norms are filled."""

    def __init__(self):
        self.layers: dict[Place, Layer] = {}
        self.sites: dict[At, Site] = {}
        self.scans: dict[Place, int] = {}  # place: number of steps
        self.dropout_before_norm: set[str] = set()
        self.bias_before_norm: set[Place] = set()
        self._sizes: dict[Any, Any] = {}

    def run(self, jaxpr, consts, tags, place: Place = ()) -> list[Tag]:
        """Return the tags of a jaxpr's outputs. `consts` are values of its constants, or None if they are unknown."""
        known = [number(value) for value in consts or [None] * len(jaxpr.constvars)]
        found = {v: Tag(const=c, at=(place, -1)) for v, c in zip(jaxpr.constvars, known, strict=True)}
        found.update(zip(jaxpr.invars, tags, strict=True))

        def of(atom):
            return Tag(const=literal(atom)) if isinstance(atom, Literal) else found[atom]

        for i, eqn in enumerate(jaxpr.eqns):
            operands = [of(v) for v in eqn.invars]
            found.update(zip(eqn.outvars, self._results(eqn, operands, (*place, i)), strict=True))
        return [of(v) for v in jaxpr.outvars]

    def outputs(self, tags) -> list[Tag]:
        """Settle the tags of the model's outputs."""
        tags = [self.settle(tag) for tag in tags]
        for tag in tags:
            for place in tag.pending if tag.mode != "linear" else ():
                self.layers[place].other = True
        return tags

    def settle(self, tag: Tag) -> Tag:
        """End an elementwise function: name it, and return the tag of its result as a separate array."""
        if tag.curve is None:
            return tag
        name = classify(tag.curve)
        whole = replace(tag, curve=None, anchor=tag.at)
        if name == "affine" or not tag.pending:
            return whole
        if (tag.mode, name) == ("logsoftmax", "exp"):
            return self._activation(whole, "softmax")
        if tag.mode != "linear":
            logs = tag.mode == "expsum" and name == "log"
            return replace(whole, mode="logexpsum" if logs else "stat", raw=None)
        if name in ("exp", "bool", *STATISTICS):
            return replace(whole, mode=name if name in ("exp", "bool") else "stat", raw=None)
        return self._activation(whole, name)

    def _activation(self, tag, name):
        """Note an activation, of all layers whose outputs the tag has, and return the tag without them."""
        layers = {place: not way.mixed for place, way in tag.pending.items()}
        if layers:
            self.sites[tag.at] = Site(tag.at, name, layers)
        return replace(tag, pending={}, mode="linear", raw=None)

    def _results(self, eqn, operands, here):
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, operands, here)
        if name == "cond":
            return self._cond(eqn, operands, here)
        body = None if name == "while" or product(eqn) else called_jaxpr(eqn)
        if body is not None:
            results = self.run(body, _constants(eqn), operands, here)
            if name in CUSTOM:  # computed as a whole, unless there are layers inside
                results = [replace(tag, at=(here, k)) for k, tag in enumerate(results)]
            return results
        whole = self._elementwise(eqn, operands, here)
        return [whole] if whole else self._mixture(eqn, [self.settle(tag) for tag in operands], here)

    def _elementwise(self, eqn, operands, here):
        """Return the tag of an elementwise function of one array and of known numbers; None for anything else."""
        name = eqn.primitive.name
        if name not in ELEMENTWISE and name not in SPREADING:
            return None
        arrays = [tag for tag in operands if tag.const is None]
        if name in SPREADING and (arrays or not operands):
            return None
        if not arrays:
            value = compute(eqn, [tag.const for tag in operands])
            return Tag(const=value, at=(here, 0), anchor=(here, 0))
        shapes = {v.aval.shape for v, tag in zip(eqn.invars, operands, strict=True) if tag.const is None}
        if len({tag.anchor for tag in arrays}) > 1 or shapes != {eqn.outvars[0].aval.shape} or not arrays[0].data:
            return None
        values = [(GRID if tag.curve is None else tag.curve) if tag.const is None else tag.const for tag in operands]
        curve = np.broadcast_to(compute(eqn, values), GRID.shape)
        raw = arrays[0].raw if np.array_equal(curve, GRID) else None
        return replace(arrays[0], curve=curve, at=(here, 0), raw=raw)

    # Operations on several arrays

    def _mixture(self, eqn, operands, here):
        made = product(eqn)
        if made is not None:
            tag = self._product(made, operands, here)
            if tag is not None:
                return [tag]
        name, result = eqn.primitive.name, merge(operands)
        if name == "name" and eqn.params["name"].startswith(NORM):
            self._norm(eqn.params["name"].removeprefix(NORM), operands[0])
        if name in ("random_bits", "threefry2x32", "random_unwrap", "rng_bit_generator"):
            result = replace(result, random=not result.data)
        if name in ("dot_general", "while", "argmax", "argmin", "top_k", *_ORDER) or name.startswith("conv"):
            result = replace(result, pending={})
        elif name.startswith(("reduce_", "argm")):
            result = self._reduction(eqn, result, here)
        elif name in ("add", "sub", "add_any"):
            result = self._sum(name, operands, result, here)
        elif name in ("mul", "div", "select_n"):
            result = self._gate(name, operands, result, here)
        elif len(operands) > 1:
            result = replace(result, raw=None)
            if name in ("max", "min") and all(tag.pending for tag in operands) and _disjoint(operands):
                result = self._activation(replace(result, at=(here, 0)), "other")
        return [replace(result, at=(here, k), anchor=(here, k)) for k in range(len(eqn.outvars))]

    def _product(self, made, operands, here):
        """Return the tag of a layer's output, or None if the product is none of data with parameters."""
        for index in made.operands:
            kernel, rest = operands[index], merge([t for i, t in enumerate(operands) if i != index])
            if kernel.leaves and not kernel.data and rest.data:
                break
        else:
            return None
        for place, way in rest.pending.items():
            self.layers[place].straight |= rest.mode == "linear" and not any(way)
            self.layers[place].other |= rest.mode != "linear"
        old = self.layers.get(here)  # of an earlier reading of a loop's body, with which bias is found again
        layer = Layer(here, made.of(index), kernel.leaves, kernel.varies, (here, 0))
        self.layers[here] = replace(layer, straight=old.straight, other=old.other) if old else layer
        return Tag(data=True, pending={here: Way()}, raw=here, at=(here, 0), anchor=(here, 0))

    def _sum(self, name, operands, result, here):
        first, second = operands
        for array, bias in ((first, second), (second, first)):
            if array.raw and bias.leaves and not bias.data and name == "add":
                self.layers[array.raw].z, self.layers[array.raw].bias = (here, 0), True
        modes = {tag.mode for tag in operands if tag.pending}
        if name == "sub" and (first.mode, second.mode) == ("linear", "logexpsum") and first.pending:
            self._activation(replace(result, at=(here, 0)), "log_softmax")
            return replace(result, mode="logsoftmax", raw=None)
        if modes == {"linear", "logexpsum"} and all(way.reduced for way in result.pending.values()):
            result = replace(result, mode="logexpsum")  # the largest entry is added after the logarithm
        pending = dict(result.pending)
        for one, two in ((first, second), (second, first)):
            for place in one.pending.keys() - two.pending.keys():
                pending[place] = Way(pending[place].reduced, pending[place].mixed or two.data)
        return replace(result, pending=pending, raw=None)

    def _gate(self, name, operands, result, here):
        """Products, quotients and choices: softmax, dropout, a slope that is learned."""
        result = replace(result, raw=None)
        if name == "div" and [tag.mode for tag in operands] == ["exp", "expsum"]:
            return self._activation(replace(result, at=(here, 0)), "softmax")
        if result.data and any(tag.random and not tag.data for tag in operands):
            return replace(result, dropped=True)
        if name == "select_n" and operands[0].mode == "bool" and operands[0].pending:
            return self._activation(replace(result, at=(here, 0)), "other")
        return result

    def _reduction(self, eqn, result, here):
        pending = {place: Way(True, way.mixed) for place, way in result.pending.items()}
        mode = "expsum" if result.mode == "exp" and eqn.primitive.name == "reduce_sum" else result.mode
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        pieces = math.prod(before) // max(1, math.prod(after))
        features = {self.layers[place].product.features for place in pending}
        if eqn.primitive.name == "reduce_max" and mode == "linear" and pieces > 1 and after:
            maxout = after[-1] > 1 and features == {pieces * after[-1]}
            result = self._activation(replace(result, at=(here, 0)), "other") if maxout else result
            pending = {} if maxout else pending
        return replace(result, pending=pending, mode=mode, raw=None)

    def _norm(self, path, entering):
        if entering.dropped:
            self.dropout_before_norm.add(path)
        for place, way in entering.pending.items():
            if entering.mode == "linear" and self.layers[place].bias and not any(way):
                self.bias_before_norm.add(place)

    # Loops and branches

    def _scan(self, eqn, operands, here):
        consts, carries = scan_sizes(eqn.params)
        jaxpr, self.scans[here] = eqn.params["jaxpr"], eqn.params["length"]
        operands = [self.settle(tag) for tag in operands]
        state, slices = operands[consts : consts + carries], operands[consts + carries :]
        slices = [tag if tag.data else replace(tag, varies=tag.varies | {here}, const=None) for tag in slices]
        for _ in range(10):
            self.sites = {at: site for at, site in self.sites.items() if at[0][: len(here)] != here}
            inside = [_enter(tag, here, k) for k, tag in enumerate([*operands[:consts], *state, *slices])]
            for k in range(consts, consts + carries):
                inside[k] = replace(inside[k], const=None)
            results = [self.settle(tag) for tag in self.run(jaxpr.jaxpr, jaxpr.consts, inside, here)]
            joined = [self._changed(a, b, here) for a, b in zip(state, results[:carries], strict=True)]
            if [tag.key() for tag in joined] == [tag.key() for tag in state]:
                break
            state = joined
        return [
            replace(tag, at=(here, k), anchor=(here, k), raw=None, const=None)
            for k, tag in enumerate([*joined, *results[carries:]])
        ]

    def _changed(self, before, after, here):
        joined = merge([before, after])
        same = before.key() == after.key()
        return joined if same or joined.data else replace(joined, varies=joined.varies | {here})

    def _cond(self, eqn, operands, here):
        operands = [self.settle(tag) for tag in operands]
        ways = []
        for b, branch in enumerate(eqn.params["branches"]):
            inside = [_enter(tag, (*here, b), k) for k, tag in enumerate(operands[1:])]
            ways.append([self.settle(tag) for tag in self.run(branch.jaxpr, branch.consts, inside, (*here, b))])
        joined = [merge(list(each)) for each in zip(*ways, strict=True)]
        return [replace(tag, at=(here, k), anchor=(here, k), raw=None, const=None) for k, tag in enumerate(joined)]


_ORDER = ("eq", "ne", "lt", "le", "gt", "ge", "sort", "is_finite", "sign", "floor", "round")


def _disjoint(operands):
    return not operands[0].pending.keys() & operands[1].pending.keys()


def _enter(tag, here, k):
    """Return the tag of an array inside of a body, where it counts as a separate array."""
    return replace(tag, at=(here, -1 - k), anchor=(here, -1 - k), raw=None)


def _constants(eqn):
    bodies = [value for value in eqn.params.values() if hasattr(value, "consts") and hasattr(value, "jaxpr")]
    return bodies[0].consts if len(bodies) == 1 else None


def merge(tags) -> Tag:
    """Return what holds for an array that is computed from others: each layer by its shortest way."""
    pending: dict[Place, Way] = {}
    linear = [tag for tag in tags if tag.pending and tag.mode == "linear"]
    for tag in linear or tags:
        for place, way in tag.pending.items():
            old = pending.get(place, Way(True, True))
            pending[place] = Way(old.reduced and way.reduced, old.mixed and way.mixed)
    modes = [tag.mode for tag in tags if tag.pending and tag.mode != "linear"]
    raws = {tag.raw for tag in tags} - {None}
    data = any(tag.data for tag in tags)
    return Tag(
        data=data,
        random=not data and any(tag.random for tag in tags),
        leaves=frozenset().union(*(tag.leaves for tag in tags)),
        varies=frozenset().union(*(tag.varies for tag in tags)),
        pending=pending,
        mode="linear" if linear or not modes else modes[0],
        dropped=any(tag.dropped for tag in tags),
        raw=raws.pop() if len(raws) == 1 else None,
    )
