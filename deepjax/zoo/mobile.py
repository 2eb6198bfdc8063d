"""MobileNets: networks of depthwise separable convolutions.

Version 1: Howard et al. 2017 (arXiv 1704.04861), table 1. Version 2: Sandler et al. 2018 (arXiv 1801.04381), table 2.
Version 3: Howard et al. 2019, "Searching for MobileNetV3" (arXiv 1905.02244), tables 1 and 2, in torchvision's form.
"""

from functools import partial

import jax

from deepjax.units import makes_batch_norm, norm_factory
from deepjax.zoo.cards import Card
from deepjax.zoo.inverted import InvertedNetwork, UnitRow, block_names, check, conv_names, round_to_eights
from deepjax.zoo.network import check_option


class MobileNetV2(InvertedNetwork):
    """An `InvertedNetwork` with torchvision's names of version 2."""

    def torch_names(self):
        """See `Network.torch_names`. torchvision has these networks with batch norm."""
        if not makes_batch_norm(self.norm):
            return super().torch_names()
        units = self.unit_paths()
        names = conv_names("stem", "features.0.0", "features.0.1") | {"head": "classifier.1"}
        for i, (unit, features_in, row) in enumerate(units, 1):
            block, step = f"features.{i}.conv", 0
            for part in ("expand", "depthwise"):
                if part == "depthwise" or row.hidden != features_in:
                    names |= conv_names(f"{unit}/branch/{part}", f"{block}.{step}.0", f"{block}.{step}.1")
                    step += 1
            names |= conv_names(f"{unit}/branch/project", f"{block}.{step}", f"{block}.{step + 1}")
        last = f"features.{len(units) + 1}"
        return names | conv_names("final", f"{last}.0", f"{last}.1")


class MobileNetV3(InvertedNetwork):
    """An `InvertedNetwork` with torchvision's names of version 3."""

    def torch_names(self):
        """See `Network.torch_names`. torchvision has these networks with batch norm."""
        if not makes_batch_norm(self.norm):
            return super().torch_names()
        units = self.unit_paths()
        names = conv_names("stem", "features.0.0", "features.0.1")
        for i, unit in enumerate(units, 1):
            names |= block_names(*unit, f"features.{i}.block")
        last = f"features.{len(units) + 1}"
        names |= conv_names("final", f"{last}.0", f"{last}.1")
        return names | {"hidden": "classifier.0", "head": "classifier.3"}


V1 = (((64, 1),), ((128, 2), (128, 1)), ((256, 2), (256, 1)), ((512, 2), *((512, 1),) * 5), ((1024, 2), (1024, 1)))


def mobilenet_v1(num_classes=1000, *, width=1.0, norm="batch", dropout=0.0, scan=True, dtype=None):
    """Make the MobileNet of Howard et al. 2017, table 1: 4,231,976 parameters.

    The last depthwise convolution has stride 1. This follows from its output size in the table and from the layers
    after it; the table's "s2" contradicts both. The paper does not say how kernels start: here with the variance
    2 / fan_out of each convolution, which counts the features of a group.

    Args:
      num_classes: number of logits.
      width: factor of the features (section 3.3): 1, 0.75, 0.5 or 0.25 in the paper. There is no option for the paper's
        resolution multiplier (section 3.4); pass images of another size.
      norm: "batch", "group", "layer" or "instance"; "none": biases instead.
      dropout: probability that an input of the last dense layer is dropped.
      scan: run equal units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1], a width not above 0, no class.
    """
    check("mobilenet_v1", width, num_classes, dropout)
    stem = features_in = max(1, int(32 * width))
    stages = []
    for stage in V1:
        rows = []
        for features, stride in stage:
            rows.append(UnitRow(3, features_in, max(1, int(features * width)), stride, "relu"))
            features_in = rows[-1].features
        stages.append(tuple(rows))
    return InvertedNetwork(
        stem,
        tuple(stages),
        activation="relu",
        skip=False,
        linear=False,
        kernel_init=None,
        scan=scan,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        dtype=dtype,
    )


V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(num_classes=1000, *, width=1.0, norm="batch", dropout=0.2, survival=1.0, scan=True, dtype=None):
    """Make MobileNet v2 of Sandler et al. 2018, table 2: 3,504,872 parameters, as torchvision's `mobilenet_v2`.

    Args:
      num_classes: number of logits.
      width: factor of the features, which are rounded to multiples of 8. The last layer has at least 1,280 features.
      norm: "batch", "group", "layer" or "instance"; "none": biases instead.
      dropout: probability that an input of the last dense layer is dropped.
      survival: survival of stochastic depth, see `InvertedNetwork`. Neither the paper nor torchvision uses it here.
      scan: run equal units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm, a dropout or survival outside [0, 1], a width not above 0, no class.
    """
    check("mobilenet_v2", width, num_classes, dropout, survival=survival)
    stem = features_in = round_to_eights(32 * width)
    stages = []
    for factor, features, depth, stride in V2:  # table 2's t, c, n, s
        rows = []
        for i in range(depth):
            rows.append(UnitRow(3, factor * features_in, round_to_eights(features * width), 1 if i else stride))
            features_in = rows[-1].features
        stages.append(tuple(rows))
    return MobileNetV2(
        stem,
        tuple(stages),
        final=round_to_eights(1280 * max(1.0, width)),
        survival=survival,
        scan=scan,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        dtype=dtype,
    )


V3 = {  # stages of (window, hidden, features, squeeze, activation, stride), and features of the layer before the logits
    "large": (
        (
            ((3, 16, 16, False, "relu", 1),),
            ((3, 64, 24, False, "relu", 2), (3, 72, 24, False, "relu", 1)),
            ((5, 72, 40, True, "relu", 2), *((5, 120, 40, True, "relu", 1),) * 2),
            (
                (3, 240, 80, False, "hard_swish", 2),
                (3, 200, 80, False, "hard_swish", 1),
                *((3, 184, 80, False, "hard_swish", 1),) * 2,
            ),
            ((3, 480, 112, True, "hard_swish", 1), (3, 672, 112, True, "hard_swish", 1)),
            ((5, 672, 160, True, "hard_swish", 2), *((5, 960, 160, True, "hard_swish", 1),) * 2),
        ),
        1280,
    ),
    "small": (
        (
            ((3, 16, 16, True, "relu", 2),),
            ((3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1)),
            ((5, 96, 40, True, "hard_swish", 2), *((5, 240, 40, True, "hard_swish", 1),) * 2),
            ((5, 120, 48, True, "hard_swish", 1), (5, 144, 48, True, "hard_swish", 1)),
            ((5, 288, 96, True, "hard_swish", 2), *((5, 576, 96, True, "hard_swish", 1),) * 2),
        ),
        1024,
    ),
}


def mobilenet_v3(size, num_classes=1000, *, width=1.0, norm="batch", dropout=0.2, survival=1.0, scan=True, dtype=None):
    """Make MobileNet v3 of Howard et al. 2019, tables 1 and 2, in torchvision's form.

    Parameters: 5,483,032 (large), 2,542,856 (small). As in torchvision, every layer but the two dense ones is
    normalized, with an epsilon of 0.001 and a momentum of 0.99, and squeeze-and-excitation has a quarter of the
    features that it gates.

    Args:
      size: "large" or "small".
      num_classes: number of logits.
      width: factor of the features, which are rounded to multiples of 8.
      norm: "batch", "group", "layer" or "instance"; "none": biases instead.
      dropout: probability that an input of the last dense layer is dropped.
      survival: survival of stochastic depth, see `InvertedNetwork`. Neither the paper nor torchvision uses it here.
      scan: run equal units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown size or norm, a dropout or survival outside [0, 1], a width not above 0, no class.
    """
    check_option("mobilenet_v3", "size", size, V3)
    check(f"mobilenet_v3_{size}", width, num_classes, dropout, survival=survival)
    table, hidden = V3[size]

    def to_row(window, hidden, features, squeeze, activation, stride):
        hidden = round_to_eights(hidden * width)
        inside = round_to_eights(hidden // 4) if squeeze else 0
        return UnitRow(window, hidden, round_to_eights(features * width), stride, activation, inside)

    stages = tuple(tuple(to_row(*row) for row in stage) for stage in table)
    return MobileNetV3(
        round_to_eights(16 * width),
        stages,
        final=6 * stages[-1][-1].features,
        hidden=round_to_eights(hidden * width),
        activation="hard_swish",
        gate=jax.nn.hard_sigmoid,
        survival=survival,
        scan=scan,
        num_classes=num_classes,
        norm=norm_factory(norm, epsilon=1e-3, momentum=0.99),
        dropout=dropout,
        dtype=dtype,
    )


MODELS = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": partial(mobilenet_v3, "large"),
    "mobilenet_v3_small": partial(mobilenet_v3, "small"),
}
CARDS = {name: Card() for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")}
