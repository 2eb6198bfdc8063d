"""What a model's equations cost, module by module, and what its outputs see of the input."""

from collections import Counter
from math import prod
from typing import NamedTuple

from jax.extend.core import Literal, jaxprs_in_params

from deepjax.summary.rules import outputs
from deepjax.summary.spans import Fields, everything, moved, union
from deepjax.summary.trace import Call, owner, read_mark

Path = tuple[str, ...]


class Cost(NamedTuple):
    """By path of the module in whose calls the equations are."""

    macs: Counter[Path]
    biases: Counter[Path]  # output values of convolutions and matmuls
    pooled: Counter[Path]  # output values of poolings
    convs: set[Path]  # the modules that convolve

    def add(self, other):
        """Take up the costs of another one."""
        for mine, others in zip(self, other, strict=True):
            mine.update(others)


def no_cost():
    """A `Cost` to add to."""
    return Cost(Counter(), Counter(), Counter(), set())


class Walk:
    """Goes through a jaxpr once for the costs; through the body of a scan once a step for the receptive fields.

    Afterwards `calls` holds what was called, in the order of their ends, and how often; poolings that are functions,
    not modules, are among it, as `path/max_pool(1)`. `fields` holds what the last call's output sees.
    """

    def __init__(self):
        self.calls: dict[Path, tuple[Call, int]] = {}
        self.pools: set[Path] = set()  # those of the calls that are functions
        self.fields: dict[Path, Fields] = {}
        self.cost = no_cost()
        self._pool_of: dict[tuple[Path, int], Path] = {}

    def run(self, jaxpr, fields, inside=(), times=1, cost=None):
        """The fields of the jaxpr's outputs.

        Args:
          jaxpr: of a model.
          fields: list of `Fields`, one per input.
          inside: path of the module that the jaxpr is called in.
          times: how often it is run.
          cost: `Cost` to add to; None: only fields are wanted.
        """
        known = dict(zip(jaxpr.invars, fields, strict=True))  # constants do not depend on the input

        def of(atom):
            return None if isinstance(atom, Literal) else known.get(atom)

        for eqn in jaxpr.eqns:
            operands = [of(v) for v in eqn.invars]
            path = owner(eqn, inside)
            self._note(eqn, path, operands, times, cost)
            known.update(zip(eqn.outvars, self._outputs(eqn, operands, path, times, cost), strict=True))
        return [of(v) for v in jaxpr.outvars]

    def _outputs(self, eqn, operands, path, times, cost):
        name, bodies = eqn.primitive.name, list(jaxprs_in_params(eqn.params))
        if name == "scan":
            return self._scan(eqn, bodies[0], operands, path, times, cost)
        if name == "while":
            return self._while(eqn, bodies, operands, path, times, cost)
        if name == "cond":
            return self._cond(eqn, bodies, operands, path, times, cost)
        if len(bodies) == 1 and not name.startswith("reduce"):  # whose body says how to reduce
            body = bodies[0]
            if (len(body.invars), len(body.outvars)) == (len(eqn.invars), len(eqn.outvars)):
                return self.run(body, operands, path, times, cost)
        return outputs(eqn, operands)

    def _scan(self, eqn, body, operands, path, times, cost):
        consts, carries, length = (eqn.params[name] for name in ("num_consts", "num_carry", "length"))
        slices = [_without_first(f, v.aval.shape) for f, v in _pairs(operands, eqn.invars)[consts + carries :]]
        shapes = [v.aval.shape for v in body.outvars[carries:]]
        carry, stacked = operands[consts : consts + carries], [None] * len(shapes)
        for step in range(length):
            once = cost if step == 0 else None
            results = self.run(body, [*operands[:consts], *carry, *slices], path, times * length, once)
            seen = [union(pair, s) for *pair, s in zip(stacked, results[carries:], shapes, strict=True)]
            if (carry, stacked) == (results[:carries], seen):
                break  # so would every further step be
            carry, stacked = results[:carries], seen
        return [*carry, *(_with_first(f, s) for f, s in zip(stacked, shapes, strict=True))]

    def _while(self, eqn, bodies, operands, path, times, cost):
        """Its number of steps is not known from shapes: its costs count once, and what goes in is seen as a whole."""
        seen = union([everything(f, v.aval.shape) for f, v in _pairs(operands, eqn.invars)], ())
        for body in bodies:
            self.run(body, [seen] * len(body.invars), path, times, cost)
        return [seen] * len(eqn.outvars)

    def _cond(self, eqn, bodies, operands, path, times, cost):
        """Its dearest branch counts."""
        costs = [no_cost() for _ in bodies]
        results = [
            self.run(body, operands[1:], path, times, None if cost is None else branch)
            for body, branch in zip(bodies, costs, strict=True)
        ]
        if cost is not None:
            cost.add(max(costs, key=lambda branch: branch.macs.total()))
        choice = everything(operands[0], eqn.invars[0].aval.shape)
        return [union([choice, *fields], v.aval.shape) for v, *fields in zip(eqn.outvars, *results, strict=True)]

    def _note(self, eqn, path, operands, times, cost):
        """Keep what an equation costs, and what it says of modules."""
        if call := read_mark(eqn):
            self.calls.setdefault(path, (call, times))
            self.fields[path] = operands[0]
        if kind := _pooling(eqn, operands):
            path = self._pool(eqn, path, kind, times)
            self.fields[path] = outputs(eqn, operands)[0]
        if cost is None:
            return
        size = prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if kind:
            cost.pooled[path] += times * size
        if eqn.primitive.name == "conv_general_dilated":
            cost.convs.add(path)
            cost.pooled[path] += times * _subsampled(eqn)
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            cost.macs[path] += times * _macs(eqn)
            cost.biases[path] += times * size

    def _pool(self, eqn, path, kind, times):
        if (path, id(eqn)) not in self._pool_of:
            number = 1 + sum(p[:-1] == path and p[-1].startswith(f"{kind}(") for p in self.pools)
            pool = (*path, f"{kind}({number})")
            self._pool_of[path, id(eqn)] = pool
            self.pools.add(pool)
            self.calls[pool] = Call(kind, eqn.outvars[0].aval.shape[1:], {}), times
        return self._pool_of[path, id(eqn)]


def _pairs(a, b):
    return list(zip(a, b, strict=True))


def _without_first(field, shape):
    return moved(field, shape, {axis: axis - 1 for axis in range(1, len(shape))})


def _with_first(field, shape):
    return moved(field, shape, {axis: axis + 1 for axis in range(len(shape))})


# Costs of one equation


def _macs(eqn):
    """Multiply-adds; the zeros of padding count as any pixel, zeros between a transposed convolution's do not."""
    x, kernel, y = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    if eqn.primitive.name == "dot_general":
        return prod(y) * prod(x[axis] for axis in eqn.params["dimension_numbers"][0][0])
    x_axes, kernel_axes, y_axes = eqn.params["dimension_numbers"]
    each = y[y_axes[0]] * y[y_axes[1]] * kernel[kernel_axes[1]]
    bases = eqn.params["lhs_dilation"]
    for i, k, o, base in zip(x_axes[2:], kernel_axes[2:], y_axes[2:], bases, strict=True):
        each *= kernel[k] * (x[i] if base > 1 else y[o])  # there, every pixel meets every tap once
    return each


def _subsampled(eqn):
    """Values that a strided window of one pixel takes from its input: a pooling before a convolution without stride."""
    x_axes, kernel_axes, y_axes = eqn.params["dimension_numbers"]
    x, kernel, y = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    if max(eqn.params["window_strides"], default=1) == 1 or prod(kernel[axis] for axis in kernel_axes[2:]) > 1:
        return 0
    return x[x_axes[1]] * prod(y) // y[y_axes[1]]


def _pooling(eqn, operands):
    """What to call an equation that pools over axes between the first and the last of an array; None: it does not."""
    name = eqn.primitive.name
    if not operands or operands[0] is None:
        return None
    shape = eqn.invars[0].aval.shape
    if name.startswith("reduce_window"):
        axes = [axis for axis, n in enumerate(eqn.params["window_dimensions"]) if n > 1]
        kind = {"reduce_window_max": "max_pool", "reduce_window_sum": "avg_pool"}.get(name, "pool")
    elif name in ("reduce_sum", "reduce_max"):
        axes = eqn.params["axes"]
        kind = {"reduce_sum": "global_avg_pool", "reduce_max": "global_max_pool"}[name]
    elif name == "slice":
        axes = [axis for axis, n in enumerate(eqn.params["strides"] or ()) if n > 1]
        kind = "subsample"
    else:
        return None
    return kind if axes and min(axes) > 0 and max(axes) < len(shape) - 1 else None
