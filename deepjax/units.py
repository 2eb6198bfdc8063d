"""One vocabulary for deep nets: a unit is a branch and a join, a stage is many equal units as one scan.

    y = activation(join(shortcut(x), branch(x)))

A residual net joins with `Add`, its plain twin with `Plain`. Every module here is called as
`module(x, train=..., mask=...)`; a Linen module of your own that takes the same arguments and keeps the shape of x can
be a unit of `stack`.

A residual branch that starts at zero makes a deep net start as the identity, which needs no normalization. Three ways:

    Branch(..., norm="zero_batch")              batch normalization, whose last scale starts at 0
    Unit(Branch(..., norm="none"), SkipInit())  no normalization, a multiplier of the branch that starts at 0
    Branch(..., norm="fixup", branches=54)      no normalization, the last kernel starts at 0, the others small
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError, choices
from deepjax.layers import BatchNorm, Conv

NORMS = ("batch", "zero_batch", "none", "fixup")


def check_norm(norm, *, order="post", join=None):
    """Raises InputError for a norm that is unknown, or that a branch of this order and join could not learn with."""
    if norm not in NORMS:
        raise InputError(f"norm {norm!r} is unknown; {choices(str(norm), NORMS)}")
    if norm == "zero_batch" and order == "pre":
        raise InputError(
            "norm zero_batch needs order post: in front of a ReLU, a scale of 0 never learns; use SkipInit (skip_init)"
        )
    if norm in ("zero_batch", "fixup") and join in (Plain, SkipInit):
        why = "has no skip" if join is Plain else "would start at 0 twice and never learn"
        raise InputError(
            f"norm {norm} starts a branch at 0, and with join {join.__name__} it {why}; use norm batch or none"
        )


def normalize(x, norm, *, train, mask, name, scale_init=initializers.ones):
    """What `norm` puts in the place of a normalization. The module in whose __call__ it is called owns it as `name`."""
    if norm == "none":
        return x
    if norm == "fixup":
        return Shift(name=name)(x)
    return BatchNorm(scale_init=scale_init, name=name)(x, train=train, mask=mask)


class Shift(nn.Module):
    """x plus one learned number, which starts at 0 (Zhang et al. 2019, Fixup, section 3)."""

    @nn.compact
    def __call__(self, x):
        """Any shape -> the same shape and dtype."""
        return x + self.param("bias", initializers.zeros, (), jnp.float32).astype(x.dtype)


class Branch(nn.Module):
    """A chain of convolutions, each with its normalization.

    order "post": conv, norm, activation, ..., conv, norm (He et al. 2015, figure 2).
    order "pre": norm, activation, conv, ..., norm, activation, conv (He et al. 2016, figure 1b). With
    `activated=True` the input has been through norm and activation already, so the first pair is left out.

    norm "batch": batch normalization. "zero_batch": and the scale of the last one starts at 0 (Goyal et al. 2017,
    section 5.1); for order "post". "none": none, and the convolutions have biases. "fixup" (Zhang et al. 2019, section
    3): none, and each convolution has a learned number before it (`shift1`, ...) and another in the place of its norm
    (`norm1`, ...); the last kernel starts at 0 and a learned factor follows it (`scale`); the other kernels start as
    `kernel_init` says, times branches^(-1 / (2m - 2)), with m convolutions in the branch.

    >>> branch = Branch((8, 8), (3, 3), (1, 1), norm="fixup", branches=54)
    >>> x = jnp.ones((1, 4, 4, 8))
    >>> sorted(jax.eval_shape(lambda: branch.init(jax.random.key(0), x, train=True))["params"])
    ['conv1', 'conv2', 'norm1', 'norm2', 'scale', 'shift1', 'shift2']
    """

    features: Sequence[int]  # of each convolution
    windows: Sequence[int]  # of each convolution, in pixels
    strides: Sequence[int]
    order: str = "post"
    activated: bool = False
    activation: Callable = functional.relu
    kernel_init: Callable = initializers.he_normal(mode="fan_out")
    dtype: jnp.dtype | None = None
    norm: str = "batch"  # one of NORMS
    branches: int = 0  # residual branches in the whole network, which norm "fixup" must know

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / strides, W / strides, features[-1]]."""
        self._check()
        last = len(self.features) - 1
        for i, (features, window, stride) in enumerate(zip(self.features, self.windows, self.strides, strict=True)):
            norm = partial(normalize, norm=self.norm, train=train, mask=mask, name=f"norm{i + 1}")
            if self.order == "pre" and (i > 0 or not self.activated):
                x = self.activation(norm(x))
            if self.norm == "fixup":
                x = Shift(name=f"shift{i + 1}")(x)
            x = Conv(
                features,
                (window, window),
                stride,
                window // 2,
                use_bias=self.norm == "none",
                kernel_init=self._kernel_init(i),
                dtype=self.dtype,
                name=f"conv{i + 1}",
            )(x)
            if self.norm == "fixup" and i == last:
                x = x * self.param("scale", initializers.ones, (), jnp.float32).astype(x.dtype)
            if self.order == "post":
                zero = self.norm == "zero_batch" and i == last
                x = norm(x, scale_init=initializers.zeros if zero else initializers.ones)
                x = self.activation(x) if i < last else x
        return x

    def _check(self):
        check_norm(self.norm, order=self.order)
        if self.norm == "fixup" and self.branches < 1:
            raise InputError(f"Branch: branches {self.branches} must be how many the network has, for norm fixup")
        if self.order not in ("post", "pre"):
            raise InputError(f"Branch: order {self.order!r} is not post or pre")
        if not len(self.features) == len(self.windows) == len(self.strides) or any(w % 2 == 0 for w in self.windows):
            raise InputError(
                f"Branch: features {self.features}, windows {self.windows} and strides {self.strides} must be equally "
                f"many, windows odd"
            )

    def _kernel_init(self, i):
        if self.norm != "fixup":
            return self.kernel_init
        m = len(self.features)
        if i == m - 1:
            return initializers.zeros
        return lambda *args: self.branches ** (-1 / (2 * m - 2)) * self.kernel_init(*args)


class NormActivation(nn.Module):
    """Normalization, then the activation."""

    activation: Callable = functional.relu
    norm: str = "batch"  # as of the branches

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, ..., features] -> the same shape."""
        check_norm(self.norm)
        return self.activation(normalize(x, self.norm, train=train, mask=mask, name="norm"))


class Projection(nn.Module):
    """A shortcut that changes shape by a 1x1 convolution (options B and C of He et al. 2015, section 4.1).

    norm "fixup" puts a learned number before the convolution, and nothing after it.
    """

    features: int
    stride: int = 1
    norm: str = "batch"  # as of the branches
    kernel_init: Callable = initializers.he_normal(mode="fan_out")
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / stride, W / stride, features]."""
        check_norm(self.norm)
        x = Shift(name="shift")(x) if self.norm == "fixup" else x
        x = Conv(self.features, (1, 1), self.stride, 0, kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)
        return x if self.norm == "fixup" else normalize(x, self.norm, train=train, mask=mask, name="norm")


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
        _check_shapes("Add", skip, branch)
        return skip + branch


class SkipInit(nn.Module):
    """skip + alpha * branch with a learned number alpha, which starts at 0: the unit starts as its shortcut.

    De & Smith 2020, "Batch normalization biases residual blocks towards the identity function", for branches without
    normalization; Bachlechner et al. 2020, "ReZero is all you need", for any branch.

    >>> unit, x = Unit(Branch((2, 2), (3, 3), (1, 1), norm="none"), SkipInit()), jnp.ones((1, 4, 4, 2))
    >>> y, variables = unit.init_with_output(jax.random.key(0), x, train=True)
    >>> bool((y == x).all()), variables["params"]["join"]["alpha"].tolist()
    (True, 0.0)
    """

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """Two arrays of one shape -> their weighted sum."""
        _check_shapes("SkipInit", skip, branch)
        return skip + self.param("alpha", initializers.zeros, (), jnp.float32).astype(branch.dtype) * branch


def _check_shapes(join, skip, branch):
    if skip.shape != branch.shape:
        raise InputError(
            f"{join}: the skip has shape {skip.shape}, the branch {branch.shape}; give the unit a shortcut that "
            f"changes the shape as the branch does"
        )


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
        if isinstance(self.branch, Branch):
            check_norm(self.branch.norm, join=type(self.join))
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
