"""The cost of a model's equations, module by module, and what each module's output depends on."""

from collections import Counter
from math import prod
from typing import Any, NamedTuple

from deepjax.summary.rules import outputs
from deepjax.summary.spans import Fields, moved, of_all_entries, union
from deepjax.summary.words import word
from deepjax.trace import Interpreter, Mark, read_mark

Path = tuple[str, ...]
SAME_VALUES = frozenset(("convert_element_type", "reshape", "transpose"))  # the results are the operand's values


class Cost(NamedTuple):
    """By path of the module in whose calls the equations are."""

    macs: Counter[Path]
    biases: Counter[Path]  # output values of convolutions and matrix products
    pooled: Counter[Path]  # input values of poolings, and values that a subsampling keeps
    convs: set[Path]  # the modules that convolve
    taken: set  # (source, strides) of an array of which every `strides`-th pixel is counted in `pooled`

    def add(self, other):
        """Add the costs of another one."""
        for mine, others in zip(self, other, strict=True):
            mine.update(others)


def no_cost():
    """Return a `Cost` to add to."""
    return Cost(Counter(), Counter(), Counter(), set(), set())


class Seen(NamedTuple):
    """What an array depends on."""

    field: Fields = None  # the pixels of the input
    fixed: bool = True  # it depends neither on the input nor on a variable
    resampled: Path | None = None  # path of the resampling whose output it is
    source: Any = None  # (path, variable of the jaxpr) of the array with these values; None: not known


class Reader(Interpreter):
    """Add up the costs of a `call_jaxpr` and find its receptive fields.

    The fields may grow with every step of a scan, so all its steps are interpreted, until nothing changes. Costs are
    taken from the first step. Afterwards `calls` holds the modules in the order in which their calls ended, and how
    often a scan runs them. Poolings that are functions instead of modules are among them, as `path/max_pool(1)`.
    """

    constant = Seen()
    steps = None

    def __init__(self):
        self.calls: dict[Path, tuple[Mark, int]] = {}
        self.pools: set[Path] = set()  # those of the calls that are functions
        self.fields: dict[Path, Fields] = {}  # of the output of the last call
        self.words: dict[Path, str] = {}  # the first convolution or pooling of a call, as a lecture writes it
        self.cost = no_cost()
        self._pool_of: dict[tuple[Path, int], Path] = {}

    def equation(self, eqn, values, where):
        """Record the cost of the equation. Return what its results depend on."""
        fields = outputs(eqn, [seen.field for seen in values])
        mark, kind, name = read_mark(eqn), _pooling(eqn, values), eqn.primitive.name
        if mark and mark.role == "exit":
            self.calls.setdefault(mark.path, (mark, where.times))
            self.fields[mark.path] = fields[0]
        pool, begins = self._pool(eqn, values, where, kind) if kind else (None, False)
        if not where.again:
            self._add_cost(eqn, values, where, pool if begins else None, kind)
        resampled = pool if kind == "resample" else values[0].resampled if name in SAME_VALUES else None
        pool = resampled if name == "transpose" else pool  # a resampling moves its axes back
        if pool:
            shape = _shape(eqn.outvars[0])[1:]
            self.calls[pool] = Mark("exit", pool, "__call__", pool[-1].partition("(")[0], shape, {}), where.times
            self.fields[pool] = fields[0]
        fixed = all(seen.fixed for seen in values)
        same = name == "name" or name in SAME_VALUES
        known = values[0].source if same else None
        sources = [known or (where.path, v) for v in eqn.outvars]
        return [Seen(field, fixed, resampled, source) for field, source in zip(fields, sources, strict=True)]

    def _add_cost(self, eqn, values, where, pool, kind):
        name, path, times = eqn.primitive.name, where.path, where.times
        size = prod(_shape(eqn.outvars[0])) if eqn.outvars else 0
        if pool:
            read = [prod(_shape(v)) for v, seen in zip(eqn.invars, values, strict=True) if seen.field is not None]
            self.cost.pooled[pool] += times * (size if kind == "subsample" else read[0])
            self.words[pool] = word(eqn)
        elif name in ("conv_general_dilated", "dot_general") and kind is None:
            self.cost.macs[path] += times * _macs(eqn)
            self.cost.biases[path] += times * size
            self.words.setdefault(path, word(eqn))
        if name == "conv_general_dilated":
            self.cost.convs.add(path)
            taken, kept = (values[0].source, eqn.params["window_strides"]), _subsampled(eqn)
            if kept and taken not in self.cost.taken:
                self.cost.taken.add(taken)
                self.cost.pooled[path] += times * kept

    def _pool(self, eqn, values, where, kind):
        """Return the path of an equation that pools, and whether the pooling begins with it.

        The path is the same each time the equation is interpreted. A resampling has one equation for each axis: the
        later ones replace the first.
        """
        for seen in values:
            if kind == "resample" and seen.resampled:
                return seen.resampled, False
        key = where.path, id(eqn)
        if key not in self._pool_of:
            number = 1 + sum(p[:-1] == where.path and p[-1].startswith(f"{kind}(") for p in self.pools)
            self._pool_of[key] = (*where.path, f"{kind}({number})")
            self.pools.add(self._pool_of[key])
        return self._pool_of[key], True

    def join(self, values, shape, choice=None):
        """Unite what an entry depends on in any of the arrays, and what the choice between them depends on."""
        all_values = values if choice is None else [*values, choice]
        return Seen(union([seen.field for seen in all_values], shape), all(seen.fixed for seen in all_values))

    def slice(self, value, shape):
        """Remove the first axis."""
        axes = {axis: axis - 1 for axis in range(1, len(shape))}
        return Seen(moved(value.field, shape, axes), value.fixed)

    def stack(self, value, shape):
        """Add a first axis."""
        axes = {axis: axis + 1 for axis in range(len(shape))}
        return Seen(moved(value.field, shape, axes), value.fixed)

    def any_steps(self, values, shapes):
        """Make every result depend on all operands, because the number of steps cannot be inferred from shapes."""
        fields = [of_all_entries(seen.field, shape) for seen, shape in zip(values, shapes, strict=True)]
        return [Seen(union(fields, ()), all(seen.fixed for seen in values))] * len(values)

    def branches(self, bodies, values, where):
        """Count the most expensive branch."""
        total, results, costs = self.cost, [], []
        for body in bodies:
            self.cost = no_cost()
            results.append(self.body(body, values, where))
            costs.append(self.cost)
        self.cost = total
        self.cost.add(max(costs, key=lambda cost: cost.macs.total()))
        return results


def multiply_adds(jaxpr) -> int:
    """Return the multiply-adds of the convolutions and matrix products in a jaxpr, such as that of a training step."""
    reader = Reader()
    reader.run(jaxpr, [Seen(fixed=False)] * len(jaxpr.invars))
    return reader.cost.macs.total()


# One equation


def _shape(atom) -> tuple[int, ...]:
    return atom.aval.shape


def _macs(eqn):
    """Count multiply-adds; the zeros of padding are among them, those that a transposed convolution inserts are not."""
    x, kernel, y = _shape(eqn.invars[0]), _shape(eqn.invars[1]), _shape(eqn.outvars[0])
    if eqn.primitive.name == "dot_general":
        return prod(y) * prod(x[axis] for axis in eqn.params["dimension_numbers"][0][0])
    x_axes, kernel_axes, y_axes = eqn.params["dimension_numbers"]
    macs = y[y_axes[0]] * y[y_axes[1]] * kernel[kernel_axes[1]]
    bases = eqn.params["lhs_dilation"]
    for i, k, o, base in zip(x_axes[2:], kernel_axes[2:], y_axes[2:], bases, strict=True):
        macs *= kernel[k] * (x[i] if base > 1 else y[o])  # in a transposed one, every pixel meets every tap once
    return macs


def _subsampled(eqn):
    """Count the values that a strided window of one pixel takes: a pooling before a convolution without stride."""
    x_axes, kernel_axes, y_axes = eqn.params["dimension_numbers"]
    x, kernel, y = _shape(eqn.invars[0]), _shape(eqn.invars[1]), _shape(eqn.outvars[0])
    if max(eqn.params["window_strides"], default=1) == 1 or prod(kernel[axis] for axis in kernel_axes[2:]) > 1:
        return 0
    return x[x_axes[1]] * prod(y) // y[y_axes[1]]


def _pooling(eqn, values) -> str | None:
    """Name an equation that pools over axes between the first and the last of an array; None if it does not."""
    name = eqn.primitive.name
    if name == "dot_general":
        return "resample" if _resamples(eqn, values) else None
    if not values or values[0].field is None:
        return None
    if name.startswith("reduce_window"):
        windows = eqn.params["window_dimensions"]
        axes = [axis for axis, n in enumerate(windows) if n > 1] or range(1, len(windows) - 1)  # a window of one pixel
        kind = {"reduce_window_max": "max_pool", "reduce_window_sum": "avg_pool"}.get(name, "pool")
    elif name in ("reduce_sum", "reduce_max"):
        axes = eqn.params["axes"]
        kind = {"reduce_sum": "global_avg_pool", "reduce_max": "global_max_pool"}[name]
    elif name == "slice":
        axes = [axis for axis, n in enumerate(eqn.params["strides"] or ()) if n > 1]
        kind = "subsample"
    else:
        return None
    return kind if axes and min(axes) > 0 and max(axes) < len(_shape(eqn.invars[0])) - 1 else None


def _resamples(eqn, values):
    """Return whether a product is one along pixels with a fixed matrix: an adaptive pooling, or a change of size."""
    contracted, _ = eqn.params["dimension_numbers"]
    for v, seen, other, axes in zip(eqn.invars, values, reversed(values), contracted, strict=True):
        if seen.field is not None and other.fixed and axes:
            pixels = {*range(1, len(_shape(v)) - 1), *(span.axis for span in seen.field)}
            return pixels.issuperset(axes)
    return False
