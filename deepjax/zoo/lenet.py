"""LeNet-5 of LeCun et al. 1998, "Gradient-based learning applied to document recognition", and two modern forms."""

import math
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import freeze

from deepjax import functional, initializers
from deepjax.functional.arrays import at_least_float32, spread
from deepjax.layers import Conv, Dense
from deepjax.zoo.network import INITS, Network, check_at_least_one
from deepjax.zoo.steps import Convolve, Pool
from deepjax.zoo.table import TableNetwork, check_table

SIDE = 32  # height and width, in pixels, for which LeNet-5 was designed
UNITS = 84  # of F6: 12 rows of 7 pixels

TABLE = (  # table I: the maps of S2 that are inputs of each map of C3
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

DIGITS = """
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
..###.. ...##.. .#####. ####### ....##. ####### ..####. ####### .#####. .#####.
.##.##. ..###.. ##...## .....## ...###. ##..... .##.... .....## ##...## ##...##
##...## .####.. .....## ....##. ..####. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## ...##.. .##.##. ######. ##..... ....##. ##...## ##...##
##...## ...##.. ....##. ..####. ##..##. ##...## ######. ....##. .#####. ##...##
##...## ...##.. ...##.. .....## ##..##. .....## ##...## ...##.. ##...## .######
##...## ...##.. ..##... .....## ####### .....## ##...## ...##.. ##...## .....##
##...## ...##.. .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ....##. ##...## ##...## ..##... ##...## ....##.
..###.. .###### ####### .#####. ....##. .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
"""


@cache
def codes(num_classes):
    """Return the target output of F6 for each class: f32[num_classes, 84] of -1 and 1.

    The first ten are images of the digits, 12 rows of 7 pixels, in the style of figure 3. Further classes have fixed
    random codes, which do not depend on the number of classes. Among 1,000 classes, two digits differ in at least 10
    places, and two other classes in at least 21.

    >>> print(*("".join(".#"[int(pixel > 0)] for pixel in row) for row in codes(10)[7].reshape(12, 7)[1:4]))
    ####### .....## .....##
    """
    rows = [line.split() for line in DIGITS.split("\n") if line]
    digits = [[2.0 * (pixel == "#") - 1 for row in rows for pixel in row[digit]] for digit in range(10)]
    others = (
        2.0 * np.random.RandomState(0).randint(2, size=(max(num_classes - 10, 0), UNITS)) - 1
    )  # RandomState, because its stream is the same in all versions of NumPy
    return np.concatenate([digits, others]).astype(np.float32)[:num_classes]


def fan_in_uniform(key, shape, dtype=None):
    """Draw uniformly from [-2.4 / F, 2.4 / F), where F is the number of inputs of a unit (section III.A)."""
    return initializers.uniform(2.4 / math.prod(shape[:-1]))(key, shape, dtype)


class Subsample(nn.Module):
    """The sum over each 2x2 window times a coefficient, plus a bias, then the squashing function.

    There are two parameters for each map. The coefficients start at 1/4, so the sum starts as a mean.
    """

    @nn.compact
    def __call__(self, x):
        """[batch, H, W, features] -> [batch, H / 2, W / 2, features]."""
        scale = self.param("scale", initializers.constant(0.25), x.shape[-1:], jnp.float32)
        bias = self.param("bias", initializers.zeros, x.shape[-1:], jnp.float32)
        x = 4 * functional.avg_pool(x, 2)
        return functional.lecun_tanh(spread(scale, x) * x + spread(bias, x))


class TableConv(nn.Module):
    """C3: 5x5 convolutions, each over its maps of `TABLE`. Outputs with equally many inputs share one kernel array."""

    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        """[batch, H, W, 6] -> [batch, H - 4, W - 4, 16], squashed."""
        parts = []
        for inputs in (3, 4, 6):
            rows = [row for row in TABLE if len(row) == inputs]
            conv = Conv(
                len(rows),
                (5, 5),
                padding="VALID",
                groups=len(rows),
                use_bias=True,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"from{inputs}",
            )
            parts.append(conv(x[..., np.concatenate(rows)]))
        return functional.lecun_tanh(jnp.concatenate(parts, -1))


class LeNet5(Network):
    """C1, S2, C3, S4, C5, F6 and an output layer of radial basis functions (section II.B)."""

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are c1, s2, c3, s4, c5."""
        self.check_images(x)
        small = [max(SIDE - size, 0) for size in x.shape[1:3]]
        if any(small):
            x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in small), (0, 0)), mode="edge")
        maps = {}
        x = maps["c1"] = self._conv(6, "c1")(x)
        x = maps["s2"] = Subsample(name="s2")(x)
        x = maps["c3"] = TableConv(self.kernel_init, self.dtype, name="c3")(x)
        x = maps["s4"] = Subsample(name="s4")(x)
        x = maps["c5"] = self._conv(120, "c5")(x)
        if self.features_only:
            return maps
        f6 = Dense(UNITS, kernel_init=self.kernel_init, dtype=self.dtype, name="f6")
        x = functional.lecun_tanh(f6(functional.global_avg_pool(x)))
        if not self.return_logits:
            return x
        wide = at_least_float32(x)
        return -jnp.square(wide[:, None] - codes(self.num_classes)[None]).sum(-1).astype(x.dtype)

    def _conv(self, features, name):
        conv = Conv(
            features,
            (5, 5),
            padding="VALID",
            use_bias=True,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name=name,
        )
        return lambda x: functional.lecun_tanh(conv(x))


def lenet5(num_classes=10, *, dtype=None):
    """Make LeNet-5 as published, with 60,000 trainable parameters (section II.B).

    The logits are the negative squared distances between F6 and the codes of the classes (eq. 7), so the largest logit
    belongs to the nearest code. Their cross entropy is eq. 9 without its rubbish class. The codes are constants (see
    `codes`).

    The network is designed for images of 32x32 pixels. Smaller ones, such as MNIST's 28x28, are padded to this size
    with the pixels of their edges, which are background in MNIST, as in the paper. For larger images, C5 has more than
    one pixel, and the input of F6 is their mean.

    Args:
      num_classes: classes, each with a code.
      dtype: dtype of the computation.

    Raises:
      InputError: num_classes below 1. When called: images smaller than 28x28 pixels.
    """
    check_at_least_one("lenet5", num_classes=num_classes)
    return LeNet5(
        num_classes=num_classes,
        norm=None,
        kernel_init=fan_in_uniform,
        dtype=dtype,
        usual_input=(SIDE, SIDE, 1),
        min_size=28,
    )


def lenet5_modern(num_classes=10, *, norm="none", order="post", dropout=0.0, dtype=None):
    """Make LeNet-5 in its modern form: ReLU, max pooling, C3 connected to all of S2, a dense layer for the logits.

    It has 5x5 convolutions of 6 (padded by 2 pixels) and of 16 features, each followed by a 2x2 pool, then 120, 84 and
    `num_classes` units: 61,706 parameters for images of 28x28x1 and 10 classes.

    Args:
      num_classes: number of logits.
      norm: normalization of the convolutions: a name in `units.NORMS`, or a module factory.
      order: "post": the norm before the ReLU; "last": after it.
      dropout: probability that a unit of the two hidden layers is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: an unknown norm or order, order "last" without a norm, a dropout outside [0, 1]. When called: images
        smaller than 12x12 pixels.
    """
    stages = {"stage1": (Convolve(6, 5), Pool("max", 2, 2)), "stage2": (Convolve(16, 5, padding=0), Pool("max", 2, 2))}
    return _modern("lenet5_modern", stages, (120, 84), 12, num_classes, norm, order, dropout, dtype)


def mnist_convnet(num_classes=10, *, norm="none", order="post", dropout=0.0, dtype=None):
    """Make the MNIST network of the lecture: conv5-32, pool 3, conv5-64, pool 2, dense 256-200-10.

    The convolutions have no padding, and ReLU and max pooling follow each. From an image of 28x28 pixels there remain
    2x2 pixels of 64 features, which are the 256 inputs of 200 hidden ReLU units. For 10 classes there are 105,506
    parameters.

    Args:
      num_classes, norm, order, dtype: see `lenet5_modern`.
      dropout: probability that a hidden unit is dropped.

    Raises:
      InputError: see `lenet5_modern`. When called: images smaller than 22x22 pixels.
    """
    stages = {
        "stage1": (Convolve(32, 5, padding=0), Pool("max", 3, 3)),
        "stage2": (Convolve(64, 5, padding=0), Pool("max", 2, 2)),
    }
    return _modern("mnist_convnet", stages, (200,), 22, num_classes, norm, order, dropout, dtype)


def _modern(name, stages, hidden, min_size, num_classes, norm, order, dropout, dtype):
    check_table(name, norm=norm, order=order, num_classes=num_classes, dropout=dropout)
    return TableNetwork(
        freeze(stages),
        grid=None,
        hidden=hidden,
        order=order,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        usual_input=(28, 28, 1),
        min_size=min_size,
    )


MODELS = {"lenet5": lenet5, "lenet5_modern": lenet5_modern, "mnist_convnet": mnist_convnet}
