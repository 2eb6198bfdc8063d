"""A convolution with normalization and activation, and squeeze-and-excitation."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError, choices
from deepjax.functional.arrays import spread
from deepjax.layers import Conv
from deepjax.units.norms import NORMS, Norm, normalize

ORDERS = ("post", "last", "pre")


class ConvNorm(nn.Module):
    """Apply a convolution, a normalization and an activation. The submodules are `conv` and `norm`.

    `order` is "post" for conv, norm, activation (Ioffe & Szegedy 2015, section 3.2), "last" for conv, activation, norm,
    or "pre" for norm, activation, conv.

    >>> brick, x = ConvNorm(8, (1, 3), stride=2), jnp.ones((1, 9, 9, 4))
    >>> y, variables = jax.eval_shape(lambda: brick.init_with_output(jax.random.key(0), x, train=True))
    >>> y.shape, sorted(variables["params"])
    ((1, 5, 5, 8), ['conv', 'norm'])
    """

    features: int
    window: int | Sequence[int] = 3  # in pixels; an int for a square
    stride: int | Sequence[int] = 1
    padding: str | int | Sequence | None = None  # as of `functional.conv`; None: half the window on each side
    dilation: int = 1
    groups: int = 1
    norm: Norm | None = NORMS["batch"]  # factory of the normalization
    activation: Callable | None = functional.relu  # None: the identity
    order: str = "post"  # one of `ORDERS`
    use_bias: bool | None = None  # None: if norm is None
    kernel_init: Callable | None = None  # None: that of `layers.Conv`
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H', W', features]."""
        if self.order not in ORDERS:
            raise InputError(f"ConvNorm: order {self.order!r} is unknown; {choices(str(self.order), ORDERS)}")
        steps = {
            "conv": self._conv,
            "norm": lambda x: normalize(x, self.norm, train=train, mask=mask, name="norm"),
            "activation": self.activation or (lambda x: x),
        }
        order = {
            "post": ("conv", "norm", "activation"),
            "last": ("conv", "activation", "norm"),
            "pre": ("norm", "activation", "conv"),
        }
        for step in order[self.order]:
            x = steps[step](x)
        return x

    def _conv(self, x):
        window = (self.window, self.window) if isinstance(self.window, int) else tuple(self.window)
        half = [(size - 1) * self.dilation // 2 for size in window]
        return Conv(
            self.features,
            window,
            self.stride,
            half if self.padding is None else self.padding,
            self.dilation,
            self.groups,
            use_bias=self.norm is None if self.use_bias is None else self.use_bias,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dtype=self.dtype,
            name="conv",
        )(x)


class SqueezeExcite(nn.Module):
    """Multiply each feature by a gate in [0, 1], computed from the means of all features (Hu et al. 2018, section 3).

    The gate is gate(expand(activation(reduce(mean over pixels)))), where `reduce` and `expand` are 1x1 convolutions.

    >>> y, _ = jax.eval_shape(SqueezeExcite(2).init_with_output, jax.random.key(0), jnp.ones((1, 4, 4, 8)))
    >>> y.shape
    (1, 4, 4, 8)
    """

    features: int  # output of `reduce`
    activation: Callable = functional.relu
    gate: Callable = functional.sigmoid
    kernel_init: Callable = initializers.he_normal(mode="fan_out")
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        """[batch, H, W, features] -> the same shape."""

        def pointwise(features, name):
            return Conv(features, (1, 1), use_bias=True, kernel_init=self.kernel_init, dtype=self.dtype, name=name)

        squeezed = x.mean((1, 2), keepdims=True)
        gate = self.gate(
            pointwise(x.shape[-1], "expand")(self.activation(pointwise(self.features, "reduce")(squeezed)))
        )
        return x * spread(gate, x)
