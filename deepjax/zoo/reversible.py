"""Reversible residual networks: Gomez et al. 2017, "The reversible residual network" (arXiv 1707.04585), table 1.

The input of a unit can be computed from its output. With remat="reversible", a stage stores only its output, whatever
its depth.
"""

import math
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax

from deepjax import functional
from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32
from deepjax.layers import Conv
from deepjax.units import Branch, NormActivation, Reversible, ZeroPad, norm_factory, stack
from deepjax.zoo.network import Network, check_at_least_one, check_rate
from deepjax.zoo.residual import BASIC, units_per_stage


class RevNet(Network):
    """Stem, stages of reversible units, norm and ReLU, global average pool, linear head.

    The branches have order "pre". A stage that changes the shape starts with a unit that changes it in both streams;
    this unit is not reversible.
    """

    depths: Sequence[int]  # units of each stage
    features: Sequence[int]  # of each stage; each of the two streams has half of them
    windows: Sequence[int] = BASIC  # of each convolution in a branch
    scan: bool = True

    reversible = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stem, stage1, stage2, ..."""
        self.check_images(x)
        conv = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        x = Conv(self.features[0], (3, 3), 1, 1, name="stem_conv", **conv)(x)
        # Inputs cannot be recomputed from streams of 16 bits, even if the branches have a higher precision.
        x = at_least_float32(x)
        maps = {"stem": x}
        for i, depth in enumerate(self.depths):
            if i > 0:
                unit = self._unit(i, stride=2, shortcut=ZeroPad(self.features[i] // 2, 2, parent=None))
                x, depth = unit.copy(parent=self, name=f"stage{i + 1}_first")(x, train=train, mask=mask), depth - 1
            if depth:
                units = stack(self._unit(i), depth, scan=self.scan, remat=self.remat, name=f"stage{i + 1}_rest")
                x = units(x, train=train, mask=mask)
            maps[f"stage{i + 1}"] = x
        if self.features_only:
            return maps
        x = NormActivation(norm=self.norm, name="final")(x, train=train, mask=mask)
        return self.classify(functional.global_avg_pool(x), train=train)

    def _unit(self, stage, stride=1, shortcut=None):
        def branch(stride):
            return Branch(
                (self.features[stage] // 2,) * len(self.windows),
                self.windows,
                (stride,) + (1,) * (len(self.windows) - 1),
                "pre",
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                norm=self.norm,
                parent=None,
            )

        return Reversible(branch(stride), branch(1), shortcut, parent=None)


def cifar_revnet(depth=110, num_classes=10, *, width=32, last=4.0, norm="batch", dropout=0.0, scan=True, dtype=None):
    """Make the CIFAR network of Gomez et al. 2017, table 1: three stages of n units of four 3x3 convolutions.

    Args:
      depth: convolutional and fully connected layers, 12n + 2: 38 and 110 in the paper.
      num_classes: number of logits.
      width: features of the first stage, half of them in each stream. The second stage has twice as many.
      last: features of the last stage, as a multiple of `width`.
      norm: normalization before each convolution: a name in `units.NORMS` but "none", or a factory.
      dropout: probability that an input of the head is dropped.
      scan: run equal units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: a depth that is not 12n + 2; numbers of features that are odd, below 2, or decrease from stage to
        stage; an unknown norm, or none; a dropout outside [0, 1].
    """
    units = units_per_stage(depth, 12)
    check_at_least_one("cifar_revnet", num_classes=num_classes)
    check_rate("cifar_revnet", dropout=dropout)
    if norm_factory(norm) is None:
        raise InputError("cifar_revnet: norm none lets rounding errors grow when units are inverted; set norm batch")
    if width % 2 or width < 2 or not 2 <= last < math.inf or last * width % 2:
        raise InputError(
            f"cifar_revnet: width {width} and last {last:g} make stages of {width}, {2 * width} and {last * width:g} "
            f"features; they must be even and must not decrease, as 32, 64 and 112"
        )
    features = (width, 2 * width, int(last * width))
    return RevNet(
        depths=(units,) * 3,
        features=features,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        scan=scan,
        dtype=dtype,
        usual_input=(32, 32, 3),
    )


MODELS = {
    "cifar_revnet": cifar_revnet,
    "cifar_revnet38": partial(cifar_revnet, 38, last=3.5),
    "cifar_revnet110": partial(cifar_revnet, 110, last=4.0),
}
