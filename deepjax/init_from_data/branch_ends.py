"""Find where a model adds a branch to a skip. This works for any Linen model, also inside scans."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from deepjax.trace import Interpreter, call_jaxpr, read_mark

Path = tuple[str, ...]


class Origin(NamedTuple):
    """Where an array in a jaxpr comes from."""

    owner: Path | None = None  # the module whose output it is, up to functions without parameters
    activations: int = 0  # a bit for each activation that it depends on, itself included; 0: parameters alone
    modules: int = 0  # the largest number of modules with a kernel or a scale on a path from the input to it


def branch_ends(model, variables, key, x, call) -> dict[Path, int]:
    """Find the last module with a kernel or a scale in each residual branch.

    A branch ends in an addition of two arrays of one shape that depend on a common activation. Of the two, the branch
    is the one that depends on the other, or else the one that has passed more modules.

    Returns:
      {path of the module: number of branches that it ends}. In a scan one path stands for all its units.
    """
    jaxpr = call_jaxpr(model, variables, x, call, rngs={"params": key}, mutable=nn.DenyList("intermediates"))
    reader = _Reader()
    weights, images = (len(jax.tree.leaves(tree)) for tree in (variables, x))
    reader.run(jaxpr, [Origin()] * weights + [Origin(activations=reader.new_bit()) for _ in range(images)])
    return dict(reader.ends)


class _Reader(Interpreter):
    constant = Origin()

    def __init__(self):
        self.ends: Counter[Path] = Counter()
        self.bits = 0

    def new_bit(self):
        self.bits += 1
        return 1 << self.bits

    def equation(self, eqn, values, where):
        active = [origin for origin in values if origin.activations]
        if not active:
            return [Origin()] * len(eqn.outvars)
        activations = self.new_bit()
        for origin in active:
            activations |= origin.activations
        modules = max(origin.modules for origin in active)
        owners = {origin.owner for origin in active}
        owner = owners.pop() if len(owners) == 1 else None
        mark = read_mark(eqn)
        if mark and (mark.role, mark.method) == ("exit", "__call__") and mark.parameters.keys() & {"kernel", "scale"}:
            owner, modules = mark.path, modules + 1
        elif eqn.primitive.name in ("add", "add_any") and len(active) == 2:
            shapes = {v.aval.shape for v in [*eqn.invars, *eqn.outvars]}
            if len(shapes) == 1 and len(shapes.pop()) > 1:
                self._add(active[0], active[1], where.times)
        return [Origin(owner, activations, modules)] * len(eqn.outvars)

    def join(self, values, shape, choice=None):
        """A branch that computes something counts, not one that skips the computation."""
        return max(reversed(values), key=lambda origin: origin.modules)

    def _add(self, a, b, times):
        """Count the branch that ends in the addition of a and b, if one does."""
        if not a.activations & b.activations or a.owner == b.owner:
            return  # two arrays of one owner are still that module's output, as inside a GELU
        if a.activations & ~b.activations and b.activations & ~a.activations:
            branch = max(a, b, key=lambda origin: origin.modules)
        else:
            branch = b if a.activations & ~b.activations == 0 else a
        if branch.owner is not None:
            self.ends[branch.owner] += times


def scaled_ends(variables, ends, factor) -> Mapping[str, Any]:
    """Return variables in which the `scale` of each module in `ends` that has one is multiplied by a factor."""

    def change(path, leaf):
        names = tuple(key.key for key in path)
        return leaf * factor if names[0] == "params" and names[-1] == "scale" and names[1:-1] in ends else leaf

    return jax.tree_util.tree_map_with_path(change, variables)
