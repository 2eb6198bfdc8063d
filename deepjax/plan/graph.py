"""A jaxpr as one flat list of operations on values that have a size: what a compiler sees, calls and all.

Calls are inlined, as are scans of one step and the branch of `platform_dependent` that belongs to the platform. Equal
operations are one. What XLA rewrites before it plans memory, and what matters to that, is rewritten here too.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal


def words(text):
    """The set of its words."""
    return frozenset(text.split())


ARITHMETIC = words("""
    abs acos add add_any and asin atan atan2 bitcast_convert_type cbrt ceil clamp convert_element_type cos div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter
    not or population_count pow reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sqrt square sub tan tanh xor
""")
MOVES = words("""
    broadcast_in_dim concatenate dynamic_slice expand_dims gather iota pad reshape rev slice split squeeze transpose
""")
RESHAPES = words("reshape squeeze expand_dims")
CHEAP = ARITHMETIC | MOVES  # computed wherever it is needed, if that pays
SAME = words("stop_gradient name copy copy_p optimization_barrier random_wrap random_unwrap")
LOOPS = words("scan while cond")


class Value:
    """An array that an operation makes, or that comes from outside."""

    __slots__ = ("maker", "shape", "size", "zero")

    def __init__(self, shape, size, zero=False):
        self.shape, self.size = shape, size  # size in bytes
        self.zero = zero  # known to be nothing but zeros
        self.maker: Any = None  # the Operation, or None


class Operation:
    """What is done: `name` is that of a primitive of JAX, or one of ours."""

    __slots__ = ("backward", "bodies", "carries", "makes", "name", "reads")

    def __init__(self, name, reads, makes, backward=False):
        self.name, self.reads, self.makes = name, reads, makes
        self.backward = backward  # whether it is of the backward pass
        self.bodies: list[Graph] = []  # of a loop or a condition
        self.carries = 0  # of a scan: how many of its results are not stacks
        for value in makes:
            value.maker = self


class Graph(NamedTuple):
    """Operations in an order in which they can run. `aliases`: (input, output) pairs that share their memory."""

    inputs: list[Value]
    outputs: list[Value]
    operations: list[Operation]
    aliases: list[tuple[Value, Value]]


def of_step(jaxpr, platform, donated):
    """The Graph of a jaxpr whose first `donated` inputs give their memory to the outputs of the same place."""
    while len(jaxpr.eqns) == 1 and (inner := _body(jaxpr.eqns[0])) is not None:  # the call of a jitted function
        jaxpr = inner
    inputs = [_value(v.aval) for v in jaxpr.invars]
    builder = _Builder(platform)
    outputs = builder.run(jaxpr, inputs)
    return Graph(inputs, outputs, builder.operations, list(zip(inputs, outputs, strict=False))[:donated])


def of_body(equation, platform):
    """The Graphs of the bodies of a `scan`, `while` or `cond`: in each, carries share their memory."""
    p = equation.params
    if equation.primitive.name == "cond":
        return [of_step(branch.jaxpr, platform, 0) for branch in p["branches"]]
    if equation.primitive.name == "while":
        body, consts, carries = p["body_jaxpr"].jaxpr, p["body_nconsts"], len(equation.outvars)
    else:
        body, consts, carries = p["jaxpr"].jaxpr, p["num_consts"], p["num_carry"]
    builder = _Builder(platform)
    inputs = [_value(v.aval) for v in body.invars[: consts + carries]]
    stacks = [_value(v.aval, p["length"]) for v in body.invars[consts + carries :]]
    slices = [builder.add("dynamic_slice", [s], [_value(v.aval)])[0]
              for s, v in zip(stacks, body.invars[consts + carries :], strict=True)]  # fmt: skip
    outputs = builder.run(body, [*inputs, *slices])
    for i, value in enumerate(outputs[carries:], carries):  # each goes to its place in a stack
        stack = Value((), value.size * p["length"])
        outputs[i] = builder.once(("stack", id(value)), "dynamic_update_slice", [value], [stack])[0]
    aliases = list(zip(inputs[consts:], outputs[:carries], strict=True))
    return [Graph([*inputs, *stacks], outputs, builder.operations, aliases)]


def _value(aval, times=1):
    return Value(aval.shape, times * math.prod(aval.shape) * itemsize(aval.dtype))


def itemsize(dtype):
    """Bytes of a number; of a random key, which is two words."""
    if dtype == jax.dtypes.float0:
        return 0
    return 8 if jnp.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize


def _body(equation):
    """The jaxpr that an equation calls once with its own inputs, or None."""
    if equation.primitive.name in LOOPS or equation.primitive.name.startswith("reduce"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = equation.params.get(name)
        if body is not None:
            return body.jaxpr if isinstance(body, ClosedJaxpr) else body
    return None


class _Builder:
    def __init__(self, platform):
        self.platform, self.operations = platform, []
        self._known = {}  # what makes an operation: its results
        self._barriers = 0  # passed so far: over a barrier, equal operations stay apart
        self._backward = False

    def add(self, name, reads, makes):
        """The results of a new operation."""
        self.operations.append(Operation(name, reads, makes, self._backward))
        return makes

    def once(self, key, name, reads, makes):
        """The results of an operation, made once for all that have this key."""
        key = (self._barriers, *key)
        if key not in self._known:
            self._known[key] = self.add(name, reads, makes)
        return self._known[key]

    def run(self, jaxpr, inputs):
        """The outputs of a jaxpr for these inputs."""
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        values.update((v, _value(v.aval)) for v in jaxpr.constvars)
        branches = {}  # variable of a platform_index: the branch

        def of(atom):
            if not isinstance(atom, Literal):
                return values[atom]
            return self._known.setdefault((str(atom.val), str(atom.aval)), Value((), 0, _is_zero(atom)))

        outside = self._backward
        for eqn in jaxpr.eqns:
            self._backward = outside or "transpose(" in str(eqn.source_info.name_stack)
            name = eqn.primitive.name
            if name == "platform_index":
                branches[eqn.outvars[0]] = _platform_branch(eqn, self.platform)
                values[eqn.outvars[0]] = Value((), 0)
                continue
            reads = [of(atom) for atom in eqn.invars]
            if name == "cond" and not isinstance(eqn.invars[0], Literal) and eqn.invars[0] in branches:
                makes = self.run(eqn.params["branches"][branches[eqn.invars[0]]].jaxpr, reads[1:])
            elif name == "scan" and eqn.params["length"] == 1:
                makes = self.run(eqn.params["jaxpr"].jaxpr, reads)
            elif (body := _body(eqn)) is not None:
                self._barriers += bool(eqn.params.get("prevent_cse"))  # of a rematerialization
                makes = self.run(body, reads)
            else:
                makes = self._equation(eqn, name, reads)
            values.update(zip(eqn.outvars, makes, strict=True))
        self._backward = outside
        return [of(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn, name, reads):
        if self._is_same(name, reads):
            return reads[: len(eqn.outvars)]
        makes = [_value(v.aval) for v in eqn.outvars]
        if name == "select_and_scatter_add" and self.platform == "cpu":
            return self._select_and_scatter(eqn, reads, makes)
        if name == "dot_general":  # which can read either way, too
            reads = [v.maker.reads[0] if _is_turned(v) else v for v in reads]
        if name in LOOPS:
            return self._loop(eqn, name, reads, makes)
        if name in ARITHMETIC:
            reads = [self._broadcast(value, atom, eqn) for value, atom in zip(reads, eqn.invars, strict=True)]
        places = [id(v) if v.size or v.maker else str(atom) for v, atom in zip(reads, eqn.invars, strict=True)]
        makes = self.once((name, *places, _say(eqn.params), makes[0].shape), name, reads, makes)
        if name in ("broadcast_in_dim", "square", "neg", "transpose", "convert_element_type"):
            makes[0].zero = reads[0].zero
        return makes

    @staticmethod
    def _is_same(name, reads):
        """Whether the result is the first operand, or lies in its memory."""
        maker = reads[0].maker if reads else None
        if name in RESHAPES:  # what is cheap is rather computed again in the new shape
            return maker is None or maker.name not in CHEAP
        if name == "transpose":  # a product can be written either way
            return maker is not None and maker.name == "dot_general" and len(reads[0].shape) == 2
        return name in SAME or (name in ("add", "add_any", "sub") and reads[1].zero)

    def _broadcast(self, value, atom, eqn):
        """JAX's arithmetic widens axes of 1 on its own; here that is an operation like any other."""
        shape = eqn.outvars[0].aval.shape
        if not atom.aval.shape or atom.aval.shape == shape or not value.size:
            return value
        wide = Value(shape, value.size // math.prod(atom.aval.shape) * math.prod(shape))
        return self.once((id(value), shape), "broadcast_in_dim", [value], [wide])[0]

    def _loop(self, eqn, name, reads, makes):
        """A loop or condition; results that are equal in every body are one."""
        bodies, carries = of_body(eqn, self.platform), 0 if name == "cond" else eqn.params.get("num_carry", len(makes))
        first = {}
        for i in range(carries, len(makes)):
            makes[i] = first.setdefault(tuple(id(body.outputs[i]) for body in bodies), makes[i])
        self.add(name, reads, list(dict.fromkeys(makes)))
        self.operations[-1].bodies, self.operations[-1].carries = bodies, carries
        return makes

    def _select_and_scatter(self, eqn, reads, makes):
        """The gradient of a max pooling: XLA:CPU finds indices by a pooling, and scatters by them."""
        source, operand = reads
        item = max(1, makes[0].size // max(1, math.prod(makes[0].shape)))
        sides = [n + low + high for n, (low, high) in zip(makes[0].shape, eqn.params["padding"], strict=True)]
        wide, numbers = item * math.prod(sides), 4 * math.prod(sides)
        axes = range(len(sides))
        places = [self.once(("places", *sides, i), "places", [], [Value((), numbers)])[0] for i in axes]
        zeros = self.once(("zeros", *sides, item), "places", [], [Value((), wide)])
        padded = [operand] if wide == operand.size else self.add("pad", [operand], [Value((), wide)])
        found = [Value((), 4 * math.prod(source.shape)) for _ in axes]
        self.add("windows", [*padded, *places], found)
        index = self.add("indices", found, [Value((), len(sides) * 4 * math.prod(source.shape))])
        whole = self.add("scatter", [*zeros, source, *index], [Value((), wide)])
        return whole if wide == makes[0].size else self.add("slice", whole, makes)


def _say(params):
    return str({name: value for name, value in params.items() if name != "sharding"})


def _is_turned(value):
    return value.maker is not None and value.maker.name == "transpose" and len(value.shape) == 2


def _is_zero(literal):
    return literal.aval.shape == () and jnp.issubdtype(literal.aval.dtype, jnp.number) and literal.val == 0


def _platform_branch(eqn, platform):
    aliases = {"gpu": ("gpu", "cuda", "rocm")}.get(platform, (platform,))
    for i, names in enumerate(eqn.params["platforms"]):
        if names is None or set(names) & set(aliases):
            return i
    return len(eqn.params["platforms"]) - 1
