"""Highway networks: Srivastava, Greff & Schmidhuber 2015, "Training very deep networks" (arXiv 1507.06228).

Every layer computes T H + (1 - T) x, where T is a learned gate (`units.Gate`).
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from deepjax import functional
from deepjax.layers import Dense
from deepjax.units import ConvNorm, Gate, Unit, normalize, stack
from deepjax.zoo.network import INITS, Network, check_at_least_one, check_option, check_rate
from deepjax.zoo.plain import ACTIVATIONS, DenseUnit
from deepjax.zoo.residual import units_per_stage


class Highway(Network):
    """Flatten, a dense layer, `depth` - 2 highway layers of the same width, the logits."""

    depth: int
    width: int
    bias: float  # of the gates at the start
    activation: Callable = functional.relu
    scan: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> see `Network`; its maps are vectors, `first` and `hidden`."""
        x, maps = x.reshape(x.shape[0], -1), {}
        dense = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        first = Dense(self.width, use_bias=self.norm is None, name="first", **dense)
        x = maps["first"] = self.activation(normalize(first(x), self.norm, train=train, mask=mask, name="first_norm"))
        if self.depth > 2:
            branch = DenseUnit(self.activation, norm=self.norm, parent=None, **dense)
            unit = Unit(branch, Gate(self.bias, parent=None, **dense))
            units = stack(unit, self.depth - 2, scan=self.scan, remat=self.remat, name="hidden")
            x = maps["hidden"] = units(x, train=train, mask=mask)
        return maps if self.features_only else self.classify(x, train=train)


class ConvHighway(Network):
    """Stages of 3x3 convolutions, each ended by 2x2 max pooling, then the logits of the flattened maps.

    A stage that changes the number of features starts with a plain layer. All others are highway layers.
    """

    depths: Sequence[int]  # layers of each stage
    features: Sequence[int]  # of each stage
    bias: float
    activation: Callable = functional.relu
    scan: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stage1, stage2, ..."""
        self.check_images(x)
        maps, conv = {}, {"kernel_init": self.kernel_init, "dtype": self.dtype}
        for i, (depth, features) in enumerate(zip(self.depths, self.features, strict=True), 1):
            plain = i == 1 or features != x.shape[-1]
            brick = {"norm": self.norm, "activation": self.activation, **conv}
            if plain:
                x = ConvNorm(features, name=f"stage{i}_first", **brick)(x, train=train, mask=mask)
            if depth > plain:
                unit = Unit(ConvNorm(features, parent=None, **brick), Gate(self.bias, parent=None, **conv))
                units = stack(unit, depth - plain, scan=self.scan, remat=self.remat, name=f"stage{i}_rest")
                x = units(x, train=train, mask=mask)
            x = maps[f"stage{i}"] = functional.max_pool(x, 2)
        return maps if self.features_only else self.classify(x.reshape(x.shape[0], -1), train=train)


def highway(
    depth=10,
    num_classes=10,
    *,
    width=50,
    bias=None,
    activation="relu",
    norm="none",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """Make the network of dense layers of Srivastava et al. 2015, section 3.1, for inputs of any shape.

    Args:
      depth: dense layers: a plain one, depth - 2 with gates, and the logits; 10, 20, 50 and 100 in the paper.
      num_classes: number of logits.
      width: features of every layer except the last; 50 in the paper.
      bias: initial bias of the gates. The lower it is, the more of its input a layer passes on. The paper searches
        between -1 and -10; deep networks need a low one. None: -log(depth), at which all layers together pass on about
        1/e of the first one's output, at any depth: -2.3 for 10 layers, -3.9 for 50, -4.6 for 100.
      activation: activation of the branches, one of `plain.ACTIVATIONS`.
      norm: normalization before the activation of a layer: a name in `units.NORMS`, or a module factory. With "none",
        layers have biases.
      dropout: probability that an input of the last layer is dropped.
      scan: run equal layers as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: a depth below 2, a width below 1, an unknown activation or norm, a dropout outside [0, 1].
    """
    check_at_least_one("highway", width=width, num_classes=num_classes, hidden_layers=depth - 1)
    return Highway(
        depth=depth,
        width=width,
        usual_input=(28, 28, 1),
        **_options("highway", num_classes, depth, bias, activation, norm, dropout, scan, dtype),
    )


def mnist_highway(
    depth=10,
    num_classes=10,
    *,
    width=16,
    bias=None,
    activation="relu",
    norm="none",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """Make the convolutional network for MNIST of Srivastava et al. 2015, table 1.

    With 10 layers it has 39 thousand parameters at width 16 and 151 thousand at width 32, as in the paper.

    Args:
      depth: layers with kernels, 3n + 1. The first is plain, the last gives the logits.
      num_classes: number of logits.
      width: features of every convolution; 16 and 32 in the paper.
      bias, activation, norm, dropout, scan, dtype: see `highway`.

    Raises:
      InputError: a depth that is not 3n + 1; see also `highway`. When called: images smaller than 8x8 pixels.
    """
    units = units_per_stage(depth, 3, others=1)
    check_at_least_one("mnist_highway", width=width, num_classes=num_classes)
    return ConvHighway(
        depths=(units,) * 3,
        features=(width,) * 3,
        usual_input=(28, 28, 1),
        min_size=8,
        **_options("mnist_highway", num_classes, depth, bias, activation, norm, dropout, scan, dtype),
    )


def cifar_highway(
    depth=19,
    num_classes=10,
    *,
    width=32,
    bias=None,
    activation="relu",
    norm="none",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """Make a convolutional network for CIFAR, whose stages have `width`, 2 `width` and 4 `width` features.

    A plain layer changes the width (Srivastava et al. 2015, section 2.1). Arguments and errors are those of
    `mnist_highway`.
    """
    units = units_per_stage(depth, 3, others=1)
    check_at_least_one("cifar_highway", width=width, num_classes=num_classes)
    return ConvHighway(
        depths=(units,) * 3,
        features=(width, 2 * width, 4 * width),
        usual_input=(32, 32, 3),
        min_size=8,
        **_options("cifar_highway", num_classes, depth, bias, activation, norm, dropout, scan, dtype),
    )


def _options(network, num_classes, depth, bias, activation, norm, dropout, scan, dtype):
    check_option(network, "activation", activation, ACTIVATIONS)
    check_rate(network, dropout=dropout)
    return {
        "num_classes": num_classes,
        "bias": -math.log(depth) if bias is None else float(bias),
        "activation": getattr(functional, activation),
        "norm": norm,
        "dropout": dropout,
        "kernel_init": INITS["he_fan_in"],
        "scan": scan,
        "dtype": dtype,
    }


MODELS = {"highway": highway, "mnist_highway": mnist_highway, "cifar_highway": cifar_highway}
