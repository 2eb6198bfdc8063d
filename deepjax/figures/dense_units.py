"""Residual and plain networks of dense units, small enough to train many of them."""

import flax.linen as nn
import jax.numpy as jnp
from jax.lax import stop_gradient

from deepjax import initializers
from deepjax.functional import relu
from deepjax.layers import BatchNorm, Dense


class DenseBranch(nn.Module):
    """Norm, ReLU and a dense layer, twice: the branch of a pre-activation unit (He et al. 2016, figure 1b)."""

    width: int

    @nn.compact
    def __call__(self, x, *, train: bool):
        """[batch, width] -> [batch, width]."""
        for i in (1, 2):
            x = relu(BatchNorm(name=f"norm{i}")(x, train=train))
            x = Dense(self.width, use_bias=False, kernel_init=initializers.he_normal(), name=f"dense{i}")(x)
        return x


class DenseUnits(nn.Module):
    """A dense layer, `units` equal units, norm, ReLU and the logits: 2 units + 2 layers with weights.

    A residual unit is x + gate f(x), its plain twin gate f(x) + (1 - gate) x. So a unit whose gate is 0 is deleted: the
    input of its branch is passed on. With `on_path`, the gradient of a residual network takes one path: through the
    branch of the units that are on it, through the skip of the others. The units' variables are stacked along a leading
    axis.
    """

    units: int
    width: int = 32
    residual: bool = True
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, *, train: bool, gates=None, on_path=None):
        """x [batch, ...], gates [units] or None for 1, on_path bool [units] or None -> logits [batch, num_classes]."""

        def step(branch, x, each):
            gate, on = each
            skip, y = (1.0 if self.residual else 1 - gate) * x, gate * branch(x, train=train)
            if on is not None:
                skip, y = jnp.where(on, stop_gradient(skip), skip), jnp.where(on, y, stop_gradient(y))
            return skip + y, None

        gates = jnp.ones(self.units) if gates is None else gates
        x = Dense(self.width, name="first")(x.reshape(len(x), -1))
        scan = nn.scan(step, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True})
        x, _ = scan(DenseBranch(self.width, name="stack"), x, (gates, on_path))
        return Dense(self.num_classes, name="head")(relu(BatchNorm(name="norm")(x, train=train)))
