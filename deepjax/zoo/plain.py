"""Plain networks: the residual networks' twins without skips (He et al. 2015, section 4), and the perceptron."""

from collections.abc import Callable
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError, choices
from deepjax.layers import Dropout
from deepjax.units import Plain, normalize, stack
from deepjax.zoo.residual import cifar, imagenet

ACTIVATIONS = ("relu", "leaky_relu", "elu", "selu", "softplus", "sigmoid", "tanh", "lecun_tanh")
INITS = ("he", "xavier", "lecun", "gaussian")
SCALE = 0.01


class DenseUnit(nn.Module):
    """dropout(activation(norm(Dense(x)))), with the number of features kept."""

    activation: Callable = functional.relu
    kernel_init: Callable = initializers.he_normal()
    norm: str = "none"  # "none": Dense has a bias; "batch"
    dropout: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, features] -> [batch, features]."""
        bias = self.norm == "none"
        dense = nn.Dense(x.shape[-1], use_bias=bias, kernel_init=self.kernel_init, dtype=self.dtype, name="dense")
        x = self.activation(normalize(dense(x), self.norm, train=train, mask=mask, name="norm"))
        return Dropout(self.dropout)(x, train=train)


class MLP(nn.Module):
    """Flatten, `depth` dense layers, of which the last gives the logits."""

    depth: int
    width: int
    num_classes: int
    activation: Callable = functional.relu
    kernel_init: Callable = initializers.he_normal()
    head_init: Callable = initializers.lecun_normal()
    norm: str = "none"
    dropout: float = 0.0
    scan: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> logits [batch, num_classes]."""
        x = x.reshape(x.shape[0], -1)
        if self.depth > 1:
            bias = self.norm == "none"
            first = nn.Dense(self.width, use_bias=bias, kernel_init=self.kernel_init, dtype=self.dtype, name="first")
            x = self.activation(normalize(first(x), self.norm, train=train, mask=mask, name="first_norm"))
            x = Dropout(self.dropout)(x, train=train)
        if self.depth > 2:
            unit = DenseUnit(self.activation, self.kernel_init, self.norm, self.dropout, self.dtype)
            x = stack(unit, self.depth - 2, scan=self.scan, name="hidden")(x, train=train, mask=mask)
        return nn.Dense(self.num_classes, kernel_init=self.head_init, dtype=self.dtype, name="head")(x)


def mlp(
    depth=3,
    num_classes=10,
    *,
    width=256,
    init="he",
    scale=SCALE,
    norm="none",
    activation="relu",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """A multilayer perceptron of `depth` dense layers, for inputs of any shape. Depth 1 is the linear classifier.

    Args:
      depth: dense layers, of which the last gives the logits.
      num_classes: logits.
      width: features of every layer but the last.
      init: of the kernels: "he" (and LeCun's for the logits, which no ReLU follows), "xavier", "lecun", or "gaussian"
        of standard deviation `scale`, whatever the width. All normal.
      scale: of init "gaussian".
      norm: "batch": batch normalization between a layer and its activation, which makes the layer's bias needless.
      activation: after every layer but the last, one of `ACTIVATIONS`.
      dropout: the probability to drop an activation, after every layer but the last.
      scan: equal layers as one scan; False unrolls them.
      dtype: of the computation.

    Raises:
      InputError: a depth or width below 1, an unknown init, norm or activation, a dropout outside [0, 1], a scale that
        is not positive, and options that would do nothing.
    """
    if depth < 1 or width < 1 or num_classes < 1:
        raise InputError(f"mlp: depth {depth}, width {width} and num_classes {num_classes} must be at least 1")
    check_option("mlp", "init", init, INITS)
    check_option("mlp", "norm", norm, ("none", "batch"))
    check_option("mlp", "activation", activation, ACTIVATIONS)
    check_rate("mlp", "dropout", dropout)
    if scale != SCALE and init != "gaussian":
        raise InputError(f"mlp: scale {scale} belongs to init gaussian, not {init}; leave it out")
    if depth == 1 and (norm, activation, dropout) != ("none", "relu", 0):
        raise InputError(
            f"mlp: depth 1 has no hidden layer for norm {norm}, activation {activation} and dropout {dropout}; leave "
            f"them out, or make depth at least 2"
        )
    return MLP(
        depth,
        width,
        num_classes,
        activation=getattr(functional, activation),
        kernel_init=_kernel_init(init, scale),
        head_init=_kernel_init("lecun" if init == "he" else init, scale),
        norm=norm,
        dropout=dropout,
        scan=scan,
        dtype=dtype,
    )


@cache  # so that equal networks are equal
def _kernel_init(init, scale):
    return {
        "he": initializers.he_normal,
        "xavier": initializers.xavier_normal,
        "lecun": initializers.lecun_normal,
        "gaussian": partial(initializers.gaussian, scale),
    }[init]()


def check_option(network, option, value, valid):
    """Raises InputError for a value that is not one of the valid ones."""
    if value not in valid:
        raise InputError(f"{network}: {option} {value!r} is unknown; {choices(str(value), valid)}")


def check_rate(network, option, value):
    """Raises InputError for a probability outside [0, 1]."""
    if not 0 <= value <= 1:
        raise InputError(f"{network}: {option} {value} is a probability; it must be in [0, 1]")


cifar_plain = partial(cifar, join=Plain, skip_init=False)
plain = partial(imagenet, join=Plain, skip_init=False, bottleneck=False)

MODELS = {
    "mlp": mlp,
    "cifar_plain": cifar_plain,
    **{f"cifar_plain{depth}": partial(cifar_plain, depth) for depth in (20, 32, 44, 56, 110, 1202)},
    "plain18": partial(plain, (2, 2, 2, 2)),
    "plain34": partial(plain, (3, 4, 6, 3)),
}
