"""FitNets: thin and deep networks of maxout convolutions, the students of Romero et al. 2015 (arXiv 1412.6550).

The widths are those of the paper's table of architectures for CIFAR. The published code has five pieces in the dense
layer; the paper's numbers of parameters (250 K, 862 K, 2.5 M) are those of two pieces, which are used here.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling

from deepjax import functional
from deepjax.layers import Conv, Maxout
from deepjax.units import normalize
from deepjax.zoo.network import Network, check_at_least_one, check_rate, named

PIECES = 2
HIDDEN = 500  # units of the dense layer
INIT = variance_scaling(functional.gain("maxout", pieces=PIECES), "fan_in", "normal")

WIDTHS = {  # features of the 3x3 convolutions of each stage
    "1": ((16, 16, 16), (32, 32, 32), (48, 48, 64)),
    "2": ((16, 32, 32), (48, 64, 80), (96, 96, 128)),
    "3": ((32, 48, 64, 64), (80, 80, 80, 80), (128, 128, 128)),
    "4": ((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6),
}


class FitNet(Network):
    """Stages of 3x3 maxout convolutions, each followed by max pooling; a dense maxout layer; the logits."""

    widths: tuple[tuple[int, ...], ...]
    hidden: int = HIDDEN

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stage1, stage2, stage3."""
        self.check_images(x)
        maps = {}
        for stage, widths in enumerate(self.widths, 1):
            for i, features in enumerate(widths, 1):
                x = self._maxout(x, features, f"stage{stage}_conv{i}", train, mask)
            last = stage == len(self.widths)
            x = maps[f"stage{stage}"] = x.max((1, 2), keepdims=True) if last else functional.max_pool(x, 2)
        if self.features_only:
            return maps
        hidden = Maxout(self.hidden, PIECES, kernel_init=self.kernel_init, dtype=self.dtype, name="hidden")
        return self.classify(hidden(x.reshape(x.shape[0], -1)), train=train)

    def _maxout(self, x, features, name, train, mask):
        """Return the larger of two 3x3 convolutions of x, for each feature."""
        common = {"use_bias": self.norm is None, "kernel_init": self.kernel_init, "dtype": self.dtype}
        pieces = Conv(PIECES * features, (3, 3), 1, 1, **common, name=name)(x)
        pieces = normalize(pieces, self.norm, train=train, mask=mask, name=f"{name}_norm")
        return functools.reduce(jnp.maximum, jnp.split(pieces, PIECES, -1))


def fitnet(config, num_classes=10, *, norm="none", dropout=0.0, dtype=None):
    """Make a FitNet for images of 32x32 pixels. The last maps are pooled to one pixel.

    Args:
      config: number of the FitNet, a key of `WIDTHS`: "1" and "2" have 11 layers with parameters, "3" has 13, "4" 19.
      num_classes: number of logits.
      norm: normalization of the pieces, before their maximum: a name in `units.NORMS`, or a module factory.
      dropout: probability that an input of the logits is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1]. When called: images smaller than 4x4 pixels.
    """
    check_at_least_one("fitnet", num_classes=num_classes)
    check_rate("fitnet", dropout=dropout)
    return FitNet(
        WIDTHS[config],
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=INIT,
        dtype=dtype,
        usual_input=(32, 32, 3),
        min_size=4,
    )


MODELS = named(fitnet, **{f"fitnet{number}": {"config": number} for number in WIDTHS})
