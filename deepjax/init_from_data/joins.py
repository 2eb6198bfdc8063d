"""Where a model adds a branch to a skip, read from its jaxpr: for any Linen model, also inside scans."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Var, jaxprs_in_params

MARK = "deepjax.init_from_data "  # begins the name that a module's output has in the jaxpr


class Trace(NamedTuple):
    """What is known of a number in the jaxpr."""

    owner: str | None = None  # path of the module whose output it is, but for activations and the like
    seen: int = 0  # bits of all activations that it depends on, its own too; 0: it depends on parameters alone
    modules: int = 0  # how many marked modules it has passed, at most


def branch_ends(model, variables, key, x, call) -> dict[tuple[str, ...], int]:
    """{path of the last module with a kernel or a scale in a residual branch: how many branches it ends}.

    A branch ends in an addition of two arrays of one shape that come from one activation. Of the two, the branch is
    the one that depends on the other, or that has passed more modules. In a scan one path stands for all its units.
    """

    def mark(next_method, args, kwargs, context):
        y = next_method(*args, **kwargs)
        own = context.module.variables.get("params", {})
        if context.method_name == "__call__" and hasattr(y, "dtype") and ("kernel" in own or "scale" in own):
            return checkpoint_name(y, MARK + "/".join(context.module.path))
        return y

    def forward(variables, x, key):
        with nn.intercept_methods(mark):
            return model.apply(variables, x, **call, rngs={"params": key}, mutable=True)[0]

    jaxpr = jax.make_jaxpr(forward)(variables, x, key).jaxpr
    count = len(jax.tree.leaves(variables))
    images = len(jax.tree.leaves(x))
    reader = _Reader()
    start = [Trace(None, reader.bit() if count <= i < count + images else 0, 0) for i in range(len(jaxpr.invars))]
    reader.read(jaxpr, start, 1)
    return {tuple(path.split("/")): number for path, number in reader.ends.items()}


class _Reader:
    def __init__(self):
        self.ends: dict[str, int] = {}
        self.bits = 0

    def bit(self):
        self.bits += 1
        return 1 << self.bits

    def read(self, jaxpr, start, times):
        """Traces of a jaxpr's outputs, from those of its inputs; `times`: how often a scan runs it."""
        traces = dict(zip(jaxpr.invars, start, strict=True))
        for eqn in jaxpr.eqns:
            ins = [traces.get(v, Trace()) if isinstance(v, Var) else Trace() for v in eqn.invars]
            traces |= zip(eqn.outvars, self._outputs(eqn, ins, times), strict=True)
        return [traces.get(v, Trace()) if isinstance(v, Var) else Trace() for v in jaxpr.outvars]

    def _outputs(self, eqn, ins, times):
        bodies = [body for body in jaxprs_in_params(eqn.params) if len(body.outvars) == len(eqn.outvars)]
        if bodies and len(bodies[0].invars) <= len(ins):  # of a cond, the first inputs are not the body's
            more = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            results = [self.read(body, ins[len(ins) - len(body.invars) :], times * more) for body in bodies]
            return max(results, key=lambda traces: sum(trace.modules for trace in traces))
        active = [trace for trace in ins if trace.seen]
        if not active:
            return [Trace()] * len(eqn.outvars)
        seen = self.bit()
        for trace in active:
            seen |= trace.seen
        modules = max(trace.modules for trace in active)
        owners = {trace.owner for trace in active}
        owner = owners.pop() if len(owners) == 1 else None
        name = str(eqn.params["name"]) if eqn.primitive.name == "name" else ""
        if name.startswith(MARK):
            owner, modules = name.removeprefix(MARK), modules + 1
        elif eqn.primitive.name in ("add", "add_any") and len(active) == 2:
            a, b = active
            self._join(a, b, times, eqn.outvars[0].aval.shape, [v.aval.shape for v in eqn.invars])
        return [Trace(owner, seen, modules)] * len(eqn.outvars)

    def _join(self, a, b, times, shape, shapes):
        """Remember the branch, if this addition of a and b is a join."""
        if len(shape) < 2 or shapes != [shape, shape] or not a.seen & b.seen or a.owner == b.owner:
            return  # two of one owner are one module's output still, as inside of a GELU
        if a.seen & ~b.seen and b.seen & ~a.seen:
            branch = max(a, b, key=lambda trace: trace.modules)
        else:
            branch = b if a.seen & ~b.seen == 0 else a
        if branch.owner is not None:
            self.ends[branch.owner] = self.ends.get(branch.owner, 0) + times


def scaled_ends(variables, ends, factor) -> Mapping[str, Any]:
    """Variables whose `scale` of the modules in `ends`, where they have one, is multiplied by a factor."""

    def change(path, leaf):
        names = tuple(key.key for key in path)
        return leaf * factor if names[0] == "params" and names[-1] == "scale" and names[1:-1] in ends else leaf

    return jax.tree_util.tree_map_with_path(change, variables)
