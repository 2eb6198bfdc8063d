"""The VGG networks of Simonyan & Zisserman 2015, "Very deep convolutional networks" (arXiv 1409.1556), table 1."""

from flax.core import freeze

from deepjax.units import makes_batch_norm
from deepjax.zoo.alexnet import LRN
from deepjax.zoo.cards import timm
from deepjax.zoo.network import INITS, named
from deepjax.zoo.steps import Convolve, Pool, Repeat, sequential_names
from deepjax.zoo.table import TableNetwork, check_table

GRID = 7


def column(*depths, pointwise=(0, 0, 0, 0, 0), lrn=False):
    """Return the stages of a column of table 1.

    A stage consists of its first 3x3 convolution, one step for the equal convolutions that follow, and a 2x2 max pool.

    Args:
      *depths: number of 3x3 convolutions of each stage.
      pointwise: number of 1x1 convolutions after them, 0 or 1.
      lrn: local response normalization after the first convolution of all.
    """
    stages = {}
    for i, (depth, features, ones) in enumerate(zip(depths, (64, 128, 256, 512, 512), pointwise, strict=True), 1):
        conv = Convolve(features, 3, name=f"stage{i}_first")
        rest = (Repeat(f"stage{i}_rest", conv, depth - 1),) if depth > 1 else ()
        last = (Convolve(features, 1, name=f"stage{i}_pointwise"),) * ones
        stages[f"stage{i}"] = (conv, *rest, *last, *([LRN] if lrn and i == 1 else ()), Pool("max", 2, 2))
    return freeze(stages)


COLUMNS = {
    "A": column(1, 1, 2, 2, 2),
    "A-LRN": column(1, 1, 2, 2, 2, lrn=True),
    "B": column(2, 2, 2, 2, 2),
    "C": column(2, 2, 2, 2, 2, pointwise=(0, 0, 1, 1, 1)),
    "D": column(2, 2, 3, 3, 3),
    "E": column(2, 2, 4, 4, 4),
}


class VGG(TableNetwork):
    """A column of table 1, two hidden layers of 4,096 units, the logits."""

    def torch_names(self):
        """See `Network.torch_names`. torchvision has A, B, D and E, without norm or with batch norm before the ReLU."""
        in_torchvision = any(self.stages == COLUMNS[letter] for letter in "ABDE")
        batch_norm = makes_batch_norm(self.norm)
        if not in_torchvision or not (batch_norm or self.norm is None) or self.order != "post":
            return super().torch_names()
        names = sequential_names(self.stages, norm=batch_norm)
        return names | {"hidden1": ("classifier.0", (GRID, GRID)), "hidden2": "classifier.3", "head": "classifier.6"}


def vgg(config, num_classes=1000, *, norm="none", order="post", dropout=0.5, sliding=False, scan=True, dtype=None):
    """Make a VGG network, in torchvision's form if torchvision has it.

    The last maps are averaged to 7x7 pixels, which is their size for images of 224x224. With `sliding`, the dense
    layers are applied to every window of 7x7 pixels of these maps instead, and the logits are averaged: the paper's
    dense evaluation (section 3.2). The parameters are the same in both forms.

    Args:
      config: a column of the paper's table 1, a key of `COLUMNS`.
      num_classes: number of logits.
      norm: normalization of the convolutions: "none", "batch" (torchvision's vgg16_bn and so on), "group", "layer" or
        "instance". The convolutions keep their biases.
      order: "post": the norm before the ReLU; "last": after it.
      dropout: probability that a unit of the two hidden layers is dropped.
      sliding: apply the dense layers at every position, as above.
      scan: run equal convolutions as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm or order, order "last" without a norm, a dropout outside [0, 1]. When called: images
        smaller than 32x32 pixels, or than 224x224 with `sliding`.
    """
    check_table("vgg", norm=norm, order=order, num_classes=num_classes, dropout=dropout)
    return VGG(
        COLUMNS[config],
        grid=GRID,
        sliding=sliding,
        hidden=(4096, 4096),
        order=order,
        use_bias=True,
        scan=scan,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        min_size=32 * GRID if sliding else 32,
    )


NAMES = {"vgg11": "A", "vgg11_lrn": "A-LRN", "vgg13": "B", "vgg16_1x1": "C", "vgg16": "D", "vgg19": "E"}
MODELS = named(
    vgg,
    **{name: {"config": letter} for name, letter in NAMES.items()},
    **{f"{name}_bn": {"config": letter, "norm": "batch"} for name, letter in NAMES.items()},
)
# In timm's files, the first two dense layers are convolutions of 7x7 and 1x1 with the same numbers in the same order.
RENAMED = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}
CARDS = {
    f"{name}{norm}": timm(f"{name}{norm}", renamed=RENAMED)
    for name in ("vgg11", "vgg13", "vgg16", "vgg19")
    for norm in ("", "_bn")
}
