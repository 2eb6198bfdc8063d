"""Inception v3.

Szegedy et al. 2015, "Rethinking the Inception architecture for computer vision" (arXiv 1512.00567), in torchvision's
form, which is that of Google's published weights.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import freeze

from deepjax import functional, initializers
from deepjax.layers import Dropout
from deepjax.units import ConvNorm, Norm, makes_batch_norm, norm_factory
from deepjax.zoo.branches import Conv, Fork, InceptionNetwork, Pool, check
from deepjax.zoo.cards import HALF, Preprocessing, timm

HALVE = Pool("max", 3, 2)
MEAN = Pool("avg", 3, 1, 1)
STEM = (Conv(32, 3, 2, 0), Conv(32, 3, 1, 0), Conv(64, 3), HALVE, Conv(80), Conv(192, 3, 1, 0), HALVE)


def module_35(projected):
    """Of 35x35 pixels (figure 5): 5x5, and two 3x3 in the place of another."""
    return (
        (Conv(64),),
        (Conv(48), Conv(64, 5)),
        (Conv(64), Conv(96, 3), Conv(96, 3)),
        (MEAN, Conv(projected)),
    )


def module_17(inner):
    """Of 17x17 pixels (figure 6): 7x7 convolutions as pairs of 1x7 and 7x1."""
    wide, tall = Conv(inner, (1, 7)), Conv(inner, (7, 1))
    return (
        (Conv(192),),
        (Conv(inner), wide, Conv(192, (7, 1))),
        (Conv(inner), tall, wide, tall, Conv(192, (1, 7))),
        (MEAN, Conv(192)),
    )


def module_8():
    """Of 8x8 pixels (figure 7): 1x3 and 3x1 beside each other."""
    fork = Fork((Conv(384, (1, 3)), Conv(384, (3, 1))))
    return ((Conv(320),), (Conv(384), fork), (Conv(448), Conv(384, 3), fork), (MEAN, Conv(192)))


TO_17 = ((Conv(384, 3, 2, 0),), (Conv(64), Conv(96, 3), Conv(96, 3, 2, 0)), (HALVE,))
TO_8 = (
    (Conv(192), Conv(320, 3, 2, 0)),
    (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), Conv(192, 3, 2, 0)),
    (HALVE,),
)
STAGES = freeze(
    {
        "stem": {"": (STEM,)},
        "stage5": {"b": module_35(32), "c": module_35(64), "d": module_35(64)},
        "stage6": {"a": TO_17, "b": module_17(128), "c": module_17(160), "d": module_17(160), "e": module_17(192)},
        "stage7": {"a": TO_8, "b": module_8(), "c": module_8()},
    }
)

# torchvision's names of the stem's convolutions, and of branches; those of several convolutions are numbered.
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
    norm: Norm | None
    kernel_init: Callable
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features] -> [batch, num_classes], with H and W of at least 17."""
        if self.is_initializing():  # with train=False, a map may be smaller; shapes of parameters are the same
            more = [(0, max(17 - side, 0)) for side in x.shape[1:3]]
            x = jnp.pad(x, ((0, 0), *more, (0, 0)))
        x = functional.avg_pool(x, 5, stride=3)
        for name, step in (("conv1", Conv(128)), ("conv2", Conv(768, 5, 1, 0))):
            how = {"norm": self.norm, "kernel_init": self.kernel_init, "dtype": self.dtype}
            x = ConvNorm(*step, **how, name=name)(x, train=train, mask=mask)
        x = functional.global_avg_pool(x)
        x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.num_classes, kernel_init=initializers.lecun_normal(), dtype=self.dtype, name="head")(x)


class InceptionV3(InceptionNetwork):
    """A `InceptionNetwork` whose auxiliary head counts 0.4, as in torchvision's training."""

    auxiliary_weight = 0.4

    def torch_names(self):
        """As `Network.torch_names`; torchvision's network has batch norm alone."""
        if not makes_batch_norm(self.norm):
            return super().torch_names()
        steps = [j for j, step in enumerate(STEM, 1) if isinstance(step, Conv)]
        names = {f"stem/conv{j}": theirs for j, theirs in zip(steps, TORCH_STEM, strict=True)}
        for stage, modules in STAGES.items():
            for letter, branches in modules.items() if stage != "stem" else ():
                labels = TORCH_BRANCHES.get(stage + letter, TORCH_BRANCHES[stage])
                for i, (label, steps) in enumerate(zip(labels, branches, strict=False), 1):  # not a pool alone
                    theirs = f"Mixed_{stage[-1]}{letter}.{label}"
                    names |= {f"{stage}{letter}/branch{i}_conv{j}": f"{theirs}{k}" for j, k in _numbers(steps)}
        names |= {f"auxiliary1/conv{i + 1}": f"AuxLogits.conv{i}" for i in (0, 1)}
        names = {f"{ours}/{a}": f"{names[ours]}.{b}" for ours in names for a, b in (("conv", "conv"), ("norm", "bn"))}
        return names | {"auxiliary1/head": "AuxLogits.fc", "head": "fc"}


def _numbers(steps):
    """[(our number of a convolution in a branch, what torchvision appends to the branch's name)]."""
    if sum(not isinstance(step, Pool) for step in steps) < 2:
        return [(len(steps), "")]
    return [
        (f"{j}{letter}", f"_{j}{letter}")
        for j, step in enumerate(steps, 1)
        for letter in ("ab" if isinstance(step, Fork) else ("",))
    ]


def inception_v3(
    num_classes=1000, *, auxiliary=True, norm="batch", dropout=0.5, auxiliary_dropout=0.0, epsilon=1e-3, dtype=None
):
    """torchvision's Inception v3. Called with train=True, it returns (logits, logits of the auxiliary head).

    Args:
      num_classes: logits.
      auxiliary: whether the network has the auxiliary head, used in training alone. 27,161,264 parameters with it,
        23,834,568 without.
      norm: behind every convolution: a word of `units.NORMS` or a factory; without, biases in its place.
      dropout: the probability to drop an input of the last layer.
      auxiliary_dropout: and of the auxiliary head's last layer.
      epsilon: of the norms.
      dtype: of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1]; when called, images of less than 75x75 pixels, or 299x299
        in training with the auxiliary head.
    """
    check("inception_v3", num_classes, dropout=dropout, auxiliary_dropout=auxiliary_dropout)
    return InceptionV3(
        STAGES,
        freeze({"stage6e": InceptionHead}),
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
