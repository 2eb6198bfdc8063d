"""How much memory a step needs beside its inputs and outputs: which values lie in memory, when, and from when to when.

Rules of XLA's, as far as they decide where the peak is. They were found by reading its buffer assignments on CPU
(JAX 0.10), and are held against `memory_analysis()` in the tests; elsewhere they are a guess of the same kind.
"""

from collections import Counter, deque
from typing import Any, NamedTuple

from deepjax.plan.graph import ARITHMETIC, CHEAP, LOOPS, RESHAPES, Graph, Operation, Value, words

DEAR = words("""
    acos asin atan atan2 cbrt cos div erf erf_inv erfc exp exp2 expm1 log log1p logistic pow rem rsqrt sin sqrt tan tanh
""")  # not worth computing twice
TAKES_CHEAP = CHEAP | {"argmax", "argmin", "dynamic_update_slice"}  # computes its cheap operands on the way
REDUCES = words("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or")
REDUCED = words("mul square integer_pow neg")  # what a reduction computes on the way
IN_PLACE = ARITHMETIC | {"dynamic_update_slice", "scatter", "scatter-add"}


class Need(NamedTuple):
    """What a graph needs."""

    temporaries: int  # bytes, beside its inputs and outputs
    activations: int  # bytes that its forward pass makes and its backward pass reads; a part of them
    kernels: int  # operations to compile, those of loops' bodies once


def need(graph):
    """The `Need` of a step's graph."""
    return _need(graph, outermost=True)


def _need(graph, outermost=False):
    steps = fuse(graph)
    inner = {step: _inside(step) for step in steps if step.operation.name in LOOPS}
    kept = {v for step in steps if step.operation.backward for v in step.reads if v.maker and not v.maker.backward}
    _start_stacks(graph, steps)
    _copy_overwritten(graph, steps)
    steps = breadth_first(steps)
    lives = _lives(steps, set(graph.outputs))
    if outermost:
        for value in list(_in_donated(graph, steps, lives)):
            del lives[value]
    kernels = len(steps) + sum(found.kernels for found in inner.values())
    peak = _peak(steps, lives, {step: found.temporaries for step, found in inner.items()})
    return Need(peak, sum(value.size for value in kept), kernels)


def _inside(step):
    found = [_need(graph) for graph in step.operation.bodies]
    return Need(max(f.temporaries for f in found), 0, sum(f.kernels for f in found))


# What lies in memory


class Step:
    """An operation that is run, with all the cheap ones that it computes on the way: `reads` lies in memory."""

    __slots__ = ("makes", "operation", "reads")

    def __init__(self, operation, reads, makes):
        self.operation, self.reads, self.makes = operation, reads, makes


def fuse(graph: Graph):
    """The Steps of a graph, in its order.

    A cheap operation is computed by whoever needs its result: by one, or by all where it reads but one array of its
    size and is not dear. Its result then lies in memory only for those that cannot compute it: convolutions, products,
    loops, reductions (which can multiply, no more).
    """
    operations = _alive(graph)
    users = Counter(value for operation in operations for value in set(operation.reads))
    users.update(graph.outputs)
    reached, reduced = {}, {}  # value: what must lie in memory for a loop over elements, for a reduction

    def through(values, kind):
        return set().union(*(kind.get(v, (v,) if v.size else ()) for v in values))

    for operation in operations:
        if operation.name in CHEAP:
            passes = operation.name in RESHAPES or (operation.name not in DEAR and _reads_one(operation))
            for value in operation.makes:
                if (users[value] == 1 and value not in graph.outputs) or passes:
                    reached[value] = through(operation.reads, reached)
                if users[value] == 1 and operation.name in REDUCED:
                    reduced[value] = through(operation.reads, reduced)
                elif operation.name == "broadcast_in_dim" and not operation.reads[0].shape:
                    reduced[value] = set()

    def reads_of(operation):
        kind = reached if operation.name in TAKES_CHEAP else reduced if operation.name in REDUCES else {}
        return through(operation.reads, kind)

    steps, wanted = {}, [v.maker for v in graph.outputs if v.maker]
    in_memory = {v for v in graph.outputs if v.maker}
    while wanted:
        operation = wanted.pop()
        if operation not in steps:
            reads = reads_of(operation)
            steps[operation] = Step(operation, reads, ())
            in_memory.update(reads)
            wanted += [v.maker for v in reads if v.maker]
    for operation, step in steps.items():
        step.makes = [v for v in operation.makes if v in in_memory]
    return [steps[operation] for operation in operations if operation in steps]


def _alive(graph):
    needed, alive = set(graph.outputs), []
    for operation in reversed(graph.operations):
        if not needed.isdisjoint(operation.makes):
            alive.append(operation)
            needed.update(operation.reads)
    return alive[::-1]


def _reads_one(operation):
    rank = len(operation.makes[0].shape)
    wide = {v for v in operation.reads if len(v.shape) >= rank and v.size and not _is(v, "broadcast_in_dim")}
    return len(wide) <= 1


def _is(value, name):
    return value.maker is not None and value.maker.name == name


def _start_stacks(graph, steps):
    """The stacks that a scan fills are there, as zeros, from the beginning; outputs lie elsewhere."""
    for step in [s for s in steps if s.operation.name == "scan"]:
        stacks = step.operation.makes[step.operation.carries :]
        for value in [v for v in stacks if v in step.makes and v not in graph.outputs]:
            zeros = Value(value.shape, value.size)
            steps.insert(0, Step(Operation("zeros", [], [zeros]), set(), [zeros]))
            step.reads = step.reads | {zeros}


def _copy_overwritten(graph, steps):
    """An input whose memory an output takes is copied, at the start, if something may read it after that."""
    index, before = {step.operation: i for i, step in enumerate(steps)}, []
    for step in steps:
        makers = [index[v.maker] for v in step.reads if v.maker in index]
        reach = 0
        for i in makers:
            reach |= before[i] | 1 << i
        before.append(reach)
    readers = {}
    for i, step in enumerate(steps):
        for value in step.reads:
            readers.setdefault(value, []).append(i)
    copies = []
    for value, output in graph.aliases:
        last = index.get(output.maker)
        if value is output or last is None:
            continue
        if any(i != last and not before[last] >> i & 1 for i in readers.get(value, ())):
            copy = Value(value.shape, value.size)
            copies.append(Step(Operation("copy", [value], [copy]), {value}, [copy]))
            for i in readers[value]:
                steps[i].reads = steps[i].reads - {value} | {copy}
    steps[:0] = copies


# When


def breadth_first(steps):
    """In the order of XLA:CPU, which begins whatever can begin: first what waits for nothing, then its users, ..."""
    maker = {value: step for step in steps for value in step.makes}
    waits = {step: {maker[v] for v in step.reads if v in maker} for step in steps}
    users, left = {}, {}
    for step in steps:
        left[step] = len(waits[step])
        for other in waits[step]:
            users.setdefault(other, []).append(step)
    ready, order = deque(step for step in steps if not left[step]), []
    while ready:
        order.append(step := ready.popleft())
        for user in users.get(step, ()):
            left[user] -= 1
            if not left[user]:
                ready.append(user)
    return order


def _lives(steps, outputs):
    """{value: (step that makes it, last step that reads it)} of the temporaries."""
    last = {value: i for i, step in enumerate(steps) for value in step.reads}
    return {v: (i, last[v]) for i, step in enumerate(steps) for v in step.makes if v in last and v not in outputs}


def _in_donated(graph, steps, lives):
    """The temporaries that lie in an input's memory, between its last use and the output that takes it.

    Those of its size: gradients, mostly. Others may fit as well, but whether their times do is a matter of luck.
    """
    made = {value: i for i, step in enumerate(steps) for value in step.makes}
    used = {value: i for i, step in enumerate(steps) for value in step.reads}
    free = {}
    for value, output in graph.aliases:
        if value is not output and output in made:
            free.setdefault(value.size, []).append((used.get(value, -1), made[output], []))
    for value, (born, dies) in lives.items():
        for start, end, tenants in free.get(value.size, ()):
            if start < born and dies <= end and all(dies < b or born > d for b, d in tenants):
                tenants.append((born, dies))
                yield value
                break


def _peak(steps, lives, inside):
    """The most bytes of temporaries at any step, with what a loop needs inside."""
    ends: dict[int, list[Any]] = {}
    for value, (_, last) in lives.items():
        ends.setdefault(last, []).append(value)
    held = peak = 0
    for i, step in enumerate(steps):
        new = [v for v in step.makes if v in lives]
        held += sum(v.size for v in new)
        peak = max(peak, held + inside.get(step, 0) - _shared(step, new, ends.get(i, ())))
        held -= sum(v.size for v in ends.get(i, ()))
    return peak


def _shared(step, new, dying):
    """Bytes of results that take the place of operands that nobody needs any more."""
    operation, dying = step.operation, list(dying)
    if operation.name not in IN_PLACE and operation.name not in ("scan", "while"):
        return 0
    shared = 0
    for value in new:
        place = next((v for v in dying if v.size == value.size), None)
        if place is not None:
            dying.remove(place)
            shared += value.size
    return shared
