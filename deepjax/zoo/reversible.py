"""Reversible residual networks: Gomez et al. 2017, "The reversible residual network" (arXiv 1707.04585), table 1.

Their units can be undone, so that with remat="reversible" a stage keeps nothing but its result, at any depth.
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
    """Stem, stages of reversible units of pre-activation branches, norm and ReLU, global average pool, linear head.

    A stage that changes the shape starts with a unit that does so in both streams, and cannot be undone.
    """

    depths: Sequence[int]  # units of each stage
    features: Sequence[int]  # of each stage, in two streams of a half each
    windows: Sequence[int] = BASIC  # of each convolution in a branch
    scan: bool = True

    reversible = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stem, stage1, stage2, ..."""
        self.check_images(x)
        conv = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        x = Conv(self.features[0], (3, 3), 1, 1, name="stem_conv", **conv)(x)
        # Streams of 16 bits could not be found again, whatever the branches compute in.
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
    """The CIFAR network of Gomez et al. 2017, table 1: depth 12n + 2, three stages of n units of four 3x3 convolutions.

    Args:
      depth: convolutional and fully connected layers: 38, 110, or any other 12n + 2.
      num_classes: logits.
      width: features of the first stage, a half in each stream; the second has twice as many.
      last: times `width`: features of the last stage.
      norm: before each convolution: a word of `units.NORMS` but "none", or a factory.
      dropout: the probability to drop what enters the head.
      scan: equal units as one scan; False unrolls them.
      dtype: of the computation.

    Raises:
      InputError: a depth that is not 12n + 2, features that are odd, below 2 or fewer than the stage before has, an
        unknown norm, a dropout outside [0, 1].
    """
    units = units_per_stage(depth, 12)
    check_at_least_one("cifar_revnet", num_classes=num_classes)
    check_rate("cifar_revnet", dropout=dropout)
    if norm_factory(norm) is None:
        raise InputError("cifar_revnet: norm none lets rounding errors grow when units are inverted; set norm batch")
    if width % 2 or width < 2 or not 2 <= last < math.inf or last * width % 2:
        raise InputError(
            f"cifar_revnet: width {width} and last {last:g} make stages of {width}, {2 * width} and {last * width:g} "
            f"features; they must be even and not fall, as 32, 64 and 112"
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
