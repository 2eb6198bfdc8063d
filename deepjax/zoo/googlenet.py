"""GoogLeNet and BN-Inception.

Szegedy et al. 2014, "Going deeper with convolutions" (arXiv 1409.4842): table 1, and section 5 for the auxiliary heads.
Ioffe & Szegedy 2015, "Batch normalization" (arXiv 1502.03167): figure 5 and the appendix around it.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
from flax.core import freeze

from deepjax import functional, initializers
from deepjax.layers import Dense, Dropout
from deepjax.units import makes_batch_norm, norm_factory
from deepjax.zoo.cards import HALF, Card, Preprocessing
from deepjax.zoo.network import INITS
from deepjax.zoo.steps import Auxiliary, Convolve, Depthwise, LocalNorm, NetworkOptions, Parallel, Pool, make
from deepjax.zoo.table import TableNetwork, check_table

HALVE = Pool("max", 3, 2, ceil=True)
PASS = Pool("max", 3, 2, None, ceil=True)  # same output size as a convolution of stride 2, also for odd sizes
LOCAL_NORM = LocalNorm(5, alpha=1e-4, beta=0.75, k=1.0)  # Caffe's; the paper gives only their places
SEPARABLE = (Depthwise(8, 7, 2), Convolve(64))


def inception(one, three_in, three, five_in, five, projected, *, window=5):
    """Return the branches of a row of table 1. `window` is that of the third branch, which is 3 in torchvision."""
    return (
        (Convolve(one),),
        (Convolve(three_in), Convolve(three, 3)),
        (Convolve(five_in), Convolve(five, window)),
        (Pool("max", 3, 1, 1), Convolve(projected)),
    )


MODULES = {  # table 1, as arguments of `inception`
    "stage3": {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
    "stage4": {
        "a": (192, 96, 208, 16, 48, 64),
        "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64),
        "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    "stage5": {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
}


def googlenet_stages(window, last_pool, stem, head):
    """Return {stage: steps} of table 1. Stages 4 and 5 begin with a pool; auxiliary heads follow modules 4a and 4d."""
    pools = {"stage4": (HALVE,), "stage5": (last_pool,)}
    stages = {"stem": (Parallel("stem", (stem,)),)}
    for stage, rows in MODULES.items():
        steps = [*pools.get(stage, ())]
        for letter, row in rows.items():
            name = f"{stage}{letter}"
            steps += [Parallel(name, inception(*row, window=window))]
            steps += [Auxiliary(head)] if name in ("stage4a", "stage4d") else []
        stages[stage] = tuple(steps)
    return freeze(stages)


def bn_inception_module(one, three_in, three, double_in, double, kind, projected):
    """Return the branches of a row of figure 5.

    A module without a 1x1 branch has stride 2, and no convolution after its pool.
    """
    stride = 1 if one else 2
    pool = (Pool(kind, 3, 1, 1), Convolve(projected)) if one else (PASS,)
    branches = (
        (Convolve(three_in), Convolve(three, 3, stride)),
        (Convolve(double_in), Convolve(double, 3), Convolve(double, 3, stride)),
        pool,
    )
    return ((Convolve(one),), *branches) if one else branches


BN_MODULES = {  # figure 5, as arguments of `bn_inception_module`
    "stage3": {
        "a": (64, 64, 64, 64, 96, "avg", 32),
        "b": (64, 64, 96, 64, 96, "avg", 64),
        "c": (0, 128, 160, 64, 96, "max", 0),
    },
    "stage4": {
        "a": (224, 64, 96, 96, 128, "avg", 128),
        "b": (192, 96, 128, 96, 128, "avg", 128),
        "c": (160, 128, 160, 128, 160, "avg", 128),
        "d": (96, 128, 192, 160, 192, "avg", 128),
        "e": (0, 128, 192, 192, 256, "max", 0),
    },
    "stage5": {"a": (352, 192, 320, 160, 224, "avg", 128), "b": (352, 192, 320, 192, 224, "max", 128)},
}


def grid_pool(x):
    """Return the means of 4x4 equal windows. The 14x14 map of 224x224 pixels has windows of 5x5 and stride 3."""
    if min(x.shape[1:3]) < 4:
        return functional.adaptive_avg_pool(x, 4)
    stride = [side // 4 for side in x.shape[1:3]]
    window = [side - 3 * step for side, step in zip(x.shape[1:3], stride, strict=True)]
    return functional.avg_pool(x, window, stride=stride)


class GoogLeNetHead(nn.Module):
    """An auxiliary head: pool to 4x4, 1x1 convolution, dense layer, dropout, logits (section 5)."""

    num_classes: int
    pool: Callable
    dropout: float
    options: NetworkOptions

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features] -> [batch, num_classes]."""
        init, dtype = self.options.kernel_init, self.options.dtype
        x = make(Convolve(128), self.options, name="conv")(self.pool(x), train=train, mask=mask)
        x = x.reshape(x.shape[0], -1)
        x = functional.relu(Dense(1024, kernel_init=init, dtype=dtype, name="hidden")(x))
        x = Dropout(self.dropout)(x, train=train)
        return Dense(self.num_classes, kernel_init=initializers.lecun_normal(), dtype=dtype, name="head")(x)


TORCH_HEAD = partial(GoogLeNetHead, pool=partial(functional.adaptive_avg_pool, size=4))
PAPER_HEAD = partial(GoogLeNetHead, pool=grid_pool)


class GoogLeNet(TableNetwork):
    """A `TableNetwork` whose auxiliary losses have weight 0.3 each (section 5)."""

    auxiliary_weight = 0.3

    def torch_names(self):
        """See `Network.torch_names`. torchvision has only the network of `googlenet` with batch norm."""
        if not makes_batch_norm(self.norm) or self.stages != TORCH_STAGES:
            return super().torch_names()
        names = {f"stem/conv{i}": f"conv{i}" for i in (1, 2, 3)}
        for stage, rows in MODULES.items():
            for letter in rows:
                ours, theirs = f"{stage}{letter}", f"inception{stage[-1]}{letter}"
                names[f"{ours}/branch1_conv1"] = f"{theirs}.branch1"
                for branch, conv in ((2, 1), (2, 2), (3, 1), (3, 2)):
                    names[f"{ours}/branch{branch}_conv{conv}"] = f"{theirs}.branch{branch}.{conv - 1}"
                names[f"{ours}/branch4_conv1"] = f"{theirs}.branch4.1"  # the pool is branch4.0
        names |= {f"auxiliary{i}/conv": f"aux{i}.conv" for i in (1, 2)}
        names = {f"{ours}/{a}": f"{names[ours]}.{b}" for ours in names for a, b in (("conv", "conv"), ("norm", "bn"))}
        for i in (1, 2):
            names |= {f"auxiliary{i}/hidden": (f"aux{i}.fc1", (4, 4)), f"auxiliary{i}/head": f"aux{i}.fc2"}
        return names | {"head": "fc"}


STEM = (Convolve(64, 7, 2), HALVE, Convolve(64), Convolve(192, 3), HALVE)
TORCH_STAGES = googlenet_stages(3, Pool("max", 2, 2, ceil=True), STEM, TORCH_HEAD)


def googlenet(
    num_classes=1000, *, auxiliary=True, norm="batch", dropout=0.2, auxiliary_dropout=0.7, epsilon=1e-3, dtype=None
):
    """Make torchvision's GoogLeNet: batch norm, 3x3 instead of 5x5 convolutions, and a last max pool of 2x2.

    The auxiliary heads pool adaptively, so that the network can be trained on images of any size. With train=True, the
    output is (logits, logits of the head after module 4d, logits of the head after 4a), which is torchvision's order
    (logits, aux2, aux1).

    Args:
      num_classes: number of logits.
      auxiliary: whether the network has the two auxiliary heads, which only training uses. 13,004,888 parameters with
        them, 6,624,904 without.
      norm: normalization after every convolution: "batch", "group", "layer" or "instance"; "none": biases instead.
      dropout: probability that an input of the last layer is dropped.
      auxiliary_dropout: the same for the last layer of each auxiliary head.
      epsilon: epsilon of the norms.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1]. When called: images smaller than 15x15 pixels.
    """
    return _network(
        "googlenet",
        num_classes,
        TORCH_STAGES,
        min_size=15,
        auxiliary=auxiliary,
        norm=norm,
        dropout=dropout,
        auxiliary_dropout=auxiliary_dropout,
        epsilon=epsilon,
        dtype=dtype,
    )


def googlenet_paper(
    num_classes=1000,
    *,
    auxiliary=True,
    separable=False,
    norm="none",
    dropout=0.4,
    auxiliary_dropout=0.7,
    epsilon=1e-3,
    dtype=None,
):
    """Make GoogLeNet as published by Szegedy et al. 2014: 5x5 branches, local response norms, biases, no batch norm.

    The auxiliary heads pool to 4x4, with 5x5 windows and stride 3 for images of 224x224 and other windows for other
    sizes. The paper does not give the constants of the local response norms; they are Caffe's. Table 1 gives the first
    convolution 2.7K weights, fewer than a plain 7x7 has; see `separable`.

    Args:
      num_classes, auxiliary, dropout, auxiliary_dropout, epsilon, dtype: see `googlenet`. The network has 13,378,280
        parameters with the heads, 6,998,552 without.
      separable: True: the first convolution is a separate 7x7 of each color, with 8 features each, and a 1x1 of these.
        False: a plain 7x7.
      norm: see `googlenet`.

    Raises:
      InputError: see `googlenet`.
    """
    first = SEPARABLE if separable else (Convolve(64, 7, 2),)
    stem = (*first, HALVE, LOCAL_NORM, Convolve(64), Convolve(192, 3), LOCAL_NORM, HALVE)
    return _network(
        "googlenet_paper",
        num_classes,
        googlenet_stages(5, HALVE, stem, PAPER_HEAD),
        min_size=31,
        auxiliary=auxiliary,
        norm=norm,
        dropout=dropout,
        auxiliary_dropout=auxiliary_dropout,
        epsilon=epsilon,
        dtype=dtype,
    )


def bn_inception(num_classes=1000, *, separable=True, norm="batch", dropout=0.0, epsilon=1e-5, dtype=None):
    """Make the BN-Inception network of Ioffe & Szegedy 2015.

    Two 3x3 convolutions replace each 5x5, and strides inside modules replace pools between modules. The features are
    those of figure 5's columns. Their sums in modules 4c, 4d and 4e are 608, 608 and 1,056, although the column of
    output sizes gives 576, 576 and 1,024. There are no auxiliary heads, no dropout and no local response norms.

    Args:
      num_classes: number of logits.
      separable: True: the first convolution is a separate 7x7 of each color, with 8 features each, and a 1x1 of these,
        as in the appendix. False: a plain 7x7.
      norm, dropout, epsilon, dtype: see `googlenet`.

    Raises:
      InputError: see `googlenet`.
    """
    check_table("bn_inception", num_classes=num_classes, norm=norm, dropout=dropout)
    stem = (*(SEPARABLE if separable else (Convolve(64, 7, 2),)), HALVE, Convolve(64), Convolve(192, 3), HALVE)
    stages = {"stem": (Parallel("stem", (stem,)),)} | {
        stage: tuple(Parallel(f"{stage}{letter}", bn_inception_module(*row)) for letter, row in rows.items())
        for stage, rows in BN_MODULES.items()
    }
    return TableNetwork(
        freeze(stages),
        num_classes=num_classes,
        norm=norm_factory(norm, epsilon=epsilon),
        dropout=dropout,
        dtype=dtype,
        min_size=7,
    )


def _network(name, num_classes, stages, *, norm, epsilon, dropout, auxiliary_dropout, **options):
    check_table(name, num_classes=num_classes, norm=norm, dropout=dropout, auxiliary_dropout=auxiliary_dropout)
    return GoogLeNet(
        stages,
        num_classes=num_classes,
        norm=norm_factory(norm, epsilon=epsilon),
        dropout=dropout,
        auxiliary_dropout=auxiliary_dropout,
        kernel_init=INITS["he" if norm == "batch" else "he_fan_in"],
        **options,
    )


MODELS = {"googlenet": googlenet, "googlenet_paper": googlenet_paper, "bn_inception": bn_inception}
CARDS = {"googlenet": Card(Preprocessing(256, 224, HALF, HALF))}
