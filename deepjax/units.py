"""One vocabulary for deep nets: a unit is a branch and a join, a stage is many equal units as one scan.

    y = activation(join(shortcut(x), branch(x)))

A residual net joins with `Add`, its plain twin with `Plain`. Every module here is called as
`module(x, train=..., mask=...)`; a Linen module of your own that takes the same arguments and keeps the shape of x can
be a unit of `stack`.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError
from deepjax.layers import BatchNorm, Conv


class Branch(nn.Module):
    """A chain of convolutions, each with its normalization.

    order "post": conv, norm, activation, ..., conv, norm (He et al. 2015, figure 2).
    order "pre": norm, activation, conv, ..., norm, activation, conv (He et al. 2016, figure 1b). With
    `activated=True` the input has been through norm and activation already, so the first pair is left out.
    """

    features: Sequence[int]  # of each convolution
    windows: Sequence[int]  # of each convolution, in pixels
    strides: Sequence[int]
    order: str = "post"
    activated: bool = False
    activation: Callable = functional.relu
    kernel_init: Callable = initializers.he_normal_fan_out()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / strides, W / strides, features[-1]]."""
        if self.order not in ("post", "pre"):
            raise InputError(f"Branch: order {self.order!r} is not post or pre")
        if not len(self.features) == len(self.windows) == len(self.strides) or any(w % 2 == 0 for w in self.windows):
            raise InputError(
                f"Branch: features {self.features}, windows {self.windows} and strides {self.strides} must be equally "
                f"many, windows odd"
            )
        last = len(self.features) - 1
        for i, (features, window, stride) in enumerate(zip(self.features, self.windows, self.strides, strict=True)):
            conv = Conv(
                features,
                (window, window),
                stride,
                window // 2,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"conv{i + 1}",
            )
            norm = BatchNorm(name=f"norm{i + 1}")
            if self.order == "post":
                x = norm(conv(x), train=train, mask=mask)
                x = self.activation(x) if i < last else x
            elif i == 0 and self.activated:
                x = conv(x)
            else:
                x = conv(self.activation(norm(x, train=train, mask=mask)))
        return x


class NormActivation(nn.Module):
    """Batch normalization, then the activation."""

    activation: Callable = functional.relu

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, ..., features] -> the same shape."""
        return self.activation(BatchNorm(name="norm")(x, train=train, mask=mask))


class Projection(nn.Module):
    """A shortcut that changes shape by a 1x1 convolution (options B and C of He et al. 2015, section 4.1)."""

    features: int
    stride: int = 1
    norm: bool = True
    kernel_init: Callable = initializers.he_normal_fan_out()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / stride, W / stride, features]."""
        x = Conv(self.features, (1, 1), self.stride, 0, kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)
        return BatchNorm(name="norm")(x, train=train, mask=mask) if self.norm else x


class ZeroPad(nn.Module):
    """A shortcut without parameters (option A of He et al. 2015): take every stride-th pixel, append zero features."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / stride, W / stride, features]."""
        more = self.features - x.shape[-1]
        if more < 0:
            raise InputError(f"a zero-padding shortcut cannot go from {x.shape[-1]} features to {self.features}; use B")
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, more)))


class Add(nn.Module):
    """The join of residual nets: skip + branch (He et al. 2015, eq. 1)."""

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """Two arrays of one shape -> their sum."""
        if skip.shape != branch.shape:
            raise InputError(
                f"Add: the skip has shape {skip.shape}, the branch {branch.shape}; give the unit a shortcut that "
                f"changes the shape as the branch does"
            )
        return skip + branch


class Plain(nn.Module):
    """The join of plain nets: the branch alone."""

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """Returns `branch`."""
        return branch


class Unit(nn.Module):
    """y = activation(join(shortcut(x), branch(x))), where x first passes `before`, if there is one."""

    branch: nn.Module
    join: nn.Module
    shortcut: nn.Module | None = None  # None: the identity
    before: nn.Module | None = None  # shared by the shortcut and the branch
    activation: Callable | None = None  # None: the identity

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> [batch, ...]."""
        if self.before is not None:
            x = self.before(x, train=train, mask=mask)
        skip = x if self.shortcut is None else self.shortcut(x, train=train, mask=mask)
        y = self.join(skip, self.branch(x, train=train, mask=mask), train=train)
        return y if self.activation is None else self.activation(y)


class Stack(nn.Module):
    """`depth` equal units, one after the other. Made by `stack`."""

    unit: nn.Module
    depth: int
    scan: bool = True
    unroll: int = 1

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> the same shape."""
        if not self.scan:
            for i in range(self.depth):
                x = self.unit.copy(name=f"unit{i + 1}")(x, train=train, mask=mask)
            return x

        def body(unit, x, _):
            y = unit(x, train=train, mask=mask)
            if (y.shape, y.dtype) != (x.shape, x.dtype):
                raise InputError(
                    f"stack: the unit turns {x.dtype}{x.shape} into {y.dtype}{y.shape}; a unit of a stack must keep "
                    f"shape and dtype"
                )
            return y, None

        loop = nn.scan(
            body,
            variable_axes={True: 0},  # every collection, the user's own too, gets a leading axis of units
            split_rngs={True: True},
            length=self.depth,
            unroll=self.unroll,
        )
        return loop(self.unit, x, None)[0]


def stack(unit, depth, *, scan=True, unroll=1, name=None):
    """`depth` units like `unit`, each with parameters of its own, as one Linen module.

    Args:
      unit: a Linen module called as `unit(x, train=..., mask=...)` that keeps the shape and dtype of x.
      depth: how many, at least 1.
      scan: run them as one `lax.scan` over stacked variables, so that compile time does not grow with depth: every
        variable of the unit has a leading axis of `depth`. False: a Python loop, variables named unit1, unit2, ...
      unroll: units per iteration of the scan.
      name: of the module in its parent.

    Raises:
      InputError: depth or unroll below 1; when called, a unit that changes shape or dtype.
    """
    if depth < 1 or unroll < 1:
        raise InputError(f"stack: depth {depth} and unroll {unroll} must be at least 1")
    # A unit made inside another module's __call__ is bound there; its variables belong to the stack.
    return Stack(unit.copy(parent=None, name=None), depth, scan, unroll, name=name)
