"""Networks for CIFAR without dense layers: network in network, and those of "Striving for simplicity".

Lin et al. 2014, "Network in network" (arXiv 1312.4400). Springenberg et al. 2015, "Striving for simplicity: the all
convolutional net" (arXiv 1412.6806), tables 1 and 2. In both, the last 1x1 convolution has one map for each class,
followed by a ReLU. The logits are the means of these maps.
"""

from flax.core import freeze

from deepjax.zoo.network import INITS, named
from deepjax.zoo.steps import Convolve, Pool, RandomDrop
from deepjax.zoo.table import TableNetwork, check_table

POOL = Pool(ceil=True)  # 32 pixels become 16 and 8

NIN = (
    (Convolve(192, 5), Convolve(160), Convolve(96), POOL, RandomDrop()),
    (Convolve(192, 5), Convolve(192), Convolve(192), Pool("avg", ceil=True), RandomDrop()),
    (Convolve(192, 3), Convolve(192)),
)

SIMPLE = {  # the stages of n features that table 2 derives from model C's
    "C": lambda n: (Convolve(n, 3), Convolve(n, 3), POOL),
    "Strided-CNN-C": lambda n: (Convolve(n, 3), Convolve(n, 3, 2)),
    "ConvPool-CNN-C": lambda n: (Convolve(n, 3), Convolve(n, 3), Convolve(n, 3), POOL),
    "All-CNN-C": lambda n: (Convolve(n, 3), Convolve(n, 3), Convolve(n, 3, 2)),
}
MIN_SIZE = {"C": 12, "Strided-CNN-C": 9, "ConvPool-CNN-C": 12, "All-CNN-C": 9}


def nin(num_classes=10, *, norm="none", order="post", dropout=0.5, dtype=None):
    """Make the network in network of Lin et al. 2014 for CIFAR.

    It has three 5x5 or 3x3 convolutions, each followed by two 1x1 convolutions. The paper gives neither widths nor
    pools. They are those of the authors' released definition, whose second pool takes means. The network has 966,986
    parameters for 10 classes.

    Args:
      num_classes: number of logits.
      norm: normalization of the convolutions but the last: "none", "batch", "group", "layer" or "instance".
      order: "post": the norm before the ReLU; "last": after it.
      dropout: probability that an activation after a pool is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm or order, order "last" without a norm, a dropout outside [0, 1]. When called: images
        smaller than 4x4 pixels.
    """
    check_table("nin", norm=norm, order=order, num_classes=num_classes, dropout=dropout)
    return _network(NIN, 4, order, num_classes, norm, dropout, dtype)


def simple(model, num_classes=10, *, norm="none", order="post", input_dropout=0.2, dropout=0.5, dtype=None):
    """Make model C of Springenberg et al. 2015, or one that table 2 derives from it.

    Strided-CNN-C has no pools; the convolutions before them have the stride instead. ConvPool-CNN-C has one more
    convolution before each pool. All-CNN-C replaces each pool by a convolution of stride 2. The first convolution of
    the last stage has no padding, because the paper averages over 6x6 pixels for images of 32x32. For 10 classes, C
    and Strided-CNN-C have 954,730 parameters, ConvPool-CNN-C and All-CNN-C 1,369,738.

    Args:
      model: a key of `SIMPLE`.
      num_classes: number of logits.
      norm: normalization of the convolutions but the last: "none", "batch", "group", "layer" or "instance".
      order: "post": the norm before the ReLU; "last": after it.
      input_dropout: probability that a value of the image is dropped (section 3.1).
      dropout: probability that an activation after a pool, or after the layer that replaces it, is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm or order, order "last" without a norm, a rate outside [0, 1]. When called: images
        smaller than 12x12 pixels, or 9x9 without pools.
    """
    check_table(model, norm=norm, order=order, num_classes=num_classes, input_dropout=input_dropout, dropout=dropout)
    last = (Convolve(192, 3, padding=0), Convolve(192))
    stages = (*((*SIMPLE[model](features), RandomDrop()) for features in (96, 192)), last)
    return _network(stages, MIN_SIZE[model], order, num_classes, norm, dropout, dtype, input_dropout)


def _network(stages, min_size, order, num_classes, norm, dropout, dtype, input_dropout=0.0):
    return TableNetwork(
        freeze({f"stage{i}": steps for i, steps in enumerate(stages, 1)}),
        head="conv",
        input_dropout=input_dropout,
        order=order,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        usual_input=(32, 32, 3),
        min_size=min_size,
    )


MODELS = {"nin": nin} | named(
    simple,
    cnn_c={"model": "C"},
    strided_cnn_c={"model": "Strided-CNN-C"},
    convpool_cnn_c={"model": "ConvPool-CNN-C"},
    all_cnn_c={"model": "All-CNN-C"},
)
