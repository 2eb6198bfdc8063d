"""Plain networks: the residual networks' twins without skips (He et al. 2015, section 4), and the perceptron."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError
from deepjax.units import Plain, stack
from deepjax.zoo.residual import cifar, imagenet


class DenseUnit(nn.Module):
    """activation(Dense(x)), with the number of features kept."""

    activation: Callable = functional.relu
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, features] -> [batch, features]."""
        dense = nn.Dense(x.shape[-1], kernel_init=initializers.he_normal(), dtype=self.dtype, name="dense")
        return self.activation(dense(x))


class MLP(nn.Module):
    """Flatten, `depth` dense layers, of which the last gives the logits."""

    depth: int
    width: int
    num_classes: int
    scan: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> logits [batch, num_classes]."""
        x = x.reshape(x.shape[0], -1)
        if self.depth > 1:
            first = nn.Dense(self.width, kernel_init=initializers.he_normal(), dtype=self.dtype, name="first")
            x = functional.relu(first(x))
        if self.depth > 2:
            hidden = stack(DenseUnit(dtype=self.dtype), self.depth - 2, scan=self.scan, name="hidden")
            x = hidden(x, train=train, mask=mask)
        return nn.Dense(self.num_classes, kernel_init=initializers.lecun_normal(), dtype=self.dtype, name="head")(x)


def mlp(depth=3, num_classes=10, *, width=256, scan=True, dtype=None):
    """A multilayer perceptron of `depth` dense layers with ReLU between, for inputs of any shape.

    Raises InputError for a depth or width below 1.
    """
    if depth < 1 or width < 1 or num_classes < 1:
        raise InputError(f"mlp: depth {depth}, width {width} and num_classes {num_classes} must be at least 1")
    return MLP(depth, width, num_classes, scan=scan, dtype=dtype)


cifar_plain = partial(cifar, join=Plain)
plain = partial(imagenet, join=Plain, bottleneck=False)

MODELS = {
    "mlp": mlp,
    "cifar_plain": cifar_plain,
    **{f"cifar_plain{depth}": partial(cifar_plain, depth) for depth in (20, 32, 44, 56, 110, 1202)},
    "plain18": partial(plain, (2, 2, 2, 2)),
    "plain34": partial(plain, (3, 4, 6, 3)),
}
