"""Units, and stacks of them as one scan."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from deepjax.errors import InputError, choices
from deepjax.trace import accepts, call_arguments
from deepjax.units import loop
from deepjax.units.branch import Branch
from deepjax.units.joins import Drop
from deepjax.units.norms import check_branch_init

REMATS = ("none", "unit", "sqrt", "reversible")


class Unit(nn.Module):
    """Compute y = activation(join(shortcut(x), branch(x))). `before`, if there is one, is applied to x first."""

    branch: nn.Module
    join: nn.Module
    shortcut: nn.Module | None = None  # None: the identity
    before: nn.Module | None = None  # applied before the shortcut and the branch
    activation: Callable | None = None  # None: the identity

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None, **per_unit):
        """x [batch, ...] -> [batch, ...]. `per_unit`: this unit's numbers for its join, such as survival=0.9."""
        if isinstance(self.branch, Branch):
            check_branch_init(self.branch.branch_init, norm=self.branch.norm, join=type(self.join))
        if self.before is not None:
            x = self.before(x, train=train, mask=mask)
        skip = x if self.shortcut is None else self.shortcut(x, train=train, mask=mask)
        # Where parameters may be written (in `init`, and when layers are observed), both paths must write the same.
        writing = self.is_mutable_collection("params")
        if train and isinstance(self.join, Drop) and self.join.per == "batch" and not writing:
            y = self._drop(x, skip, {"train": train, "mask": mask}, per_unit)
        else:
            y = self.join(skip, self.branch(x, train=train, mask=mask), train=train, **per_unit)
        return y if self.activation is None else self.activation(y)

    def _drop(self, x, skip, call, per_unit):
        """Return the output of the join. A branch dropped for the whole batch is not computed, forward or backward."""
        factor = self.join(jnp.zeros(1), jnp.ones(1), train=True, **per_unit)[0].astype(skip.dtype)

        def compute(unit, x):
            return unit.branch(x, **call).astype(skip.dtype)

        branch = nn.cond(factor > 0, compute, lambda unit, x: jnp.zeros_like(skip), self, x)
        return skip + factor * branch


class Reversible(nn.Module):
    """Compute y1 = x1 + f(x2), y2 = x2 + g(y1) on halves x1, x2 of the features, so that x follows from y.

    Gomez et al. 2017, "The reversible residual network" (arXiv 1707.04585), eq. 6 and 7. The memory of a stack of these
    with remat="reversible" does not grow with depth. f and g are called like units, and keep the shape of their input.
    With a `shortcut`, which is applied to x1 and x2 before the sums, f may change the shape. Such a unit is not
    reversible.
    """

    f: nn.Module
    g: nn.Module
    shortcut: nn.Module | None = None  # None: the identity

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ..., features], an even number of them -> the same shape."""
        if x.shape[-1] % 2:
            raise InputError(
                f"Reversible: x has {x.shape[-1]} features; it needs an even number, to split them into halves"
            )
        x1, x2 = jnp.split(x, 2, -1)
        y1 = self._skip(x1, train, mask) + self.f(x2, train=train, mask=mask)
        return jnp.concatenate([y1, self._skip(x2, train, mask) + self.g(y1, train=train, mask=mask)], -1)

    def _skip(self, half, train, mask):
        return half if self.shortcut is None else self.shortcut(half, train=train, mask=mask)


class Stack(nn.Module):
    """`depth` equal units, one after the other. Call `stack` to make one."""

    unit: nn.Module
    depth: int
    scan: bool = True
    remat: str = "none"
    unroll: int = 1
    per_unit: Mapping[str, tuple[float, ...]] = FrozenDict()  # numbers for each unit

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> the same shape."""
        call = call_arguments(self.unit, train=train, mask=mask)

        def step(unit, x, per_unit):
            y = unit(x, **call, **per_unit)
            if (y.shape, y.dtype) != (x.shape, x.dtype):
                raise InputError(
                    f"stack: the unit turns {x.dtype}{x.shape} into {y.dtype}{y.shape}; it must keep shape and dtype"
                )
            return y

        if not self.scan:
            for i in range(self.depth):
                x = step(
                    self.unit.copy(name=f"unit{i + 1}"), x, {name: each[i] for name, each in self.per_unit.items()}
                )
            return x
        functions = (step,)
        if self.remat == "reversible":
            functions = (step, *(lambda unit, x, _, half=half: getattr(unit, half)(x, **call) for half in "fg"))
        per_unit = {name: jnp.asarray(values) for name, values in self.per_unit.items()}
        options = {"remat": self.remat, "unroll": self.unroll, "forward_only": self._is_forward_only()}
        return loop.run(self.unit, x, per_unit, functions, depth=self.depth, **options)

    def _is_forward_only(self):
        """Return whether the plain loop runs, which raises an error when it is differentiated.

        "reversible" has no gradient of variables that units write. The backward pass of "sqrt" cannot capture
        intermediates again, because JAX traces it after Flax's capturing context has ended.
        """
        if self.remat == "reversible":
            mutable: Any = self.scope and self.scope.mutable
            named = {mutable} if isinstance(mutable, str) else mutable
            return named is not False and not (isinstance(named, list | tuple | set) and set(named) <= {"batch_stats"})
        written = ("params", "intermediates", "perturbations")
        return self.remat == "sqrt" and any(map(self.is_mutable_collection, written))


def stack(
    unit,
    depth,
    *,
    scan=True,
    remat="none",
    unroll=1,
    per_unit: Mapping[str, Sequence[float]] | None = None,
    name=None,
):
    """Make one Linen module of `depth` units like `unit`, each with its own parameters.

    Args:
      unit: a Linen module that is called as `unit(x, train=..., mask=...)` and keeps the shape and dtype of x. `train`
        and `mask` are left out if its call does not take them.
      depth: number of units, at least 1.
      scan: True: run them as one `lax.scan` over stacked variables, so that compile time does not grow with depth.
        Every variable of the unit has a leading axis of `depth`. False: a Python loop over unit1, unit2, ...
      remat: what is stored for the backward pass, which recomputes the rest. Results and variables are the same.
        "none": everything, so memory grows with depth. "unit": the input of each unit. "sqrt": the input of every
        group of units; there are about 2 sqrt(depth) groups. "reversible": nothing; the unit must be a `Reversible`.
        All but "none" need scan. "reversible" recomputes inputs with rounding errors, and expansive units also amplify
        them: normalize the units, and use float32 for x. The last two refuse gradients that would need everything
        stored: "sqrt" if "params", "intermediates" or "perturbations" are mutable, "reversible" if any collection
        except "batch_stats" is. Take gradients with mutable=["batch_stats"], and capture intermediates in a separate
        forward pass.
      unroll: units per iteration of the scan, for remat "none" and "unit".
      per_unit: numbers for each unit: {"survival": [0.9, 0.8]} calls the first unit with survival=0.9, the second
        with 0.8.
      name: name of the module in its parent.

    Raises:
      InputError: a unit that is not a Linen module; a depth that is not a whole number; depth or unroll below 1; an
        unknown remat, or one that does not go with the unit, scan or unroll; a `per_unit` that the call of the unit
        does not take, or that does not have one number for each unit; a survival outside [0, 1]. When called: a unit
        that changes shape or dtype. When differentiated: a mutable collection that the remat cannot differentiate.
    """
    if not isinstance(unit, nn.Module):
        raise InputError(f"stack: unit {unit!r} is not a Linen module; pass an instance, such as Unit(...)")
    try:
        depth = operator.index(depth)
    except TypeError:
        raise InputError(f"stack: depth {depth!r} must be a whole number") from None
    if depth < 1 or unroll < 1:
        raise InputError(f"stack: depth {depth} and unroll {unroll} must be at least 1")
    _check_remat(unit, remat, scan, unroll)
    per_unit = {key: tuple(map(float, np.ravel(values))) for key, values in (per_unit or {}).items()}
    _check_per_unit(unit, per_unit, depth)
    # A unit that is made inside a module's __call__ is bound to that module. Its variables belong to the stack.
    return Stack(unit.copy(parent=None, name=None), depth, scan, remat, unroll, FrozenDict(per_unit), name=name)


def _check_per_unit(unit, per_unit, depth):
    for key, values in per_unit.items():
        if not accepts(unit, key):
            raise InputError(
                f"stack: per_unit {key}: {type(unit).__name__} takes no such argument when called; leave it out"
            )
        if len(values) != depth:
            raise InputError(f"stack: per_unit {key} has {len(values)} numbers for {depth} units; give one for each")
        wrong = [value for value in values if key == "survival" and not 0 <= value <= 1]
        if wrong:
            raise InputError(f"stack: per_unit survival has {wrong[0]:g}; survivals are probabilities, in [0, 1]")


def _check_remat(unit, remat, scan, unroll):
    if remat not in REMATS:
        raise InputError(f"stack: remat {remat!r} is unknown; {choices(str(remat), REMATS)}")
    if remat != "none" and not scan:
        raise InputError(f"stack: remat {remat} needs scan=True; without a scan, XLA removes the recomputation")
    if remat in ("sqrt", "reversible") and unroll != 1:
        raise InputError(f"stack: remat {remat} needs unroll=1, not {unroll}")
    if remat == "reversible" and not (isinstance(unit, Reversible) and unit.shortcut is None):
        raise InputError(
            f"stack: remat reversible needs a Reversible unit without shortcut, not {type(unit).__name__}; use sqrt"
        )


def unstack_units(tree) -> Any:
    """Turn variables of a model whose stacks are scans into those of the same model with scan=False.

    The `unit` of a stack, whose arrays have a leading axis of units, becomes unit1, unit2, ... NumPy arrays stay NumPy
    arrays.

    >>> tree = {"rest": {"unit": {"kernel": np.ones((3, 2))}}}
    >>> jax.tree.map(np.shape, unstack_units(tree))
    {'rest': {'unit1': {'kernel': (2,)}, 'unit2': {'kernel': (2,)}, 'unit3': {'kernel': (2,)}}}
    """
    if not isinstance(tree, Mapping):
        return tree
    if set(tree) != {"unit"}:
        return {name: unstack_units(branch) for name, branch in tree.items()}
    depth = {len(leaf) for leaf in jax.tree.leaves(tree)}
    if len(depth) != 1:
        raise InputError(f"unstack_units: arrays of one scan have leading axes {sorted(depth)}; they must be equal")
    return {
        f"unit{i + 1}": unstack_units(jax.tree.map(lambda leaf, i=i: leaf[i], tree["unit"])) for i in range(depth.pop())
    }


def stack_units(tree) -> Any:
    """Turn variables of a model with scan=False into those of the same model whose stacks are scans.

    unit1, unit2, ... become one `unit` with a leading axis of units. This is the inverse of `unstack_units`.

    >>> tree = {"rest": {"unit1": {"bias": np.zeros(2)}, "unit2": {"bias": np.ones(2)}}}
    >>> stack_units(tree)["rest"]["unit"]["bias"].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if not isinstance(tree, Mapping):
        return tree
    names = [f"unit{i + 1}" for i in range(len(tree))]
    branches = {name: stack_units(branch) for name, branch in tree.items()}
    if not tree or set(names) != set(tree):
        return branches

    def together(*leaves):
        return (np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp).stack(leaves)

    return {"unit": jax.tree.map(together, *(branches[name] for name in names))}
