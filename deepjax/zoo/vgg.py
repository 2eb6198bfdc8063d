"""The VGG networks of Simonyan & Zisserman 2015, "Very deep convolutional networks" (arXiv 1409.1556), table 1."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from deepjax import functional
from deepjax.layers import Dropout
from deepjax.units import ConvNorm, makes_batch_norm, stack
from deepjax.zoo.cards import timm
from deepjax.zoo.chain import check_chain, krizhevsky_norm
from deepjax.zoo.network import INITS, Network, named

GRID = 7


class Config(NamedTuple):
    """A column of table 1."""

    depths: tuple[int, ...]  # convolutions 3x3 of each stage
    pointwise: tuple[int, ...] = (0, 0, 0, 0, 0)  # convolutions 1x1 after them
    lrn: bool = False  # local response normalization after the first convolution


CONFIGS = {
    "A": Config((1, 1, 2, 2, 2)),
    "A-LRN": Config((1, 1, 2, 2, 2), lrn=True),
    "B": Config((2, 2, 2, 2, 2)),
    "C": Config((2, 2, 2, 2, 2), (0, 0, 1, 1, 1)),
    "D": Config((2, 2, 3, 3, 3)),
    "E": Config((2, 2, 4, 4, 4)),
}


class VGG(Network):
    """Stages of 3x3 convolutions, each ended by a 2x2 max pool, then two hidden layers and the logits.

    A stage is its first convolution, a scan over the equal ones that follow, and perhaps a 1x1 convolution.
    """

    config: Config
    features: Sequence[int] = (64, 128, 256, 512, 512)
    hidden: int = 4096
    order: str = "post"
    scan: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stage1 to stage5."""
        self.check_images(x)
        maps, (depths, pointwise, lrn) = {}, self.config
        for i, (depth, ones, features) in enumerate(zip(depths, pointwise, self.features, strict=True), 1):
            conv = partial(
                ConvNorm,
                features,
                norm=self.norm,
                order=self.order,
                use_bias=True,  # with a norm too: torchvision's have them
                kernel_init=self.kernel_init,
                dtype=self.dtype,
            )
            x = conv(name=f"stage{i}_first")(x, train=train, mask=mask)
            if depth > 1:
                rest = stack(conv(parent=None), depth - 1, scan=self.scan, remat=self.remat, name=f"stage{i}_rest")
                x = rest(x, train=train, mask=mask)
            if ones:
                x = conv(1, name=f"stage{i}_pointwise")(x, train=train, mask=mask)
            if lrn and i == 1:
                x = krizhevsky_norm(x)
            x = maps[f"stage{i}"] = functional.max_pool(x, 2)
        if self.features_only:
            return maps
        x = functional.adaptive_avg_pool(x, GRID).reshape(x.shape[0], -1)
        x = self._hidden("hidden1", x)
        x = self._hidden("hidden2", Dropout(self.dropout)(x, train=train))
        return self.classify(x, train=train)

    def _hidden(self, name, x):
        return functional.relu(nn.Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name=name)(x))

    def torch_names(self):
        """As `Network.torch_names`; torchvision has A, B, D and E, without a norm or with batch norm before ReLU."""
        depths, pointwise, lrn = self.config
        if any(pointwise) or lrn or not (self.norm is None or makes_batch_norm(self.norm)) or self.order != "post":
            return super().torch_names()
        names, place = {}, 0
        for stage, depth in enumerate(depths, 1):
            for i in range(depth):
                ours = f"stage{stage}_rest/unit{i}" if i else f"stage{stage}_first"
                names[f"{ours}/conv"] = f"features.{place}"
                if self.norm is not None:
                    names[f"{ours}/norm"] = f"features.{place + 1}"
                place += 2 if self.norm is None else 3
            place += 1
        return names | {"hidden1": ("classifier.0", (GRID, GRID)), "hidden2": "classifier.3", "head": "classifier.6"}


def vgg(config, num_classes=1000, *, norm="none", order="post", dropout=0.5, scan=True, dtype=None):
    """A VGG network; torchvision's form where torchvision has it.

    The last maps are averaged to 7x7 pixels, which is what images of 224x224 have there.

    Args:
      config: a column of the paper's table 1, a key of `CONFIGS`.
      num_classes: logits.
      norm: of the convolutions: "none", "batch" (torchvision's vgg16_bn and so on), "group", "layer" or "instance".
        The convolutions keep their biases.
      order: "post": the norm before the ReLU; "last": after it.
      dropout: the probability to drop a unit of the two hidden layers.
      scan: equal convolutions as one scan; False unrolls them.
      dtype: of the computation.

    Raises:
      InputError: an unknown norm or order, an order without a norm, a dropout outside [0, 1]; when called, images of
        less than 32x32 pixels.
    """
    check_chain("vgg", norm=norm, order=order, num_classes=num_classes, dropout=dropout)
    return VGG(
        CONFIGS[config],
        order=order,
        scan=scan,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        min_size=32,
    )


NAMES = {"vgg11": "A", "vgg11_lrn": "A-LRN", "vgg13": "B", "vgg16_1x1": "C", "vgg16": "D", "vgg19": "E"}
MODELS = named(
    vgg,
    **{name: {"config": config} for name, config in NAMES.items()},
    **{f"{name}_bn": {"config": config, "norm": "batch"} for name, config in NAMES.items()},
)

# In timm's files, the first two dense layers are convolutions of 7x7 and 1x1 with the same numbers in the same order.
RENAMED = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}
CARDS = {
    f"{name}{norm}": timm(f"{name}{norm}", renamed=RENAMED)
    for name in ("vgg11", "vgg13", "vgg16", "vgg19")
    for norm in ("", "_bn")
}
