"""EfficientNet: one network, scaled in width, depth and image size together.

Tan & Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks" (arXiv 1905.11946): table 1
for b0, equation 3 for the scaling. The factors of b1 to b7 and the rates of dropout are those of the authors' code.
"""

import math
from functools import partial
from typing import NamedTuple

from deepjax.errors import InputError
from deepjax.units import makes_batch_norm, norm_factory
from deepjax.zoo.cards import Card, Preprocessing
from deepjax.zoo.inverted import InvertedNetwork, UnitRow, block_names, check, conv_names, round_to_eights
from deepjax.zoo.network import check_option

# Table 1: factor of the features inside a unit, window, stride, features, units
TABLE = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNet(InvertedNetwork):
    """An `InvertedNetwork` of seven stages with torchvision's names of EfficientNet."""

    def torch_names(self):
        """See `Network.torch_names`. torchvision has these networks with batch norm."""
        if not makes_batch_norm(self.norm):
            return super().torch_names()
        names = conv_names("stem", "features.0.0", "features.0.1") | {"head": "classifier.1"}
        units = iter(self.unit_paths())
        for stage, rows in enumerate(self.stages, 1):
            for i in range(len(rows)):
                names |= block_names(*next(units), f"features.{stage}.{i}.block")
        last = f"features.{len(self.stages) + 1}"
        return names | conv_names("final", f"{last}.0", f"{last}.1")


class Scaling(NamedTuple):
    """The numbers in which the variants differ."""

    width: float  # of table 1's features
    depth: float  # of table 1's units
    pixels: int  # of the images' sides
    dropout: float
    resize: int  # of torchvision's IMAGENET1K_V1 weights, pixels of the shorter side
    crop: int = 0  # of these, pixels of the crop's sides; 0: `pixels`
    epsilon: float = 1e-5  # of the norms, torchvision's
    momentum: float = 0.9


VARIANTS = {
    "b0": Scaling(1.0, 1.0, 224, 0.2, 256),
    "b1": Scaling(1.0, 1.1, 240, 0.2, 256),
    "b2": Scaling(1.1, 1.2, 260, 0.3, 288, 288),
    "b3": Scaling(1.2, 1.4, 300, 0.3, 320),
    "b4": Scaling(1.4, 1.8, 380, 0.4, 384),
    "b5": Scaling(1.6, 2.2, 456, 0.4, 456, epsilon=1e-3, momentum=0.99),
    "b6": Scaling(1.8, 2.6, 528, 0.5, 528, epsilon=1e-3, momentum=0.99),
    "b7": Scaling(2.0, 3.1, 600, 0.5, 600, epsilon=1e-3, momentum=0.99),
}


def efficientnet(
    variant,
    num_classes=1000,
    *,
    width=1.0,
    depth=1.0,
    norm="batch",
    dropout=None,
    survival=0.8,
    scan=True,
    dtype=None,
):
    """Make an EfficientNet of Tan & Le 2019, in torchvision's form.

    Parameters of b0 to b7: 5,288,548; 7,794,184; 9,109,994; 12,233,232; 19,341,616; 30,389,784; 43,040,704; 66,347,960.
    They were designed for images of 224, 240, 260, 300, 380, 456, 528 and 600 pixels a side (torchvision's weights of
    b2: 288). They accept images of any size.

    Args:
      variant: "b0" to "b7".
      num_classes: number of logits.
      width: factor of the variant's features, which are rounded to multiples of 8.
      depth: factor of the variant's units of each stage, rounded up.
      norm: "batch", "group", "layer" or "instance"; "none": biases instead.
      dropout: probability that an input of the last dense layer is dropped. None: the variant's, 0.2 to 0.5.
      survival: of stochastic depth: unit i of n, counted from 0, survives with probability 1 - i / n (1 - survival).
        With 1.0, no unit is dropped.
      scan: run equal units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown variant or norm, a dropout or survival outside [0, 1], a width or depth not above 0, no
        class.
    """
    check_option("efficientnet", "variant", variant, VARIANTS)
    form = VARIANTS[variant]
    dropout = form.dropout if dropout is None else dropout
    check(f"efficientnet_{variant}", width, num_classes, dropout, survival=survival)
    if depth <= 0:
        raise InputError(f"efficientnet_{variant}: depth {depth} must be above 0; it multiplies the units")
    stem, stages = _stem_and_stages(form, width, depth)
    return EfficientNet(
        stem,
        stages,
        final=4 * stages[-1][-1].features,
        activation="silu",
        survival=survival,
        scan=scan,
        num_classes=num_classes,
        norm=norm_factory(norm, epsilon=form.epsilon, momentum=form.momentum),
        dropout=dropout,
        dtype=dtype,
        usual_input=(form.pixels, form.pixels, 3),
    )


def _stem_and_stages(form, width, depth):
    """Return the features of the stem, and the rows of each stage: table 1 times the factors of a form and these."""

    def scaled(features):
        return round_to_eights(features * form.width * width)

    stem = features_in = scaled(32)
    stages = []
    for factor, window, stride, features, units in TABLE:
        rows = []
        for i in range(math.ceil(units * form.depth * depth)):
            hidden, squeeze = round_to_eights(factor * features_in), max(1, features_in // 4)
            rows.append(UnitRow(window, hidden, scaled(features), 1 if i else stride, "silu", squeeze))
            features_in = rows[-1].features
        stages.append(tuple(rows))
    return stem, tuple(stages)


MODELS = {f"efficientnet_{variant}": partial(efficientnet, variant) for variant in VARIANTS}
CARDS = {
    f"efficientnet_{variant}": Card(Preprocessing(form.resize, form.crop or form.pixels, interpolation="bicubic"))
    for variant, form in VARIANTS.items()
}
