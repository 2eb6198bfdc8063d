"""The CIFAR residual network in plain Flax, without deepjax: a Python loop over units."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class FlaxUnit(nn.Module):
    """Two 3x3 convolutions and a skip, zeros appended where the shape changes (He et al. 2015, section 4.2)."""

    features: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        """[batch, H, W, features_in] -> [batch, H / stride, W / stride, features]."""
        y = nn.Conv(self.features, (3, 3), self.stride, padding=1, use_bias=False, dtype=self.dtype)(x)
        y = nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(y))
        y = nn.Conv(self.features, (3, 3), padding=1, use_bias=False, dtype=self.dtype)(y)
        y = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(y)
        more = self.features - x.shape[-1]
        return nn.relu(y + jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, more))))


class FlaxResNet(nn.Module):
    """Stem, three stages of equal units, average, head: 6 * units + 2 layers."""

    units: int
    width: int
    classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x [batch, H, W, channels] -> logits [batch, classes]."""
        x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, dtype=self.dtype)(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x))
        for stage in range(3):
            for unit in range(self.units):
                x = FlaxUnit(self.width * 2**stage, 2 if stage > 0 and unit == 0 else 1, self.dtype)(x, train=train)
        return nn.Dense(self.classes, dtype=self.dtype)(x.mean((1, 2)))
