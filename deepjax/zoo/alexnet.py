"""AlexNet, in the published form and in torchvision's form, and ZFNet.

Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks" (sections 3 to 5).
Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks" (arXiv 1404.5997), footnote 1: the
single-tower network that torchvision has. Zeiler & Fergus 2014, "Visualizing and understanding convolutional networks"
(arXiv 1311.2901), figure 3.
"""

from flax.core import freeze

from deepjax import initializers
from deepjax.zoo.cards import Card
from deepjax.zoo.network import INITS
from deepjax.zoo.steps import Convolve, LocalNorm, Pool, sequential_names
from deepjax.zoo.table import TableNetwork, check_table

GAUSSIAN = initializers.gaussian(0.01)
GRID = 6
LRN = LocalNorm(5, alpha=5e-4, beta=0.75, k=2.0)  # Krizhevsky et al. 2012, section 3.3: n 5, k 2, alpha 1e-4 per entry

TORCHVISION = freeze(
    {
        "stage1": (Convolve(64, 11, 4, 2), Pool()),
        "stage2": (Convolve(192, 5), Pool()),
        "stage3": (Convolve(384, 3),),
        "stage4": (Convolve(256, 3),),
        "stage5": (Convolve(256, 3), Pool()),
    }
)
PAPER = {
    "stage1": (Convolve(96, 11, 4, 0), LRN, Pool()),
    "stage2": (Convolve(256, 5, groups=2, bias=1.0), LRN, Pool()),
    "stage3": (Convolve(384, 3),),
    "stage4": (Convolve(384, 3, groups=2, bias=1.0),),
    "stage5": (Convolve(256, 3, groups=2, bias=1.0), Pool()),
}
ZEILER_FERGUS = {
    "stage1": (Convolve(96, 7, 2, 1), Pool(ceil=True), LRN),
    "stage2": (Convolve(256, 5, 2, 0), Pool(ceil=True), LRN),
    "stage3": (Convolve(384, 3),),
    "stage4": (Convolve(384, 3),),
    "stage5": (Convolve(256, 3), Pool(ceil=True)),
}


class AlexNet(TableNetwork):
    """Five convolutions, two hidden layers of 4,096 units, the logits."""

    def torch_names(self):
        """See `Network.torch_names`. torchvision has the network of `alexnet` only."""
        if self.stages != TORCHVISION or self.norm is not None:
            return super().torch_names()
        names = sequential_names(self.stages, norm=False)
        return names | {"hidden1": ("classifier.1", (GRID, GRID)), "hidden2": "classifier.4", "head": "classifier.6"}


def alexnet(num_classes=1000, *, norm="none", order="post", dropout=0.5, dtype=None):
    """Make torchvision's AlexNet: one tower, no local response normalization, 61,100,840 parameters.

    The last maps are averaged to 6x6 pixels, which is their size for images of 224x224.

    Args:
      num_classes: number of logits.
      norm: normalization of the convolutions: "none", "batch", "group", "layer" or "instance".
      order: "post": the norm before the ReLU; "last": after it.
      dropout: probability that an input of the two hidden layers is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm or order, order "last" without a norm, a dropout outside [0, 1]. When called: images
        smaller than 63x63 pixels.
    """
    check_table("alexnet", norm=norm, order=order, num_classes=num_classes, dropout=dropout)
    return AlexNet(
        TORCHVISION,
        grid=GRID,
        hidden=(4096, 4096),
        drops="inputs",
        order=order,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        min_size=63,
    )


def alexnet_paper(num_classes=1000, *, lrn=True, norm="none", order="post", dropout=0.5, dtype=None):
    """Make the AlexNet of Krizhevsky et al. 2012, figure 2: two groups of features, 60,965,224 parameters.

    The network is designed for images of 227x227 pixels. The paper gives 224x224, but only 227x227 without padding
    produces its maps of 55x55. Kernels start from a normal distribution with standard deviation 0.01. Biases start at
    1 in convolutions 2, 4, 5 and the hidden layers, and at 0 in the others (section 5). For images of other sizes, the
    last maps are averaged to 6x6.

    Args:
      num_classes: number of logits.
      lrn: local response normalization after the ReLU of convolutions 1 and 2 (section 3.3).
      norm, order, dtype: see `alexnet`.
      dropout: probability that a unit of the two hidden layers is dropped (section 4.2).

    Raises:
      InputError: see `alexnet`. When called: images smaller than 67x67 pixels.
    """
    return _with_lrn("alexnet_paper", PAPER, lrn, 1.0, (227, 227, 3), 67, num_classes, norm, order, dropout, dtype)


def zfnet(num_classes=1000, *, lrn=True, norm="none", order="post", dropout=0.5, dtype=None):
    """Make the network of Zeiler & Fergus 2014, figure 3: 62,357,608 parameters.

    The figure gives maps of 110, 55, 26, 13 and 6 pixels for images of 224x224. They follow from 1 pixel of padding in
    convolution 1, none in convolution 2, and pools that keep the window at the edge (ceil mode). The paper's "contrast
    normalized across feature maps" after the pools of stages 1 and 2 is implemented as Krizhevsky's local response
    normalization. Kernels start from a normal distribution with standard deviation 0.01, biases at 0 (section 3). For
    images of other sizes, the last maps are averaged to 6x6.

    Args:
      num_classes: number of logits.
      lrn: whether the network has the contrast normalization.
      norm, order, dtype: see `alexnet`.
      dropout: probability that a unit of the two hidden layers is dropped.

    Raises:
      InputError: see `alexnet`. When called: images smaller than 47x47 pixels.
    """
    return _with_lrn("zfnet", ZEILER_FERGUS, lrn, 0.0, (224, 224, 3), 47, num_classes, norm, order, dropout, dtype)


def _with_lrn(name, stages, lrn, bias, usual_input, min_size, num_classes, norm, order, dropout, dtype):
    check_table(name, norm=norm, order=order, num_classes=num_classes, dropout=dropout)
    return AlexNet(
        freeze({stage: tuple(step for step in steps if lrn or step != LRN) for stage, steps in stages.items()}),
        grid=GRID,
        hidden=(4096, 4096),
        hidden_bias=bias,
        order=order,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=GAUSSIAN,
        dtype=dtype,
        usual_input=usual_input,
        min_size=min_size,
    )


MODELS = {"alexnet": alexnet, "alexnet_paper": alexnet_paper, "zfnet": zfnet}
CARDS = {"alexnet": Card()}
