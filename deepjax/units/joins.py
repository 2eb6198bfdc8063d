"""Joins: how a unit combines its skip and its branch."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError
from deepjax.functional.arrays import spread
from deepjax.layers import Conv, Dense, DropPath


class Add(nn.Module):
    """Return skip + branch: the join of residual networks (He et al. 2015, eq. 1)."""

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """Two arrays of one shape -> their sum."""
        _check_shapes("Add", skip, branch)
        return skip + branch


class SkipInit(nn.Module):
    """Return skip + alpha * branch. The learned number alpha starts at 0, so the unit starts as its shortcut.

    De & Smith 2020, "Batch normalization biases residual blocks towards the identity function", use it for branches
    without normalization; Bachlechner et al. 2020, "ReZero is all you need", for any branch.

    >>> import jax
    >>> from deepjax.units import Branch, Unit
    >>> unit, x = Unit(Branch((2, 2), (3, 3), (1, 1), norm=None), SkipInit()), jnp.ones((1, 4, 4, 2))
    >>> y, variables = unit.init_with_output(jax.random.key(0), x, train=True)
    >>> bool((y == x).all()), variables["params"]["join"]["alpha"].tolist()
    (True, 0.0)
    """

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """Two arrays of one shape -> their weighted sum."""
        _check_shapes("SkipInit", skip, branch)
        return skip + spread(self.param("alpha", initializers.zeros, (), jnp.float32), branch) * branch


class Plain(nn.Module):
    """Return the branch alone: the join of plain networks."""

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """Return `branch`."""
        return branch


class Drop(nn.Module):
    """Return skip + branch. In training, drop the branch with probability 1 - survival.

    This is stochastic depth (Huang et al. 2016, eq. 2 and 5). In a stack, each unit may have another survival:
    `stack(unit, 3, per_unit={"survival": [0.9, 0.8, 0.7]})`. The paper uses scaling="original" and per="batch".
    `functional.drop_path` describes all of them.

    >>> import jax
    >>> skip, branch = jnp.zeros((4, 2)), jnp.ones((4, 2))
    >>> y = Drop(0.5).apply({}, skip, branch, train=True, rngs={"dropout": jax.random.key(0)})
    >>> bool(((y == 0) | (y == 2)).all()), bool((Drop(0.5).apply({}, skip, branch, train=False) == 1).all())
    (True, True)
    """

    survival: float | None = None  # used if the call gives none
    scaling: str = "inverted"
    per: str = "example"

    @nn.compact
    def __call__(self, skip, branch, *, train: bool, survival: float | jax.Array | None = None):
        """Two arrays [batch, ...] of one shape -> the same shape. Raise InputError without a survival."""
        _check_shapes("Drop", skip, branch)
        drop = DropPath(self.survival, self.scaling, self.per, name="drop")
        return skip + drop(branch, train=train, survival=survival)


class Gate(nn.Module):
    """Return T branch + (1 - T) skip, T = sigmoid(W skip + b): highway networks (Srivastava et al. 2015, eq. 3).

    W is dense for [batch, features] and a convolution for maps. b starts at `bias`. At -2, T is about 0.12: a unit
    passes on most of its input at first. A deep network needs a lower bias, such as -log(depth), at which the fraction
    (1 - T)^depth of its input that all units together pass on is about 1/e.

    >>> import jax
    >>> from functools import partial
    >>> skip, branch = jnp.zeros((1, 2)), jnp.ones((1, 2))
    >>> y, variables = jax.jit(partial(Gate(-2.0).init_with_output, train=True))(jax.random.key(0), skip, branch)
    >>> [round(float(t), 2) for t in y[0]], jax.tree.map(jnp.shape, variables["params"])
    ([0.12, 0.12], {'gate': {'bias': (2,), 'kernel': (2, 2)}})
    """

    bias: float = -2.0
    window: int = 3  # in pixels, odd; for maps
    kernel_init: Callable = initializers.he_normal()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """Two arrays [batch, features] or [batch, *spatial, features] of one shape -> the same shape."""
        _check_shapes("Gate", skip, branch)
        options = {
            "use_bias": True,
            "bias_init": initializers.constant(self.bias),
            "kernel_init": self.kernel_init,
            "dtype": self.dtype,
            "name": "gate",
        }
        features, spatial = skip.shape[-1], skip.ndim - 2
        if spatial:
            if self.window % 2 == 0:
                raise InputError(f"Gate: window {self.window} must be odd, or the maps would change their size")
            gate = Conv(features, (self.window,) * spatial, 1, self.window // 2, **options)
        else:
            gate = Dense(features, **options)
        return skip + functional.sigmoid(gate(skip)) * (branch - skip)


class Concat(nn.Module):
    """Return the features of the skip, then those of the branch: dense networks (Huang et al. 2017, eq. 2)."""

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """[batch, ..., a] and [batch, ..., b] -> [batch, ..., a + b]."""
        if skip.shape[:-1] != branch.shape[:-1]:
            raise InputError(
                f"Concat: the skip has shape {skip.shape}, the branch {branch.shape}; all but their features must agree"
            )
        return jnp.concatenate([skip, branch], -1)


def _check_shapes(join, skip, branch):
    if skip.shape != branch.shape:
        raise InputError(
            f"{join}: the skip has shape {skip.shape}, the branch {branch.shape}; give the unit a shortcut that "
            f"changes the shape like the branch"
        )
