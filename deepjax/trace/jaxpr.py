"""The jaxpr of a model's call, and the one way to go through it.

`call_jaxpr` traces a call. Each of its equations can be traced back to the module that it belongs to, and the arrays
that enter and leave a module pass through a `name` equation, a `Mark`. This holds inside `nn.scan`, `nn.remat`,
`nn.vmap` and `nn.jit`, and for modules that are called several times.

`Interpreter` goes through such a jaxpr, into the bodies of its loops, branches and calls. What it computes for each
equation is up to its subclasses: an abstract interpretation (Cousot & Cousot 1977).
"""

import abc
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal, jaxprs_in_params

from deepjax.functional.convolution.primitives import stated
from deepjax.trace.arguments import input_errors
from deepjax.trace.calls import around_methods

MARK = "deepjax "  # the names of marks begin so
SCOPE = re.compile("deepjax<(.*?)>")  # the named scope of a module's call holds its path

Path = tuple[str, ...]


class Mark(NamedTuple):
    """An array enters or leaves a method of a module."""

    role: str  # "enter": the first array among the arguments; "exit": the last array of the output
    path: Path  # of the module
    method: str  # "__call__", or another one
    kind: str  # name of the module's class
    shape: tuple[int, ...]  # of the array, without the batch axis; () if there is no array
    parameters: dict[str, tuple[int, ...]]  # shapes of the parameters that the module itself owns, inside of scans


# Tracing


def call_jaxpr(model, variables, x, call, *, rngs=None, mutable: Any = False):
    """Trace one call of a model. Nothing is computed.

    Args:
      model: any Linen module.
      variables: variables of the model: arrays, or instances of `jax.ShapeDtypeStruct`.
      x: the first argument: arrays, or instances of `jax.ShapeDtypeStruct`.
      call: dict, further arguments.
      rngs: dict, stream -> PRNG key.
      mutable: as in `model.apply`.

    Returns:
      A jaxpr. Its inputs are the leaves of (variables, x), its outputs the arrays in the model's output.

    Raises:
      InputError: the model cannot be called in this way.
    """

    def forward(variables, x):
        with marks():
            y = model.apply(variables, x, rngs=rngs, mutable=mutable, **call)
        return [leaf for leaf in jax.tree.leaves(y if mutable is False else y[0]) if isinstance(leaf, jax.Array)]

    with input_errors(jax.tree.map(lambda leaf: getattr(leaf, "shape", ()), x)):
        return jax.make_jaxpr(forward)(variables, x).jaxpr


def marks():
    """Return a context in which what enters and leaves each Linen module is traced with a `Mark`."""
    return around_methods(_marking())


def _marking():
    """Return a rule for `around_methods` that marks the arrays that enter and leave each module."""
    running = []  # (path, method) of what is being called

    def mark(module, method, run, args, kwargs):
        if module.scope is None:  # a method of an unbound module
            return run(*args, **kwargs)
        path = module.path
        # A class may call the `__call__` of its parent class, and a module its own methods.
        inner = any(path == other and (method != "__call__" or name == method) for other, name in running)
        running.append((path, method))
        try:
            with jax.named_scope(f"deepjax<{'/'.join(path)}>"):
                if inner:
                    return run(*args, **kwargs)
                y = run(*_named(args, "enter", module, method), **kwargs)
                return _named(y, "exit", module, method)
        finally:
            running.pop()

    return mark


def _named(tree, role, module, method):
    leaves, structure = jax.tree.flatten(tree)
    arrays = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array) and not _is_key(leaf)]
    chosen = arrays[0 if role == "enter" else -1] if arrays else None
    shape = () if chosen is None else leaves[chosen].shape[1:]
    own = nn.meta.unbox(module.variables.get("params", {}))
    shapes = {name: leaf.shape for name, leaf in own.items() if hasattr(leaf, "shape")}
    name = MARK + json.dumps(Mark(role, module.path, method, type(module).__name__, shape, shapes))
    if chosen is None:  # the mark is put on a number that nothing uses
        checkpoint_name(jnp.zeros(()), name)
        return tree
    leaves[chosen] = checkpoint_name(leaves[chosen], name)
    return jax.tree.unflatten(structure, leaves)


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def read_mark(eqn) -> Mark | None:
    """Return the `Mark` that an equation of a `call_jaxpr` is, or None."""
    name = str(eqn.params["name"]) if eqn.primitive.name == "name" else ""
    if not name.startswith(MARK):
        return None
    role, path, method, kind, shape, own = json.loads(name.removeprefix(MARK))
    return Mark(role, tuple(path), method, kind, tuple(shape), {name: tuple(size) for name, size in own.items()})


# Reading


class Where(NamedTuple):
    """Position of an equation in a model."""

    path: Path = ()  # of the module in whose call it is
    times: int = 1  # how often one call of the model runs it, because of scans
    again: bool = False  # whether it has been interpreted before, for an earlier step of a scan


TOP = Where()


class Interpreter(abc.ABC):
    """Compute a value for every array in a jaxpr, from the values of the jaxpr's inputs.

    A subclass gives the rule for one plain equation, `equation`, and for an array that may be one of several, `join`.
    The other methods transform values at the borders of loops and branches; by default, values pass unchanged.
    Calls (`jit`, `remat`, `custom_vjp`, ...) are interpreted as if their bodies were inlined, and the convolutions of
    `deepjax.functional` as those of `jax.lax`.

    >>> class Multiplications(Interpreter):
    ...     count = 0
    ...     def equation(self, eqn, values, where):
    ...         self.count += where.times * (eqn.primitive.name == "mul")
    ...         return [None] * len(eqn.outvars)
    ...     def join(self, values, shape, choice=None):
    ...         return None
    >>> def power(x):
    ...     return jax.lax.scan(lambda y, _: (y * x, None), x, length=5)[0] * jax.jit(lambda y: y * y)(x)
    >>> interpreter = Multiplications()
    >>> interpreter.run(jax.make_jaxpr(power)(2.0).jaxpr, [None]), interpreter.count
    ([None], 7)
    """

    constant: Any = None  # the value of literals and of constants of the jaxpr
    steps: int | None = 1  # of a scan that are interpreted; None: until nothing changes any more

    @abc.abstractmethod
    def equation(self, eqn, values: list, where: Where) -> Sequence:
        """Return the values of an equation's results from those of its operands."""

    @abc.abstractmethod
    def join(self, values: list, shape, choice=None) -> Any:
        """Return the value of an array of this shape that is one of several; `choice` is the value of the condition."""

    def slice(self, value, shape) -> Any:
        """Return the value of one entry along the first axis of an array of this shape."""
        return value

    def stack(self, value, shape) -> Any:
        """Return the value of an array whose entries along the first axis have this value and shape."""
        return value

    def any_steps(self, values: list, shapes) -> list:
        """Return values of a `while`'s operands that hold after any number of its steps."""
        return values

    def body(self, jaxpr, values: list, where: Where) -> list:
        """Interpret the body of a loop or of a branch."""
        return self.run(jaxpr, values, where)

    def branches(self, bodies, values: list, where: Where) -> list[list]:
        """Interpret the branches of a `cond`."""
        return [self.body(body, values, where) for body in bodies]

    def run(self, jaxpr, values, where: Where = TOP) -> list:
        """Return the values of a jaxpr's outputs from those of its inputs."""
        found = dict(zip(jaxpr.invars, values, strict=True))

        def of(atom):
            return self.constant if isinstance(atom, Literal) else found.get(atom, self.constant)

        for eqn in jaxpr.eqns:
            scopes = SCOPE.findall(str(eqn.source_info.name_stack))
            here = where._replace(path=tuple(filter(None, scopes[-1].split("/")))) if scopes else where
            found.update(zip(eqn.outvars, self._results(eqn, [of(v) for v in eqn.invars], here), strict=True))
        return [of(v) for v in jaxpr.outvars]

    def _results(self, eqn, values, where):
        name = eqn.primitive.name
        if name == "scan":
            return self._scan(eqn, values, where)
        if name == "while":
            return self._while(eqn, values, where)
        if name == "cond":
            results = self.branches([branch.jaxpr for branch in eqn.params["branches"]], values[1:], where)
            return [self.join(list(r), v.aval.shape, values[0]) for v, *r in zip(eqn.outvars, *results, strict=True)]
        body = called_jaxpr(eqn) or stated(eqn)
        return self.equation(eqn, values, where) if body is None else self.run(body, values, where)

    def _scan(self, eqn, values, where):
        consts, carries = scan_sizes(eqn.params)
        length, jaxpr, first = eqn.params["length"], eqn.params["jaxpr"].jaxpr, consts + carries
        slices = [self.slice(x, v.aval.shape) for x, v in zip(values[first:], eqn.invars[first:], strict=True)]
        shapes = [v.aval.shape for v in jaxpr.outvars[carries:]]
        carry, seen = values[consts:first], None
        for step in range(length if self.steps is None else min(self.steps, length)):
            inside = Where(where.path, where.times * length, where.again or step > 0)
            results = self.body(jaxpr, [*values[:consts], *carry, *slices], inside)
            carried, new = results[:carries], results[carries:]
            if seen is not None:
                new = [self.join([a, b], shape) for a, b, shape in zip(seen, new, shapes, strict=True)]
            if (carry, seen) == (carried, new):
                break  # every further step would give the same
            carry, seen = carried, new
        seen = seen if seen is not None else [self.constant] * len(shapes)
        return [*carry, *(self.stack(value, shape) for value, shape in zip(seen, shapes, strict=True))]

    def _while(self, eqn, values, where):
        first = eqn.params["cond_nconsts"]
        second = first + eqn.params["body_nconsts"]
        values = self.any_steps(values, [v.aval.shape for v in eqn.invars])
        carry = values[second:]
        (choice,) = self.body(eqn.params["cond_jaxpr"].jaxpr, values[:first] + carry, where)
        results = self.body(eqn.params["body_jaxpr"].jaxpr, values[first:second] + carry, where)
        pairs = zip(eqn.outvars, carry, results, strict=True)
        return [self.join([before, after], v.aval.shape, choice) for v, before, after in pairs]


def scan_sizes(params):
    """Return (number of constants, number of carried values) of a scan's inputs."""
    if "ft_in" in params:  # JAX from 0.12 on has the structure of (constants, carry, slices)
        constants, carry, _ = params["ft_in"].unpack()
        return len(constants), len(carry)
    return params["num_consts"], params["num_carry"]


def called_jaxpr(eqn):
    """Return the jaxpr that an equation calls on its operands, or None. The body of a reduction is not such a jaxpr."""
    bodies = list(jaxprs_in_params(eqn.params))
    if len(bodies) != 1 or eqn.primitive.name.startswith("reduce"):
        return None
    fits = (len(bodies[0].invars), len(bodies[0].outvars)) == (len(eqn.invars), len(eqn.outvars))
    return bodies[0] if fits else None
