"""Residual networks, and the plain networks that they are compared with.

He et al. 2015, "Deep residual learning for image recognition" (arXiv 1512.03385): table 1 for ImageNet, section 4.2 for
CIFAR. He et al. 2016, "Identity mappings in deep residual networks" (arXiv 1603.05027): pre-activation.

Two options of the residual networks say how their branches start: `norm` (see `units.Branch`) and `skip_init`
(`units.SkipInit`). Without normalization, norm="none", skip_init=True and norm="fixup" train at any depth.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError
from deepjax.layers import Conv
from deepjax.units import (
    Add,
    Branch,
    NormActivation,
    Plain,
    Projection,
    Shift,
    SkipInit,
    Unit,
    ZeroPad,
    check_norm,
    normalize,
    stack,
)

BASIC = (3, 3)
BOTTLENECK = (1, 3, 1)


class ResNet(nn.Module):
    """Stem, stages of equal units, global average pool, linear head.

    Every stage is its first unit, which may change the shape, and a scan over the rest.
    """

    depths: Sequence[int]  # units of each stage
    features: Sequence[Sequence[int]]  # of each convolution in a unit, for each stage
    windows: Sequence[int] = BASIC  # of each convolution in a unit
    num_classes: int = 10
    stem: str = "cifar"  # "cifar": 3x3; "imagenet": 7x7 with stride 2, then a 3x3 max pool with stride 2
    stem_features: int = 16
    stem_stride: int = 1  # of the cifar stem
    order: str = "post"  # "post" or "pre" activation
    shortcut: str = "A"  # where the shape changes; "A": zeros, "B": projection, "C": projection in every unit
    join: Callable = Add
    norm: str = "batch"  # see `units.Branch`
    scan: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> logits [batch, num_classes]."""
        if x.ndim != 4:
            raise InputError(f"images must be [batch, height, width, channels]; x has shape {x.shape}")
        x = self._stem(x, train, mask)
        for i, depth in enumerate(self.depths):
            stride = 1 if i == 0 else 2
            x = self._unit(i, x.shape[-1], stride, name=f"stage{i + 1}_first")(x, train=train, mask=mask)
            if depth > 1:
                unit = self._unit(i, x.shape[-1], 1, name=None)
                x = stack(unit, depth - 1, scan=self.scan, name=f"stage{i + 1}_rest")(x, train=train, mask=mask)
        if self.order == "pre":
            x = NormActivation(norm=self.norm, name="final")(x, train=train, mask=mask)
        x = functional.global_avg_pool(x)
        kernel_init = initializers.lecun_normal()
        if self.norm == "fixup":
            x, kernel_init = Shift(name="head_shift")(x), initializers.zeros
        return nn.Dense(self.num_classes, kernel_init=kernel_init, dtype=self.dtype, name="head")(x)

    def _stem(self, x, train, mask):
        window, stride = (7, 2) if self.stem == "imagenet" else (3, self.stem_stride)
        bias = self.norm == "none"
        conv = Conv(
            self.stem_features, (window, window), stride, window // 2, use_bias=bias, dtype=self.dtype, name="stem_conv"
        )
        x = conv(x)
        # A CIFAR pre-activation net leaves this to its first unit.
        if self.order == "post" or self.stem == "imagenet":
            x = functional.relu(normalize(x, self.norm, train=train, mask=mask, name="stem_norm"))
        return functional.max_pool(x, 3, stride=2, padding=1) if self.stem == "imagenet" else x

    def _unit(self, stage, features_in, stride, name):
        features = self.features[stage]
        changes = stride != 1 or features_in != features[-1]
        # The stride sits on the first 3x3: torchvision's choice for bottlenecks ("ResNet v1.5"), the paper's for basic.
        strides = [1] * len(features)
        strides[self.windows.index(3)] = stride
        pre = self.order == "pre"
        shared = pre and changes  # He et al. 2016: a changing unit's shortcut starts after norm and activation
        # parent=None: each part belongs to the unit that it is given to, and gets its name there.
        shortcut = None
        if self.join is not Plain and (changes or self.shortcut == "C"):
            if self.shortcut == "A":
                shortcut = ZeroPad(features[-1], stride, parent=None)
            else:
                norm = "none" if pre and self.norm == "batch" else self.norm
                shortcut = Projection(features[-1], stride, norm=norm, dtype=self.dtype, parent=None)
        branch = Branch(
            features,
            self.windows,
            strides,
            self.order,
            activated=shared,
            dtype=self.dtype,
            norm=self.norm,
            branches=sum(self.depths),
            parent=None,
        )
        return Unit(
            branch,
            self.join(parent=None),
            shortcut,
            before=NormActivation(norm=self.norm, parent=None) if shared else None,
            activation=None if pre else functional.relu,
            name=name,
            parent=self if name else None,
        )


def cifar(
    depth=32,
    num_classes=10,
    *,
    join,
    width=16,
    shortcut="A",
    stem_stride=1,
    norm="batch",
    skip_init=False,
    scan=True,
    dtype=None,
):
    """The CIFAR network of He et al. 2015, section 4.2: depth 6n + 2, features 16, 32, 64 (times width / 16).

    Args:
      depth: convolutional and fully connected layers: 20, 32, 44, 56, 110, 1202, or any other 6n + 2.
      num_classes: logits.
      join: `Add` for the residual network, `Plain` for its plain twin.
      width: features of the first stage; the second has twice, the third four times as many.
      shortcut: "A", "B" or "C" (section 4.1).
      stem_stride: 2 halves the resolution at once, for a quarter of the cost.
      norm: "batch"; "zero_batch": the last scale of each branch starts at 0; "none": biases in its place; "fixup".
      skip_init: a multiplier of each branch starts at 0.
      scan: equal units as one scan; False unrolls them.
      dtype: of the computation.

    Raises:
      InputError: a depth that is not 6n + 2, an unknown shortcut or norm, a width below 1, branches that start at 0
        twice, or without a skip.
    """
    units = _units_per_stage(depth, 6)
    _check(num_classes=num_classes, width=width, stem_stride=stem_stride, shortcut=shortcut)
    return ResNet(
        depths=(units,) * 3,
        features=tuple((width * scale,) * 2 for scale in (1, 2, 4)),
        num_classes=num_classes,
        stem_features=width,
        stem_stride=stem_stride,
        shortcut=shortcut,
        join=_join(join, skip_init, norm),
        norm=norm,
        scan=scan,
        dtype=dtype,
    )


def cifar_preact(
    depth=164,
    num_classes=10,
    *,
    width=16,
    shortcut="B",
    stem_stride=1,
    norm="batch",
    skip_init=False,
    scan=True,
    dtype=None,
):
    """The pre-activation bottleneck network of He et al. 2016, section 3: depth 9n + 2.

    Arguments as `cifar`; norm "zero_batch" does not go with pre-activation.
    """
    units = _units_per_stage(depth, 9)
    _check(num_classes=num_classes, width=width, stem_stride=stem_stride, shortcut=shortcut)
    return ResNet(
        depths=(units,) * 3,
        features=tuple((width * scale, width * scale, 4 * width * scale) for scale in (1, 2, 4)),
        windows=BOTTLENECK,
        num_classes=num_classes,
        stem_features=width,
        stem_stride=stem_stride,
        order="pre",
        shortcut=shortcut,
        join=_join(Add, skip_init, norm, order="pre"),
        norm=norm,
        scan=scan,
        dtype=dtype,
    )


def imagenet(
    depths,
    num_classes=1000,
    *,
    join,
    bottleneck=False,
    width=64,
    shortcut="B",
    norm="batch",
    skip_init=False,
    scan=True,
    dtype=None,
):
    """The ImageNet network of He et al. 2015, table 1, with torchvision's stride on the 3x3 of bottlenecks.

    Args:
      depths: units of each stage, whose features are width times 1, 2, 4, 8, ...
      num_classes: logits.
      join: `Add` for the residual network, `Plain` for its plain twin.
      bottleneck: units of 1x1, 3x3, 1x1 whose output has four times the features, in place of two 3x3.
      width: features of the stem and the first stage.
      shortcut: "A", "B" or "C" (section 4.1).
      norm: as of `cifar`; "zero_batch" is torchvision's zero_init_residual.
      skip_init: a multiplier of each branch starts at 0.
      scan: equal units as one scan; False unrolls them.
      dtype: of the computation.

    Raises:
      InputError: an empty stage, an unknown shortcut or norm, a width below 1, branches that start at 0 twice, or
        without a skip.
    """
    _check(num_classes=num_classes, width=width, units_per_stage=min(depths, default=0), shortcut=shortcut)
    scales = [width * 2**i for i in range(len(depths))]
    return ResNet(
        depths=tuple(depths),
        features=tuple((s, s, 4 * s) if bottleneck else (s, s) for s in scales),
        windows=BOTTLENECK if bottleneck else BASIC,
        num_classes=num_classes,
        stem="imagenet",
        stem_features=width,
        shortcut=shortcut,
        join=_join(join, skip_init, norm),
        norm=norm,
        scan=scan,
        dtype=dtype,
    )


def _units_per_stage(depth, layers):
    units, rest = divmod(depth - 2, layers)
    if rest or units < 1:
        low = max(units, 1) * layers + 2
        raise InputError(f"depth {depth} is not {layers}n + 2; the nearest are {low} and {low + layers}")
    return units


def _join(join, skip_init, norm, order="post"):
    if skip_init and join is Plain:
        raise InputError("skip_init: a plain network has no skip to start with; take the residual network")
    join = SkipInit if skip_init else join
    check_norm(norm, order=order, join=join)
    return join


def _check(shortcut, **at_least_one):
    if shortcut not in ("A", "B", "C"):
        raise InputError(f"shortcut {shortcut!r} is not one of A (zeros), B (projection), C (always projection)")
    for name, value in at_least_one.items():
        if value < 1:
            raise InputError(f"{name} {value} must be at least 1")


cifar_resnet = partial(cifar, join=Add)
resnet = partial(imagenet, join=Add)

MODELS = {
    "cifar_resnet": cifar_resnet,
    **{f"cifar_resnet{depth}": partial(cifar_resnet, depth) for depth in (20, 32, 44, 56, 110, 1202)},
    "cifar_preact": cifar_preact,
    **{f"cifar_preact{depth}": partial(cifar_preact, depth) for depth in (164, 1001)},
    "resnet18": partial(resnet, (2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(resnet, (3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(resnet, (3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(resnet, (3, 4, 23, 3), bottleneck=True),
    "resnet152": partial(resnet, (3, 8, 36, 3), bottleneck=True),
}
