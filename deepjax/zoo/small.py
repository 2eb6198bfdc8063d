"""Two small convolutional networks: that of Wan et al. for MNIST, and one of asymmetric convolutions for CIFAR."""

import flax.linen as nn
import jax

from deepjax import functional
from deepjax.errors import InputError
from deepjax.layers import Conv, Dense, DropConnectDense, Dropout
from deepjax.units import normalize
from deepjax.zoo.network import INITS, Network, check_at_least_one, check_option, check_rate

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


class AsymmetricCNN(Network):
    """Three stages of alternating 1x3 and 3x1 convolutions, each followed by pooling, then two dense layers."""

    width: int

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stage1, stage2, stage3."""
        self.check_images(x)
        maps, bias, init = {}, self.norm is None, self.kernel_init
        for stage in (1, 2, 3):
            features = self.width * 2 ** (stage - 1)
            for i, window in enumerate(((1, 3), (3, 1)) * 2):
                name = f"stage{stage}_conv{i + 1}"
                padding = [size // 2 for size in window]
                conv = Conv(features, window, 1, padding, use_bias=bias, kernel_init=init, dtype=self.dtype, name=name)
                x = self._finish(conv(x), f"stage{stage}_norm{i + 1}", train, mask)
            x = maps[f"stage{stage}"] = functional.max_pool(x, 2)
        if self.features_only:
            return maps
        x = Dropout(self.dropout)(x.reshape(x.shape[0], -1), train=train)
        hidden = Dense(4 * self.width, use_bias=bias, kernel_init=init, dtype=self.dtype, name="hidden")
        return self.classify(self._finish(hidden(x), "hidden_norm", train, mask), train=train)

    def _finish(self, x, name, train, mask):
        return functional.relu(normalize(x, self.norm, train=train, mask=mask, name=name))


def cifar_asymmetric(num_classes=100, *, width=64, norm="none", dropout=0.0, dtype=None):
    """Make the CIFAR-100 network "1x3-3x1" of the lecture: asymmetric convolutions instead of 3x3 ones.

    It has three stages of `width`, 2 `width` and 4 `width` features. Each is 1x3, 3x1, 1x3, 3x1, every convolution
    followed by ReLU, then 2x2 max pooling. Two dense layers follow, of 4 `width` ReLU units and of the logits. There
    are 1,973,924 parameters for images of 32x32x3 and 100 classes.

    Args:
      num_classes: number of logits.
      width: features of the first stage.
      norm: normalization before every ReLU: a name in `units.NORMS`, or a module factory. "none": biases instead.
      dropout: probability that an input of the two dense layers is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm, a dropout outside [0, 1], a width below 1. When called: images smaller than 8x8
        pixels.
    """
    check_at_least_one("cifar_asymmetric", width=width, num_classes=num_classes)
    check_rate("cifar_asymmetric", dropout=dropout)
    return AsymmetricCNN(
        width,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        usual_input=(32, 32, 3),
        min_size=8,
    )


MODELS = {"mnist_cnn": mnist_cnn, "cifar_asymmetric": cifar_asymmetric}
