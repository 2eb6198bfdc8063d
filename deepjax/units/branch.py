"""Branches, which are the part of a unit that learns, and shortcuts, which are parallel to them."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError, choices
from deepjax.functional.arrays import spread
from deepjax.layers import Conv, Dropout, ShakeShake
from deepjax.units.convolution import ORDERS
from deepjax.units.norms import NORMS, Norm, Shift, check_branch_init, normalize

DROPS = ("inputs", "outputs", "last")


class Branch(nn.Module):
    """A chain of convolutions, each with its normalization.

    `order` is "post" for conv, norm, activation, ..., conv, norm (He et al. 2015, figure 2), "last" for conv,
    activation, norm, ..., conv, norm, or "pre" for norm, activation, conv, ..., norm, activation, conv (He et al. 2016,
    figure 1b). With `activated=True` the input has passed a norm and an activation already, and the first pair is left
    out.

    `branch_init` sets the initial values:

      - "default": `kernel_init` for all kernels; the norm's factory for scales.
      - "zero_scale": the scale of the last norm starts at 0 (Goyal et al. 2017, section 5.1). Needs order "post".
      - "fixup": Fixup initialization (Zhang et al. 2019, section 3). Needs norm None. A learned number is added before
        each convolution (`shift1`, ...), and another one replaces each norm (`norm1`, ...). The last kernel starts at
        0, and a learned factor (`scale`) follows it. The other kernels are those of `kernel_init` times
        branches^(-1 / (2m - 2)), where m is the number of convolutions in the branch.

    The fourth value, "skip_init", is not an option of Branch but the join `SkipInit`.

    Convolutions have biases if `norm` is None and `branch_init` is not "fixup", and where an activation separates them
    from their norm.

    `dropout` is the probability that a value is dropped. `drops` selects the position of dropout: at the input of each
    convolution except the first ("inputs", Zagoruyko & Komodakis 2016, section 2.4), at the output of each convolution
    ("outputs", Huang et al. 2017, section 4.2), or at the output of the last one ("last").

    >>> branch = Branch((8, 8), (3, 3), (1, 1), norm=None, branch_init="fixup", branches=54)
    >>> x = jnp.ones((1, 4, 4, 8))
    >>> sorted(jax.eval_shape(lambda: branch.init(jax.random.key(0), x, train=True))["params"])
    ['conv1', 'conv2', 'norm1', 'norm2', 'scale', 'shift1', 'shift2']
    """

    features: Sequence[int]  # of each convolution
    windows: Sequence[int]  # of each convolution, in pixels
    strides: Sequence[int]
    order: str = "post"  # one of `ORDERS`
    activated: bool = False
    activation: Callable = functional.relu
    kernel_init: Callable | None = None  # None: he_normal(mode="fan_out") with the groups of each convolution
    dtype: jnp.dtype | None = None
    norm: Norm | None = NORMS["batch"]  # factory of each convolution's normalization
    branch_init: str = "default"  # "default", "zero_scale" or "fixup"
    branches: int = 0  # residual branches in the whole network; used by branch_init "fixup"
    groups: Sequence[int] | None = None  # of each convolution; None: 1
    dropout: float = 0.0
    drops: str = "inputs"  # one of DROPS

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / strides, W / strides, features[-1]]."""
        self._check()
        last, drop, fixup = len(self.features) - 1, Dropout(self.dropout, name="dropout"), self.branch_init == "fixup"
        for i in range(last + 1):
            norm = partial(normalize, norm=Shift if fixup else self.norm, train=train, mask=mask, name=f"norm{i + 1}")
            if self.order == "pre" and (i > 0 or not self.activated):
                x = self.activation(norm(x))
            if self.drops == "inputs" and i > 0:
                x = drop(x, train=train)
            if fixup:
                x = Shift(name=f"shift{i + 1}")(x)
            x = self._conv(i)(x)
            if self.drops == "outputs" or (self.drops == "last" and i == last):
                x = drop(x, train=train)
            if fixup and i == last:
                x = x * spread(self.param("scale", initializers.ones, (), jnp.float32), x)
            if self.order == "last" and i < last:
                x = self.activation(x)
            if self.order in ("post", "last"):
                zero = self.branch_init == "zero_scale" and i == last
                x = norm(x, scale_init=initializers.zeros if zero else None)
                x = self.activation(x) if i < last and self.order == "post" else x
        return x

    def _conv(self, i):
        window = self.windows[i]
        return Conv(
            self.features[i],
            (window, window),
            self.strides[i],
            window // 2,
            groups=self._groups(i),
            use_bias=self._use_bias(i),
            kernel_init=self._kernel_init(i),
            dtype=self.dtype,
            name=f"conv{i + 1}",
        )

    def _use_bias(self, i):
        if self.norm is None:
            return self.branch_init != "fixup"
        return self.order == "last" and i < len(self.features) - 1

    def _check(self):
        check_branch_init(self.branch_init, norm=self.norm, order=self.order)
        if self.branch_init == "skip_init":
            raise InputError("Branch: branch_init skip_init is the join SkipInit; use Unit(branch, SkipInit())")
        if self.drops not in DROPS:
            raise InputError(f"Branch: drops {self.drops!r} is unknown; {choices(str(self.drops), DROPS)}")
        if self.branch_init == "fixup" and self.branches < 1:
            raise InputError(f"Branch: branches {self.branches} must be the network's number of branches for fixup")
        if self.order not in ORDERS:
            raise InputError(f"Branch: order {self.order!r} is unknown; {choices(self.order, ORDERS)}")
        lengths = {len(each) for each in (self.features, self.windows, self.strides, self.groups or self.features)}
        if len(lengths) > 1 or any(w % 2 == 0 for w in self.windows):
            raise InputError(
                f"Branch: features {self.features}, windows {self.windows}, strides {self.strides} and groups "
                f"{self.groups} must have equal lengths, and the windows must be odd"
            )

    def _groups(self, i):
        return self.groups[i] if self.groups else 1

    def _kernel_init(self, i):
        kernel_init = self.kernel_init or initializers.he_normal(mode="fan_out", groups=self._groups(i))
        if self.branch_init != "fixup":
            return kernel_init
        m = len(self.features)
        if i == m - 1:
            return initializers.zeros
        return lambda *args: self.branches ** (-1 / (2 * m - 2)) * kernel_init(*args)


class Shake(nn.Module):
    """Mix the outputs of two equal branches with random weights in training: shake-shake (Gastaldi 2017).

    `forward`, `backward` and `per` are arguments of `functional.shake_shake`.

    >>> shake = Shake(*(Branch((2, 2), (3, 3), (1, 1)) for _ in range(2)))
    >>> x = jnp.ones((1, 4, 4, 2))
    >>> y, variables = jax.eval_shape(lambda: shake.init_with_output(jax.random.key(0), x, train=False))
    >>> y.shape, sorted(variables["params"])
    ((1, 4, 4, 2), ['a', 'b'])
    """

    a: nn.Module
    b: nn.Module
    activation: Callable | None = None  # applied to the input of both; None: the identity
    forward: str = "shake"
    backward: str = "shake"
    per: str = "image"

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, ...] -> the shape of the branches' outputs."""
        x = x if self.activation is None else self.activation(x)
        a, b = (branch(x, train=train, mask=mask) for branch in (self.a, self.b))
        return ShakeShake(self.forward, self.backward, self.per, name="shake")(a, b, train=train)


class Projection(nn.Module):
    """A shortcut that changes shape by a 1x1 convolution (options B and C of He et al. 2015, section 4.1).

    `branch_init` "fixup" adds a learned number before the convolution, and nothing after it.
    """

    features: int
    stride: int = 1
    norm: Norm | None = NORMS["batch"]  # factory, as of the branches
    branch_init: str = "default"  # "default" or "fixup", as of the branches
    kernel_init: Callable = initializers.he_normal(mode="fan_out")
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / stride, W / stride, features]."""
        x = Shift(name="shift")(x) if self.branch_init == "fixup" else x
        x = Conv(self.features, (1, 1), self.stride, 0, kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)
        return normalize(x, self.norm, train=train, mask=mask, name="norm")


class ZeroPad(nn.Module):
    """A shortcut without parameters: take every stride-th pixel, append zero features (He et al. 2015, option A)."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / stride, W / stride, features]."""
        more = self.features - x.shape[-1]
        if more < 0:
            raise InputError(
                f"a zero-padding shortcut cannot go from {x.shape[-1]} to {self.features} features; use shortcut B"
            )
        return jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, more)))
