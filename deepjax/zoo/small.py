"""Two small convolutional networks: that of Wan et al. for MNIST, and one of asymmetric convolutions for CIFAR."""

import flax.linen as nn
import jax
from flax.core import freeze

from deepjax import functional
from deepjax.errors import InputError
from deepjax.layers import Conv, Dense, DropConnectDense, Dropout
from deepjax.zoo.network import INITS, Network, check_at_least_one, check_option, check_rate, named
from deepjax.zoo.steps import Convolve
from deepjax.zoo.table import TableNetwork, check_table

RATE = 0.5


class MnistCNN(Network):
    """Two convolutions with pooling, a dense layer that drops activations or connections, and the logits."""

    width: int
    drop: str = "none"
    rate: float = RATE

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stage1 and stage2."""
        self.check_images(x)
        maps = {}
        for i, features in enumerate((self.width, 2 * self.width)):
            x = Conv(
                features,
                (5, 5),
                padding="VALID",
                use_bias=True,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"conv{i + 1}",
            )(x)
            x = maps[f"stage{i + 1}"] = functional.max_pool(functional.relu(x), 2)
        if self.features_only:
            return maps
        x = x.reshape(x.shape[0], -1)
        if self.drop == "dropconnect":
            x = DropConnectDense(150, self.rate, kernel_init=self.kernel_init, dtype=self.dtype, name="hidden")(
                x, train=train
            )
        else:
            hidden = Dense(150, kernel_init=self.kernel_init, dtype=self.dtype, name="hidden")
            x = functional.relu(hidden(x))
            x = Dropout(self.rate if self.drop == "dropout" else 0.0)(x, train=train)
        return self.classify(x, train=train)


def mnist_cnn(num_classes=10, *, width=32, drop="none", rate=RATE, dtype=None):
    """Make the MNIST network of Wan et al. 2013, "Regularization of neural networks using DropConnect", table 3.

    It has two 5x5 convolutions without padding, of `width` and 2 `width` features, each followed by ReLU and 2x2 max
    pooling, then 150 ReLU units and the logits: 207,356 parameters for images of 28x28x1 and 10 classes.

    Args:
      num_classes: number of logits.
      width: features of the first convolution; 32 in the paper.
      drop: what is dropped in the layer of 150 units, in training: nothing ("none"), its activations ("dropout"), or
        its connections ("dropconnect", with Gaussian moment matching in inference; see `layers.DropConnectDense`).
      rate: probability that one of these is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown drop, a rate outside [0, 1] or without a drop, a width below 1. When called: images
        smaller than 16x16 pixels.
    """
    check_at_least_one("mnist_cnn", width=width, num_classes=num_classes)
    check_option("mnist_cnn", "drop", drop, ("none", "dropout", "dropconnect"))
    check_rate("mnist_cnn", rate=rate)
    if rate != RATE and drop == "none":
        raise InputError(f"mnist_cnn: rate {rate} does nothing with drop none; set drop dropout or dropconnect")
    return MnistCNN(
        width,
        drop,
        rate,
        num_classes=num_classes,
        norm="none",
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        usual_input=(28, 28, 1),
        min_size=16,
    )


def asymmetric(features, num_classes=100, *, width=32, norm="none", dropout=0.0, dtype=None):
    """Make the lecture's example for CIFAR-100, whose convolutions are 1x3 and 3x1 instead of 3x3.

    A block is two pairs of a 1x3 and a 3x1 convolution. Two blocks of one number of features make a stage. Between two
    stages, a 3x3 convolution of stride 2 halves the resolution. Every convolution is followed by ReLU. The last map is
    averaged over its pixels, and the logits follow.

    `cifar_asymmetric` has the lecture's table: stages of 32 and 128 features, each followed by the convolution of
    stride 2. It has 549,156 parameters for 100 classes. The lecture's text says "about 2M", which is the number of
    `cifar_asymmetric_2m`, 2,038,564: it has two more blocks, of 256 features at 8x8 pixels.

    The receptive fields after the table's rows are 5, 9, 11, 19, 27 and 31 pixels. The lecture prints 15, 15 and 23 for
    the third to the fifth, but a 3x3 convolution at full resolution adds 2 pixels to 9, and a block at half of it 8.

    Args:
      features: features of the stages, as multiples of `width`. A stage after the second is not followed by a
        convolution of stride 2.
      num_classes: number of logits.
      width: features of the first stage.
      norm: normalization before every ReLU: a name in `units.NORMS`, or a module factory. "none": biases instead.
      dropout: probability that an input of the last layer is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1], a width below 1.
    """
    check_at_least_one("cifar_asymmetric", width=width)
    check_table("cifar_asymmetric", num_classes=num_classes, dropout=dropout)
    stages = {}
    for i, scale in enumerate(features):
        for block in (2 * i + 1, 2 * i + 2):
            stages[f"block{block}"] = (Convolve(scale * width, (1, 3)), Convolve(scale * width, (3, 1))) * 2
        if i < 2:
            stages[f"sub{i + 1}"] = (Convolve(scale * width, 3, 2),)
    return TableNetwork(
        freeze(stages),
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        usual_input=(32, 32, 3),
    )


MODELS = {"mnist_cnn": mnist_cnn} | named(
    asymmetric, cifar_asymmetric={"features": (1, 4)}, cifar_asymmetric_2m={"features": (1, 4, 8)}
)
