"""Inception v3.

Szegedy et al. 2015, "Rethinking the Inception architecture for computer vision" (arXiv 1512.00567), in torchvision's
form, which is that of Google's published weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

from deepjax import functional, initializers
from deepjax.layers import Dense, Dropout
from deepjax.units import makes_batch_norm, norm_factory
from deepjax.zoo.cards import HALF, Preprocessing, timm
from deepjax.zoo.steps import Auxiliary, Convolve, Fork, NetworkOptions, Parallel, Pool, make
from deepjax.zoo.table import TableNetwork, check_table

HALVE = Pool("max", 3, 2)
MEAN = Pool("avg", 3, 1, 1)
START = (Convolve(32, 3, 2, 0), Convolve(32, 3, 1, 0), Convolve(64, 3))
STEM = (*START, HALVE, Convolve(80), Convolve(192, 3, 1, 0), HALVE)


def module_35(projected):
    """Return the branches for 35x35 pixels (figure 5). Two 3x3 convolutions replace one of the 5x5 convolutions."""
    return (
        (Convolve(64),),
        (Convolve(48), Convolve(64, 5)),
        (Convolve(64), Convolve(96, 3), Convolve(96, 3)),
        (MEAN, Convolve(projected)),
    )


def module_17(inner):
    """Return the branches for 17x17 pixels (figure 6). A 1x7 and a 7x1 convolution replace each 7x7."""
    wide, tall = Convolve(inner, (1, 7)), Convolve(inner, (7, 1))
    return (
        (Convolve(192),),
        (Convolve(inner), wide, Convolve(192, (7, 1))),
        (Convolve(inner), tall, wide, tall, Convolve(192, (1, 7))),
        (MEAN, Convolve(192)),
    )


def module_8():
    """Return the branches for 8x8 pixels (figure 7). A 1x3 and a 3x1 convolution run in parallel."""
    fork = Fork((Convolve(384, (1, 3)), Convolve(384, (3, 1))))
    return ((Convolve(320),), (Convolve(384), fork), (Convolve(448), Convolve(384, 3), fork), (MEAN, Convolve(192)))


TO_17 = ((Convolve(384, 3, 2, 0),), (Convolve(64), Convolve(96, 3), Convolve(96, 3, 2, 0)), (HALVE,))
TO_8 = (
    (Convolve(192), Convolve(320, 3, 2, 0)),
    (Convolve(192), Convolve(192, (1, 7)), Convolve(192, (7, 1)), Convolve(192, 3, 2, 0)),
    (HALVE,),
)
# torchvision's names of the stem's convolutions and of branches. Names of a branch's several convolutions are numbered.
TORCH_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
TORCH_BRANCHES = {
    "stage5": ("branch1x1", "branch5x5", "branch3x3dbl", "branch_pool"),
    "stage6a": ("branch3x3", "branch3x3dbl"),
    "stage6": ("branch1x1", "branch7x7", "branch7x7dbl", "branch_pool"),
    "stage7a": ("branch3x3", "branch7x7x3"),
    "stage7": ("branch1x1", "branch3x3", "branch3x3dbl", "branch_pool"),
}


class InceptionHead(nn.Module):
    """The auxiliary head: 5x5 mean with stride 3, 1x1 and 5x5 convolution, mean, logits."""

    num_classes: int
    dropout: float
    options: NetworkOptions

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features] -> [batch, num_classes], with H and W of at least 17."""
        if self.is_initializing():  # with train=False, a map may be smaller; the parameters have the same shapes
            more = [(0, max(17 - side, 0)) for side in x.shape[1:3]]
            x = jnp.pad(x, ((0, 0), *more, (0, 0)))
        x = functional.avg_pool(x, 5, stride=3)
        for name, step in (("conv1", Convolve(128)), ("conv2", Convolve(768, 5, 1, 0))):
            x = make(step, self.options, name=name)(x, train=train, mask=mask)
        x = functional.global_avg_pool(x)
        x = Dropout(self.dropout)(x, train=train)
        dtype = self.options.dtype
        return Dense(self.num_classes, kernel_init=initializers.lecun_normal(), dtype=dtype, name="head")(x)


MODULES = {
    "stage5": {"b": module_35(32), "c": module_35(64), "d": module_35(64)},
    "stage6": {"a": TO_17, "b": module_17(128), "c": module_17(160), "d": module_17(160), "e": module_17(192)},
    "stage7": {"a": TO_8, "b": module_8(), "c": module_8()},
}
HEADS = {"stage6": (Auxiliary(InceptionHead),)}
STAGES = {"stem": (Parallel("stem", (STEM,)),)} | {
    stage: tuple(Parallel(f"{stage}{letter}", branches) for letter, branches in modules.items()) + HEADS.get(stage, ())
    for stage, modules in MODULES.items()
}


class InceptionV3(TableNetwork):
    """A `TableNetwork` whose auxiliary loss has weight 0.4, as in torchvision's training."""

    auxiliary_weight = 0.4

    def torch_names(self):
        """See `Network.torch_names`. torchvision has this network with batch norm only."""
        if not makes_batch_norm(self.norm):
            return super().torch_names()
        names = {f"stem/conv{i}": theirs for i, theirs in enumerate(TORCH_STEM, 1)}
        for stage, modules in MODULES.items():
            for letter, branches in modules.items():
                labels = TORCH_BRANCHES.get(stage + letter, TORCH_BRANCHES[stage])
                for i, (label, steps) in enumerate(zip(labels, branches, strict=False), 1):  # not a branch of a pool
                    theirs = f"Mixed_{stage[-1]}{letter}.{label}"
                    names |= {f"{stage}{letter}/branch{i}_conv{j}": f"{theirs}{k}" for j, k in _numbers(steps)}
        names |= {f"auxiliary1/conv{i + 1}": f"AuxLogits.conv{i}" for i in (0, 1)}
        names = {f"{ours}/{a}": f"{names[ours]}.{b}" for ours in names for a, b in (("conv", "conv"), ("norm", "bn"))}
        return names | {"auxiliary1/head": "AuxLogits.fc", "head": "fc"}


def _numbers(steps):
    """[(our number of a convolution in a branch, torchvision's suffix of the branch's name)]."""
    convolutions = [step for step in steps if not isinstance(step, Pool)]
    if len(convolutions) == 1:
        return [(1, "")]
    return [
        (f"{j}{letter}", f"_{j}{letter}")
        for j, step in enumerate(convolutions, 1)
        for letter in ("ab" if isinstance(step, Fork) else ("",))
    ]


def inception_v3(
    num_classes=1000, *, auxiliary=True, norm="batch", dropout=0.5, auxiliary_dropout=0.0, epsilon=1e-3, dtype=None
):
    """Make torchvision's Inception v3. With train=True, the output is (logits, logits of the auxiliary head).

    Args:
      num_classes: number of logits.
      auxiliary: whether the network has the auxiliary head, which only training uses. 27,161,264 parameters with it,
        23,834,568 without.
      norm: normalization after every convolution: "batch", "group", "layer" or "instance"; "none": biases instead.
      dropout: probability that an input of the last layer is dropped.
      auxiliary_dropout: the same for the last layer of the auxiliary head.
      epsilon: epsilon of the norms.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1]. When called: images smaller than 75x75 pixels, or smaller
        than 299x299 in training with the auxiliary head.
    """
    check_table(
        "inception_v3", num_classes=num_classes, norm=norm, dropout=dropout, auxiliary_dropout=auxiliary_dropout
    )
    return InceptionV3(
        freeze(STAGES),
        auxiliary=auxiliary,
        num_classes=num_classes,
        norm=norm_factory(norm, epsilon=epsilon),
        dropout=dropout,
        auxiliary_dropout=auxiliary_dropout,
        dtype=dtype,
        usual_input=(299, 299, 3),
        min_size=75,
        min_training_size=299,
    )


MODELS = {"inception_v3": inception_v3}
CARDS = {"inception_v3": timm("inception_v3", v1=Preprocessing(342, 299, HALF, HALF), absent=("AuxLogits.",))}
