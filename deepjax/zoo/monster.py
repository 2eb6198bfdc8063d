"""A network of two parts: the pretrained first layer of AlexNet, and residual units on top of it.

Fleuret, "Deep learning" (course EE-559), the lecture on reusing trained networks. The layer is that of Krizhevsky 2014,
"One weird trick for parallelizing convolutional neural networks", in torchvision's form.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional
from deepjax.layers import Conv
from deepjax.units import Add, Branch, ConvNorm, Unit, branch_and_join, check_branch_init, norm_factory, stack
from deepjax.zoo.cards import Card
from deepjax.zoo.network import INITS, Network, check_at_least_one, check_rate


class Borrowed(nn.Module):
    """The first layer of AlexNet: convolution 11x11 with stride 4, ReLU."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        """[batch, H, W, channels] -> [batch, H', W', 64], 7x7 for images of 32x32 pixels."""
        conv = Conv(64, (11, 11), 4, 2, use_bias=True, kernel_init=INITS["he"], dtype=self.dtype, name="conv")
        return functional.relu(conv(x))


class Monster(Network):
    """First layer of AlexNet, a converter, equal residual units as one scan, global average pool, linear head."""

    depth: int
    width: int
    branch_init: str = "default"  # as of `units.BRANCH_INITS`
    scan: bool = True

    borrowed = {"features/conv": "features.0"}  # noqa: RUF012  from torchvision's alexnet

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are features, converter and units."""
        self.check_images(x)
        common = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        x = features = Borrowed(self.dtype, name="features")(x)
        converter = ConvNorm(self.width, 3, norm=None, **common, name="converter")
        x = converted = converter(x, train=train, mask=mask)
        branch_init, join = branch_and_join(self.branch_init, Add)
        branch = Branch(
            (self.width,) * 2,
            (3, 3),
            (1, 1),
            norm=self.norm,
            branch_init=branch_init,
            branches=self.depth,
            **common,
            parent=None,
        )
        unit = Unit(branch, join(parent=None), parent=None)  # no activation after the sum: x + branch(x)
        units = stack(unit, self.depth, scan=self.scan, remat=self.remat, name="units")
        x = units(x, train=train, mask=mask)
        if self.features_only:
            return {"features": features, "converter": converted, "units": x}
        return self.classify(functional.global_avg_pool(x), train=train)


def monster(
    num_classes=10, *, depth=16, width=64, norm="batch", branch_init="default", dropout=0.0, scan=True, dtype=None
):
    """Make the network of the lecture: first layer of AlexNet, 3x3 convolution, `depth` residual units, logits.

    A unit adds to its input what two 3x3 convolutions make of it, each with batch normalization, with a ReLU between
    them and none after the sum. From images of 32x32 pixels, AlexNet's convolution makes maps of 7x7, which all units
    keep, and which are averaged before the logits. There are 1,244,618 parameters for 10 classes.

    `deepjax train monster --pretrained FILE` takes the first layer from torchvision's AlexNet and freezes it for half
    of the epochs. Here it has the usual initial values.

    Args:
      num_classes: number of logits.
      depth: residual units, of two 3x3 convolutions each.
      width: features of the units, and outputs of the convolution before them, the converter.
      norm: normalization after the convolutions of the units: a name in `units.NORMS`, or a module factory.
      branch_init: initial values of the residual branches; see `residual.imagenet`.
      dropout: probability that an input of the last layer is dropped.
      scan: run equal units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: a depth or width below 1, an unknown norm, a dropout outside [0, 1], a branch_init that does not go
        with the norm. When called: images smaller than 7x7 pixels.
    """
    check_at_least_one("monster", num_classes=num_classes, depth=depth, width=width)
    check_branch_init(branch_init, norm=norm_factory(norm), join=Add)
    check_rate("monster", dropout=dropout)
    return Monster(
        depth,
        width,
        num_classes=num_classes,
        norm=norm,
        branch_init=branch_init,
        dropout=dropout,
        scan=scan,
        dtype=dtype,
        usual_input=(32, 32, 3),
        min_size=7,
    )


MODELS = {"monster": monster}
CARDS = {"monster": Card()}  # of torchvision's AlexNet, from which it borrows
