"""Parts of deep networks: a unit is a branch and a join, a stage is a scan over equal units.

    y = activation(join(shortcut(x), branch(x)))

A residual net joins with `Add`, its plain twin with `Plain`, stochastic depth with `Drop`, a highway network with
`Gate`, a dense network with `Concat`; a shake-shake branch is `Shake(branch, branch)`. Units, branches, shortcuts and
stacks are called as `module(x, train=..., mask=...)`, joins as `join(skip, branch, train=...)`, `Shift` and
`SqueezeExcite` as `module(x)`. A Linen module of your own that keeps the shape of x can be a unit of `stack`. It gets
`train` and `mask` if its call takes them.

Make the parts of a unit with `parent=None`, as in `Unit(Branch(..., parent=None), Add(parent=None), name="first")`.
Otherwise Flax binds them to the module in whose `__call__` they are made, and names their parameters there.

If every residual branch starts at zero, a deep network starts as the identity. It then trains at any depth. Three ways:

    Branch(..., branch_init="zero_scale")                       the last norm's scale starts at 0
    Unit(Branch(..., norm=None), SkipInit())                    no normalization; a learned factor of the branch is 0
    Branch(..., norm=None, branch_init="fixup", branches=54)    no normalization; the last kernel starts at 0

`norm` is a module factory, called as `norm(name=...)`, or None: `norm_factory("group")`, `layers.GhostBatchNorm`,
`functools.partial(flax.linen.LayerNorm, epsilon=1e-3)`.
"""

from deepjax.units.branch import Branch, Projection, Shake, ZeroPad
from deepjax.units.convolution import ORDERS, ConvNorm, SqueezeExcite
from deepjax.units.joins import Add, Concat, Drop, Gate, Plain, SkipInit
from deepjax.units.norms import (
    BRANCH_INITS,
    NORMS,
    Norm,
    NormActivation,
    Shift,
    branch_and_join,
    check_branch_init,
    makes_batch_norm,
    norm_factory,
    normalize,
)
from deepjax.units.remat import recompute
from deepjax.units.stack import REMATS, Reversible, Stack, Unit, stack, stack_units, unstack_units

__all__ = [
    "BRANCH_INITS",
    "NORMS",
    "ORDERS",
    "REMATS",
    "Add",
    "Branch",
    "Concat",
    "ConvNorm",
    "Drop",
    "Gate",
    "Norm",
    "NormActivation",
    "Plain",
    "Projection",
    "Reversible",
    "Shake",
    "Shift",
    "SkipInit",
    "SqueezeExcite",
    "Stack",
    "Unit",
    "ZeroPad",
    "branch_and_join",
    "check_branch_init",
    "makes_batch_norm",
    "norm_factory",
    "normalize",
    "recompute",
    "stack",
    "stack_units",
    "unstack_units",
]
