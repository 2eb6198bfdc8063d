"""Residual networks for ImageNet, and the plain networks to which they are compared.

He et al. 2015, "Deep residual learning for image recognition" (arXiv 1512.03385), table 1. Zagoruyko & Komodakis 2016,
"Wide residual networks" (arXiv 1605.07146), make the units wider (`widen`). Xie et al. 2017, "Aggregated residual
transformations for deep neural networks" (arXiv 1611.05431), divide their convolutions into groups (`groups`). The
networks for CIFAR are in `residual_cifar`.

Option `branch_init` sets the initial values of residual branches (see `units.Branch` and `units.SkipInit`). Without
normalization (norm="none"), networks of any depth train with branch_init="skip_init" or "fixup".
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

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
    Unit,
    ZeroPad,
    branch_and_join,
    check_branch_init,
    makes_batch_norm,
    norm_factory,
    normalize,
    stack,
)
from deepjax.zoo.cards import IMAGENET_V2, timm
from deepjax.zoo.network import Network, check_order, check_rate

BASIC = (3, 3)
BOTTLENECK = (1, 3, 1)


class ResNet(Network):
    """Stem, stages of equal units, global average pool, linear head.

    Every stage is its first unit, which may change the shape, and a scan over the rest. `dropout` applies to the inputs
    of a unit's convolutions except the first.
    """

    depths: Sequence[int]  # units of each stage
    features: Sequence[Sequence[int]]  # of each convolution in a unit, for each stage
    windows: Sequence[int] = BASIC  # of each convolution in a unit
    stem: str = "cifar"  # "cifar": 3x3; "imagenet": 7x7 with stride 2, then a 3x3 max pool with stride 2
    stem_features: int = 16
    stem_stride: int = 1  # of the cifar stem
    order: str = "post"  # as of `Branch`
    shortcut: str = "A"  # where the shape changes: "A" zeros, "B" projection; "C" projection in every unit
    join: Callable = Add
    branch_init: str = "default"  # a name in `units.BRANCH_INITS`
    scan: bool = True
    strided: int = 0  # index of the convolution with the stride of the stage; 1 in torchvision's bottlenecks
    groups: int = 1  # of the 3x3 convolutions in the units
    survival: float = 1.0  # of the last unit, in linear decay from 1; below 1, the join must be Drop

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stem, stage1, stage2, ..."""
        self.check_images(x)
        maps = {"stem": self._stem(x, train, mask)}
        x = maps["stem"]
        for i, depth in enumerate(self.depths):
            per_unit = self._per_unit(i)
            unit = self._unit(i, x.shape[-1], 1 if i == 0 else 2, name=f"stage{i + 1}_first")
            x = unit(x, train=train, mask=mask, **{name: each[0] for name, each in per_unit.items()})
            if depth > 1:
                units = stack(
                    self._unit(i, x.shape[-1], 1, name=None),
                    depth - 1,
                    scan=self.scan,
                    remat=self.remat,
                    per_unit={name: each[1:] for name, each in per_unit.items()},
                    name=f"stage{i + 1}_rest",
                )
                x = units(x, train=train, mask=mask)
            maps[f"stage{i + 1}"] = x
        if self.features_only:
            return maps
        if self.order == "pre":
            x = NormActivation(norm=self._norm(), name="final")(x, train=train, mask=mask)
        x = functional.global_avg_pool(x)
        if self.branch_init != "fixup" or not self.return_logits:
            return self.classify(x, train=train, dropout=0.0)
        return self.classify(Shift(name="head_shift")(x), train=train, kernel_init=initializers.zeros, dropout=0.0)

    def torch_names(self):
        """See `Network.torch_names`. torchvision has networks with the imagenet stem and projections."""
        theirs = self.order == "post" and self.strided == self.windows.index(3)
        if self.stem != "imagenet" or not theirs or not makes_batch_norm(self.norm):
            return super().torch_names()
        names = {"stem_conv": "conv1", "stem_norm": "bn1", "head": "fc"}
        for stage, depth in enumerate(self.depths, 1):
            for i in range(depth):
                ours = f"stage{stage}_rest/unit{i}" if i else f"stage{stage}_first"
                theirs = f"layer{stage}.{i}"
                names[f"{ours}/shortcut/conv"] = f"{theirs}.downsample.0"
                names[f"{ours}/shortcut/norm"] = f"{theirs}.downsample.1"
                for j in range(1, len(self.windows) + 1):
                    names[f"{ours}/branch/conv{j}"] = f"{theirs}.conv{j}"
                    names[f"{ours}/branch/norm{j}"] = f"{theirs}.bn{j}"
        return names

    def _stem(self, x, train, mask):
        window, stride = (7, 2) if self.stem == "imagenet" else (3, self.stem_stride)
        conv = Conv(
            self.stem_features,
            (window, window),
            stride,
            window // 2,
            use_bias=self._norm() is None or self.order == "last",
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="stem_conv",
        )
        x = conv(x)
        if self.order == "last":
            x = normalize(functional.relu(x), self._norm(), train=train, mask=mask, name="stem_norm")
        elif self.order == "post" or self.stem == "imagenet":  # otherwise the first unit does this
            x = functional.relu(normalize(x, self._norm(), train=train, mask=mask, name="stem_norm"))
        return functional.max_pool(x, 3, stride=2, padding=1) if self.stem == "imagenet" else x

    def _unit(self, stage, features_in, stride, name):
        features = self.features[stage]
        changes = stride != 1 or features_in != features[-1]
        strides = [1] * len(features)
        strides[self.strided] = stride
        pre = self.order == "pre"
        shared = pre and changes  # He et al. 2016: the shortcut of such a unit starts after norm and activation
        # parent=None: each part belongs to the unit that it is passed to, and gets its name there.
        branch_init, join = branch_and_join(self.branch_init, self.join)
        branch = Branch(
            features,
            self.windows,
            strides,
            self.order,
            activated=shared,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            norm=self.norm,
            branch_init=branch_init,
            branches=sum(self.depths),
            groups=[self.groups if window == 3 else 1 for window in self.windows],
            dropout=self.dropout,
            parent=None,
        )
        return Unit(
            branch,
            join(parent=None),
            self._shortcut(features[-1], stride, changes),
            before=NormActivation(norm=self._norm(), parent=None) if shared else None,
            activation=None if pre else functional.relu,
            name=name,
            parent=self if name else None,
        )

    def _shortcut(self, features, stride, changes):
        """The shortcut of a unit, None for the identity; `changes`: whether the unit changes the shape."""
        if self.join is Plain or not (changes or self.shortcut == "C"):
            return None
        if self.shortcut == "A":
            return ZeroPad(features, stride, parent=None)
        return Projection(
            features,
            stride,
            norm=None if self.order == "pre" else self.norm,
            branch_init="fixup" if self.branch_init == "fixup" else "default",
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            parent=None,
        )

    def _norm(self):
        """Return the factory for norms outside of branches, or for the module that replaces them."""
        return Shift if self.branch_init == "fixup" else self.norm

    def _per_unit(self, stage):
        """Return the numbers that the join of each unit of a stage gets."""
        if self.survival == 1:
            return {}
        before, units = sum(self.depths[:stage]), sum(self.depths)
        numbers = range(before + 1, before + self.depths[stage] + 1)
        return {"survival": [functional.linear_survival(i, units, self.survival) for i in numbers]}


def imagenet(
    depths,
    num_classes=1000,
    *,
    join,
    bottleneck=False,
    paper_stride=False,
    width=64,
    widen=1,
    groups=1,
    shortcut="B",
    norm="batch",
    order="post",
    branch_init="default",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """Make the ImageNet network of He et al. 2015, table 1, also in wide and grouped form.

    Args:
      depths: units of each stage, whose features are width times 1, 2, 4, 8, ...
      num_classes: number of logits.
      join: `Add` for the residual network, `Plain` for its plain twin.
      bottleneck: units of 1x1, 3x3 and 1x1, whose output has four times the features, instead of two 3x3.
      paper_stride: bottlenecks have the stride of a stage in the first 1x1, as in the paper; torchvision's in the 3x3.
      width: features of the stem and the first stage.
      widen: factor of the features inside units (Zagoruyko & Komodakis 2016, for bottlenecks).
      groups: of the 3x3 convolutions (Xie et al. 2017, ResNeXt).
      shortcut: "A", "B" or "C" (section 4.1).
      norm: a name in `units.NORMS`, or a module factory. With "none", convolutions have biases.
      order: "post": the norm before the ReLU; "last": after it. The norm at the end of a branch follows its convolution
        in either case, and the ReLU after the sum stays.
      branch_init: "default"; "skip_init": a learned factor of each branch starts at 0; "fixup": Fixup initialization,
        with norm "none"; "zero_scale": the last norm's scale of each branch starts at 0,
        which is torchvision's zero_init_residual.
      dropout: probability that an input of a unit's convolutions except the first is dropped.
      scan: run equal units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: an empty stage, an unknown shortcut, norm or order, order "last" without a norm, a width below 1, a
        dropout outside [0, 1], groups that do not divide a unit's inner features, a branch_init that does not go with
        the norm or the join.
    """
    units = min(depths, default=0)
    check_residual(
        shortcut, dropout, num_classes=num_classes, width=width, units_per_stage=units, widen=widen, groups=groups
    )
    check_order("residual network", order, norm)
    check_branch_init(branch_init, norm=norm_factory(norm), join=join)
    _check_units(bottleneck, paper_stride, width, widen, groups)
    scales = [width * 2**i for i in range(len(depths))]
    return ResNet(
        depths=tuple(depths),
        features=tuple((widen * s, widen * s, 4 * s) if bottleneck else (widen * s, s) for s in scales),
        windows=BOTTLENECK if bottleneck else BASIC,
        num_classes=num_classes,
        strided=1 if bottleneck and not paper_stride else 0,
        groups=groups,
        stem="imagenet",
        stem_features=width,
        order=order,
        shortcut=shortcut,
        join=join,
        norm=norm,
        branch_init=branch_init,
        dropout=dropout,
        scan=scan,
        dtype=dtype,
    )


def _check_units(bottleneck, paper_stride, width, widen, groups):
    """Raise InputError for groups that do not divide the features, and a stride that only bottlenecks can have."""
    if widen * width % groups:
        raise InputError(f"groups {groups} must divide the inner features of a unit, {widen} x {width}")
    if paper_stride and not bottleneck:
        raise InputError(
            "paper_stride True needs bottlenecks; units of two 3x3 always have the paper's stride, so leave it out"
        )


def units_per_stage(depth, layers, others=2):
    """Return n such that depth = layers * n + others. Raise InputError if n is not a whole number above 0."""
    units, rest = divmod(depth - others, layers)
    if rest or units < 1:
        low = max(units, 1) * layers + others
        raise InputError(f"depth {depth} is not {layers}n + {others}; the nearest are {low} and {low + layers}")
    return units


def check_residual(shortcut, dropout, **at_least_one):
    """Raise InputError for an unknown shortcut, a dropout outside [0, 1], a count below 1."""
    if shortcut not in ("A", "B", "C"):
        raise InputError(f"shortcut {shortcut!r} is not one of A (zeros), B (projection), C (always projection)")
    check_rate("residual network", dropout=dropout)
    for name, value in at_least_one.items():
        if value < 1:
            raise InputError(f"{name} {value} must be at least 1")


resnet = partial(imagenet, join=Add)
basic = partial(resnet, bottleneck=False, paper_stride=False, widen=1, groups=1)
bottleneck = partial(resnet, bottleneck=True, paper_stride=False, widen=1, groups=1)

MODELS = {
    "resnet18": partial(basic, (2, 2, 2, 2)),
    "resnet34": partial(basic, (3, 4, 6, 3)),
    "resnet50": partial(bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(bottleneck, (3, 8, 36, 3)),
    "resnet50_paper": partial(bottleneck, (3, 4, 6, 3), paper_stride=True),
    "resnet101_paper": partial(bottleneck, (3, 4, 23, 3), paper_stride=True),
    "resnet152_paper": partial(bottleneck, (3, 8, 36, 3), paper_stride=True),
    "wide_resnet50_2": partial(bottleneck, (3, 4, 6, 3), widen=2),
    "wide_resnet101_2": partial(bottleneck, (3, 4, 23, 3), widen=2),
    "resnext50_32x4d": partial(bottleneck, (3, 4, 6, 3), widen=2, groups=32),
    "resnext101_32x8d": partial(bottleneck, (3, 4, 23, 3), widen=4, groups=32),
    "resnext101_64x4d": partial(bottleneck, (3, 4, 23, 3), widen=4, groups=64),
}

CARDS = {name: timm(name) for name in ("resnet18", "resnet34")} | {
    name: timm(name, v2=IMAGENET_V2)
    for name in (
        *("resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
        *("resnext50_32x4d", "resnext101_32x8d"),
    )
}
CARDS["resnext101_64x4d"] = timm("resnext101_64x4d", v1=IMAGENET_V2)
