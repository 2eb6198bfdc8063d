"""Dense networks: Huang et al. 2017, "Densely connected convolutional networks" (arXiv 1608.06993)."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError
from deepjax.layers import Dropout
from deepjax.units import NORMS, Branch, ConvNorm, Norm, NormActivation, makes_batch_norm, recompute
from deepjax.zoo.cards import timm
from deepjax.zoo.network import INITS, Network, check_at_least_one, check_option, check_rate
from deepjax.zoo.residual import units_per_stage


class DenseBlock(nn.Module):
    """`depth` layers, each of which takes the block's input and the outputs of all layers before it.

    Each layer is a branch of order "pre"; the block is a chain of `Unit(branch, Concat())`. The layers pass on the
    separate pieces and concatenate them inside. Under remat, every piece is then stored once, and memory grows with
    depth, not with its square.
    """

    depth: int
    growth: int  # features of each layer
    bottleneck: bool = True  # a 1x1 to four times as many before the 3x3
    remat: str = "none"  # "unit": the backward pass recomputes the inside of each layer
    norm: Norm | None = NORMS["batch"]
    dropout: float = 0.0
    drops: str = "outputs"  # as of `units.Branch`
    kernel_init: Callable = initializers.he_normal()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features] -> [batch, H, W, features + depth * growth]."""

        def layer(branch, *pieces):
            return *pieces, branch(jnp.concatenate(pieces, -1), train=train, mask=mask)

        run = partial(recompute, layer) if self.remat == "unit" else layer
        pieces = (x,)
        for i in range(self.depth):
            pieces = run(self._branch(f"layer{i + 1}"), *pieces)
        return jnp.concatenate(pieces, -1)

    def _branch(self, name):
        return Branch(
            (4 * self.growth, self.growth) if self.bottleneck else (self.growth,),
            (1, 3) if self.bottleneck else (3,),
            (1, 1) if self.bottleneck else (1,),
            "pre",
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            norm=self.norm,
            dropout=self.dropout,
            drops=self.drops,
            name=name,
        )


class DenseNet(Network):
    """Stem, dense blocks with transitions between them, norm, ReLU, global average pool, linear head."""

    depths: Sequence[int]  # layers of each block
    growth: int
    stem_features: int
    stem: str = "cifar"  # "cifar": 3x3; "imagenet": 7x7 with stride 2, norm, ReLU, 3x3 max pool with stride 2
    bottleneck: bool = True
    compression: float = 1.0  # share of its features that a transition outputs
    drops: str = "outputs"

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stem, block1, block2, ..."""
        self.check_images(x)
        brick = {"norm": self.norm, "kernel_init": self.kernel_init, "dtype": self.dtype}
        layers = {"remat": self.remat, "dropout": self.dropout, "drops": self.drops, **brick}
        call = {"train": train, "mask": mask}
        x = self._stem(brick)(x, **call)
        x = functional.max_pool(x, 3, stride=2, padding=1) if self.stem == "imagenet" else x
        maps = {"stem": x}
        for i, depth in enumerate(self.depths, 1):
            if i > 1:
                features = int(self.compression * x.shape[-1])
                x = ConvNorm(features, 1, order="pre", name=f"transition{i - 1}", **brick)(x, **call)
                x = Dropout(self.dropout if self.drops == "outputs" else 0.0)(x, train=train)
                x = functional.avg_pool(x, 2)
            x = DenseBlock(depth, self.growth, self.bottleneck, name=f"block{i}", **layers)(x, **call)
            maps[f"block{i}"] = x
        if self.features_only:
            return maps
        x = NormActivation(norm=self.norm, name="final")(x, **call)
        return self.classify(functional.global_avg_pool(x), train=train, dropout=0.0)

    def torch_names(self):
        """See `Network.torch_names`. torchvision has networks with imagenet stem, bottlenecks and batch norm."""
        if self.stem != "imagenet" or not self.bottleneck or not makes_batch_norm(self.norm):
            return super().torch_names()
        names = {"stem/conv": "features.conv0", "stem/norm": "features.norm0"}
        for i, depth in enumerate(self.depths, 1):
            for j in range(1, depth + 1):
                for part in ("norm1", "conv1", "norm2", "conv2"):
                    names[f"block{i}/layer{j}/{part}"] = f"features.denseblock{i}.denselayer{j}.{part}"
            if i < len(self.depths):
                names |= {f"transition{i}/{part}": f"features.transition{i}.{part}" for part in ("norm", "conv")}
        return names | {"final/norm": "features.norm5", "head": "classifier"}

    def _stem(self, brick):
        if self.stem == "imagenet":
            return ConvNorm(self.stem_features, 7, 2, name="stem", **brick)
        # The first layer starts with the norm and activation of the stem.
        bias = self.norm is None
        return ConvNorm(self.stem_features, 3, use_bias=bias, activation=None, name="stem", **brick | {"norm": None})


def densenet(
    depths,
    num_classes=1000,
    *,
    growth=32,
    stem_features=64,
    compression=0.5,
    norm="batch",
    dropout=0.0,
    remat="none",
    dtype=None,
):
    """Make the ImageNet network of Huang et al. 2017, table 1, in torchvision's form.

    Args:
      depths: number of layers of each block, each a 1x1 and a 3x3 convolution.
      num_classes: number of logits.
      growth: number of features that each layer adds.
      stem_features: number of features of the first convolution.
      compression: share of its input's features that a transition outputs, in (0, 1].
      norm: "batch", "group", "layer" or "instance"; "none": biases instead.
      dropout: probability that an output of a layer is dropped, as torchvision's drop_rate.
      remat: "unit": store the output of each layer for the backward pass, and recompute the rest. Memory then grows
        with depth, not with its square, at the cost of another forward pass.
      dtype: dtype of the computation.

    Raises:
      InputError: no block, a block without layers, a count below 1, a compression outside (0, 1], a dropout outside
        [0, 1], an unknown norm or remat. When called: images too small for the transitions.
    """
    _check("densenet", depths, dropout, compression, remat, num_classes, growth, stem_features=stem_features)
    return DenseNet(
        depths=tuple(depths),
        growth=growth,
        stem_features=stem_features,
        stem="imagenet",
        compression=compression,
        drops="last",
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        remat=remat,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        min_size=2 ** (len(depths) + 1) - 3,  # the stem rounds up, twice; each transition halves and rounds down
    )


def cifar_densenet(
    depth=100,
    num_classes=10,
    *,
    growth=12,
    bottleneck=True,
    norm="batch",
    dropout=0.0,
    remat="none",
    dtype=None,
):
    """Make the CIFAR network of Huang et al. 2017, section 4.2: three blocks, depth 3n + 4, or 6n + 4 with bottlenecks.

    Args:
      depth: number of layers with kernels.
      num_classes: number of logits.
      growth: number of features that each layer adds, the paper's k.
      bottleneck: True: DenseNet-BC. A 1x1 convolution to 4 growth features precedes each 3x3, transitions halve the
        features, and the first convolution has 2 growth features. False: transitions do not change the number of
        features, and the first convolution has 16.
      norm, remat, dtype: see `densenet`.
      dropout: probability that an output of a convolution is dropped, except the first convolution's. The paper uses
        0.2 for data sets without augmentation.

    Raises:
      InputError: a depth of another form, a count below 1, a dropout outside [0, 1], an unknown norm or remat. When
        called: images smaller than 4x4 pixels.
    """
    layers = units_per_stage(depth, 6 if bottleneck else 3, others=4)
    _check("cifar_densenet", (layers,) * 3, dropout, 1.0, remat, num_classes, growth)
    return DenseNet(
        depths=(layers,) * 3,
        growth=growth,
        stem_features=2 * growth if bottleneck else 16,
        bottleneck=bottleneck,
        compression=0.5 if bottleneck else 1.0,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        remat=remat,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        usual_input=(32, 32, 3),
        min_size=4,
    )


def _check(network, depths, dropout, compression, remat, num_classes, growth, **counts):
    layers = min(depths, default=0)
    check_at_least_one(network, num_classes=num_classes, growth=growth, layers_per_block=layers, **counts)
    check_option(network, "remat", remat, ("none", "unit"))
    check_rate(network, dropout=dropout)
    if not 0 < compression <= 1:
        raise InputError(f"{network}: compression {compression} must be above 0 and at most 1")


MODELS = {
    "densenet121": partial(densenet, (6, 12, 24, 16), growth=32, stem_features=64),
    "densenet161": partial(densenet, (6, 12, 36, 24), growth=48, stem_features=96),
    "densenet169": partial(densenet, (6, 12, 32, 32), growth=32, stem_features=64),
    "densenet201": partial(densenet, (6, 12, 48, 32), growth=32, stem_features=64),
    "cifar_densenet": cifar_densenet,
    "densenet_40_12": partial(cifar_densenet, 40, growth=12, bottleneck=False),
    "densenet_100_12": partial(cifar_densenet, 100, growth=12, bottleneck=False),
    "densenet_100_24": partial(cifar_densenet, 100, growth=24, bottleneck=False),
    "densenet_bc_100_12": partial(cifar_densenet, 100, growth=12, bottleneck=True),
    "densenet_bc_250_24": partial(cifar_densenet, 250, growth=24, bottleneck=True),
    "densenet_bc_190_40": partial(cifar_densenet, 190, growth=40, bottleneck=True),
}
CARDS = {name: timm(name) for name in ("densenet121", "densenet161", "densenet169", "densenet201")}
