"""Xception: a residual network of separable convolutions.

Chollet 2017, "Xception: deep learning with depthwise separable convolutions" (arXiv 1610.02357), figure 5.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from deepjax import functional
from deepjax.units import Add, ConvNorm, Unit, norm_factory, stack
from deepjax.zoo.inverted import check
from deepjax.zoo.network import Network, check_at_least_one


class Separable(nn.Module):
    """3x3 separable convolution and normalization. Nothing is between its parts `depthwise` and `pointwise`."""

    features: int
    conv: Callable  # `ConvNorm` with the network's options

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H, W, features]."""
        each = {"groups": x.shape[-1], "norm": None, "use_bias": False}
        x = self.conv(x.shape[-1], 3, activation=None, **each, name="depthwise")(x, train=train, mask=mask)
        return self.conv(self.features, 1, activation=None, name="pointwise")(x, train=train, mask=mask)


class SeparableBranch(nn.Module):
    """Alternate ReLU and separable convolution. With `pool`, a 3x3 max pool of stride 2 follows."""

    features: tuple[int, ...]
    conv: Callable
    pool: bool = True
    activated: bool = False  # x has already passed a ReLU: leave the first one out

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H', W', features[-1]], with pool H' = ceil(H / 2), else H."""
        for i, features in enumerate(self.features):
            if i or not self.activated:
                x = functional.relu(x)
            x = Separable(features, self.conv, name=f"conv{i + 1}")(x, train=train, mask=mask)
        return halve(x) if self.pool else x


def halve(x):
    """Return x max-pooled (3x3, stride 2) to half the size, rounded up. An even side is padded on its high end."""
    return functional.max_pool(x, 3, stride=2, padding=tuple(side % 2 for side in x.shape[1:3]), ceil=True)


def halving_unit(branch, name):
    """Return the unit of a branch and a shortcut by a 1x1 convolution of stride 2 with its norm."""
    return Unit(
        branch, Add(parent=None), branch.conv(branch.features[-1], 1, 2, activation=None, parent=None), name=name
    )


class Xception(Network):
    """Entry, middle and exit flow, global average pool, linear head.

    The middle flow's equal units are a scan.
    """

    stem: tuple[int, ...] = (32, 64)
    entry: tuple[int, ...] = (128, 256, 728)
    middle: int = 8  # units
    exit: tuple[int, ...] = (1024, 1536, 2048)
    scan: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the maps are stem, entry1, ..., middle, exit, final."""
        self.check_images(x)
        conv = partial(
            ConvNorm,
            norm=self.norm,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )
        for i, features in enumerate(self.stem):
            x = conv(features, 3, 1 if i else 2, "VALID", name=f"stem{i + 1}")(x, train=train, mask=mask)
        maps = {"stem": x}
        for i, features in enumerate(self.entry, 1):
            branch = SeparableBranch((features, features), conv, activated=i == 1, parent=None)
            x = maps[f"entry{i}"] = halving_unit(branch, f"entry{i}")(x, train=train, mask=mask)
        branch = SeparableBranch((x.shape[-1],) * 3, conv, pool=False, parent=None)
        unit = Unit(branch, Add(parent=None), parent=None)
        units = stack(unit, self.middle, scan=self.scan, remat=self.remat, name="middle")
        x = maps["middle"] = units(x, train=train, mask=mask)
        branch = SeparableBranch((x.shape[-1], self.exit[0]), conv, parent=None)
        x = maps["exit"] = halving_unit(branch, "exit")(x, train=train, mask=mask)
        for i, features in enumerate(self.exit[1:], 1):
            x = functional.relu(Separable(features, conv, name=f"final{i}")(x, train=train, mask=mask))
        maps["final"] = x
        if self.features_only:
            return maps
        return self.classify(functional.global_avg_pool(x), train=train)


def xception(num_classes=1000, *, width=1.0, middle=8, norm="batch", dropout=0.5, scan=True, dtype=None):
    """Make Xception of Chollet 2017, figure 5, with Keras' epsilon and momentum: 22,855,952 parameters.

    The paper does not say how kernels start: here with the variance 2 / fan_out of each convolution, which counts the
    features of a group.

    Args:
      num_classes: number of logits.
      width: factor of the features.
      middle: number of units of the middle flow.
      norm: "batch", "group", "layer" or "instance"; "none": biases instead.
      dropout: probability that an input of the last dense layer is dropped (section 4.4.3).
      scan: run the middle flow's units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1], a width not above 0, no unit or no class. When called:
        images smaller than 7x7 pixels.
    """
    check("xception", width, num_classes, dropout)
    check_at_least_one("xception", middle=middle)

    def scaled(*features):
        return tuple(max(1, int(f * width)) for f in features)

    return Xception(
        stem=scaled(32, 64),
        entry=scaled(128, 256, 728),
        middle=middle,
        exit=scaled(1024, 1536, 2048),
        kernel_init=None,
        scan=scan,
        num_classes=num_classes,
        norm=norm_factory(norm, epsilon=1e-3, momentum=0.99),  # Keras' numbers
        dropout=dropout,
        dtype=dtype,
        usual_input=(299, 299, 3),
        min_size=7,
    )


MODELS = {"xception": xception}
