"""Networks that measure the speed of software.

Shi et al. 2016, "Benchmarking state-of-the-art deep learning software tools" (arXiv 1608.07249): FCN-S for synthetic
data; FCN-R and AlexNet-R for MNIST and CIFAR-10 (table 7). The layers are those of the authors' programs (dlbench).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
from flax.core import freeze

from deepjax import functional
from deepjax.layers import Dense
from deepjax.zoo.network import INITS, Network, check_at_least_one, check_rate
from deepjax.zoo.steps import Convolve, Pool
from deepjax.zoo.table import TableNetwork, check_table

ALEXNET_R = freeze(
    {
        "stage1": (Convolve(32, 5), Pool()),
        "stage2": (Convolve(32, 5), Pool()),
        "stage3": (Convolve(64, 5), Pool("avg")),
    }
)


class FullyConnected(Network):
    """Flatten, then dense layers of sigmoid units, then the logits."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> see `Network`; its maps are vectors: hidden1, hidden2, ..."""
        x, maps = x.reshape(x.shape[0], -1), {}
        for i, width in enumerate(self.widths, 1):
            dense = Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name=f"hidden{i}")
            x = maps[f"hidden{i}"] = functional.sigmoid(dense(x))
        return maps if self.features_only else self.classify(x, train=train, kernel_init=self.kernel_init)


def fcn_s(num_classes=26752, *, dropout=0.0, dtype=None):
    """Make FCN-S of Shi et al. 2016: 26,752 inputs, three hidden layers of 2,048 sigmoid units, 26,752 classes.

    It has 117,997,696 parameters. The kernels are initialized by Xavier's uniform rule.

    Args:
      num_classes: number of logits.
      dropout: probability that a unit of the last hidden layer is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: num_classes below 1, a dropout outside [0, 1].
    """
    return _fully_connected("fcn_s", (2048, 2048, 2048), (1, 1, 26752), num_classes, dropout, dtype)


def fcn_r(num_classes=10, *, dropout=0.0, dtype=None):
    """Make FCN-R of Shi et al. 2016 for MNIST, with hidden layers of 2,048, 4,096 and 1,024 sigmoid units.

    It has 14,205,962 parameters for images of 28x28x1 and 10 classes. Arguments and errors are those of `fcn_s`.
    """
    return _fully_connected("fcn_r", (2048, 4096, 1024), (28, 28, 1), num_classes, dropout, dtype)


def _fully_connected(name, widths, usual_input, num_classes, dropout, dtype):
    check_at_least_one(name, num_classes=num_classes)
    check_rate(name, dropout=dropout)
    return FullyConnected(
        widths,
        num_classes=num_classes,
        norm="none",
        dropout=dropout,
        kernel_init=INITS["xavier_uniform"],
        dtype=dtype,
        usual_input=usual_input,
    )


def alexnet_r(num_classes=10, *, norm="none", order="post", dropout=0.0, dtype=None):
    """Make AlexNet-R of Shi et al. 2016 for CIFAR-10: cuda-convnet's 18% network without its response norms.

    It has 5x5 convolutions of 32, 32 and 64 features, each followed by a ReLU and a 3x3 pool of stride 2, of which the
    last takes means, then the logits: 85,098 parameters for images of 32x32x3 and 10 classes.

    Args:
      num_classes: number of logits.
      norm: normalization of the convolutions: a name in `units.NORMS`, or a module factory.
      order: "post": the norm before the ReLU; "last": after it.
      dropout: probability that an input of the last layer is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm or order, order "last" without a norm, a dropout outside [0, 1]. When called: images
        smaller than 15x15 pixels.
    """
    check_table("alexnet_r", norm=norm, order=order, num_classes=num_classes, dropout=dropout)
    return TableNetwork(
        ALEXNET_R,
        grid=None,
        order=order,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        usual_input=(32, 32, 3),
        min_size=15,
    )


MODELS = {"fcn_s": fcn_s, "fcn_r": fcn_r, "alexnet_r": alexnet_r}
