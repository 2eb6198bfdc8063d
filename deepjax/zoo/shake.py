"""Shake-shake networks: Gastaldi 2017, "Shake-shake regularization" (arXiv 1705.07485), for CIFAR."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.layers import Conv
from deepjax.units import NORMS, Add, Branch, Norm, Shake, Unit, normalize, stack
from deepjax.zoo.network import Network, check_at_least_one, check_option
from deepjax.zoo.residual import units_per_stage


class TwoPaths(nn.Module):
    """A shortcut that changes the shape: ReLU, then two strided 1x1 convolutions with half of the features each.

    The second one gets the image shifted up and left by one pixel, with zeros beyond the edge, so it takes the pixel
    diagonally next to the one that the first takes. A norm follows their concatenation.
    """

    features: int
    stride: int = 1
    norm: Norm | None = NORMS["batch"]
    kernel_init: Callable = initializers.he_normal(mode="fan_out")
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / stride, W / stride, features]."""
        x = functional.relu(x)
        shifted = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
        halves = (self.features // 2, self.features - self.features // 2)
        paths = [
            Conv(
                features,
                (1, 1),
                self.stride,
                0,
                use_bias=self.norm is None,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"conv{i + 1}",
            )(path)
            for i, (features, path) in enumerate(zip(halves, (x, shifted), strict=True))
        ]
        return normalize(jnp.concatenate(paths, -1), self.norm, train=train, mask=mask, name="norm")


class ShakeShakeNet(Network):
    """Stem, stages of units with two branches each, ReLU, global average pool, linear head."""

    depths: tuple[int, ...]  # units of each stage
    features: tuple[int, ...]  # of each stage
    stem_features: int = 16
    forward: str = "shake"
    backward: str = "shake"
    per: str = "image"
    scan: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stem, stage1, stage2, ..."""
        self.check_images(x)
        stem = Conv(
            self.stem_features,
            (3, 3),
            1,
            1,
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="stem_conv",
        )
        x = normalize(stem(x), self.norm, train=train, mask=mask, name="stem_norm")
        maps = {"stem": x}
        for i, (depth, features) in enumerate(zip(self.depths, self.features, strict=True), 1):
            first = self._unit(features, x.shape[-1], 1 if i == 1 else 2, name=f"stage{i}_first")
            x = first(x, train=train, mask=mask)
            if depth > 1:
                unit = self._unit(features, features, 1, name=None)
                units = stack(unit, depth - 1, scan=self.scan, remat=self.remat, name=f"stage{i}_rest")
                x = units(x, train=train, mask=mask)
            maps[f"stage{i}"] = x
        if self.features_only:
            return maps
        return self.classify(functional.global_avg_pool(functional.relu(x)), train=train)

    def _unit(self, features, features_in, stride, name):
        brick = {"norm": self.norm, "kernel_init": self.kernel_init, "dtype": self.dtype, "parent": None}
        a, b = (Branch((features,) * 2, (3, 3), (stride, 1), **brick) for _ in range(2))
        changes = stride != 1 or features != features_in
        return Unit(
            Shake(a, b, functional.relu, self.forward, self.backward, self.per, parent=None),
            Add(parent=None),
            TwoPaths(features, stride, **brick) if changes else None,
            name=name,
            parent=self if name else None,
        )


def shake_shake(
    depth=26,
    num_classes=10,
    *,
    width=96,
    forward="shake",
    backward="shake",
    per="image",
    norm="batch",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """Make the network of Gastaldi 2017, section 2.1, with units of two branches.

    Args:
      depth: layers with kernels along one branch, 6n + 2: 26 in the paper.
      num_classes: number of logits.
      width: features of the first stage; the second has twice, the third four times as many. The paper's networks
        2x32d, 2x64d and 2x96d have widths 32, 64 and 96.
      forward, backward, per: how branches are mixed; see `functional.shake_shake`. The best of the paper are "shake",
        "shake", "image" for the wider networks, and "shake", "even", "image" for the others.
      norm: a name in `units.NORMS`, or a module factory. With "none", convolutions have biases.
      dropout: probability that an input of the last layer is dropped.
      scan: run equal units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: a depth that is not 6n + 2, a width below 1, an unknown forward, backward, per or norm.
    """
    units = units_per_stage(depth, 6)
    check_at_least_one("shake_shake", width=width, num_classes=num_classes)
    check_option("shake_shake", "forward", forward, ("shake", "even"))
    check_option("shake_shake", "backward", backward, ("shake", "even", "keep"))
    check_option("shake_shake", "per", per, ("image", "batch"))
    return ShakeShakeNet(
        depths=(units,) * 3,
        features=(width, 2 * width, 4 * width),
        forward=forward,
        backward=backward,
        per=per,
        num_classes=num_classes,
        norm=norm,
        dropout=dropout,
        scan=scan,
        dtype=dtype,
        usual_input=(32, 32, 3),
    )


MODELS = {
    "shake_shake": shake_shake,
    **{f"shake_shake26_2x{width}d": partial(shake_shake, 26, width=width) for width in (32, 64, 96)},
}
