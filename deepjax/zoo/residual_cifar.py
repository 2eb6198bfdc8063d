"""Residual networks for CIFAR as a table: a network is one entry of `VARIANTS`.

All have three stages of n units at 32x32, 16x16 and 8x8 pixels; the second stage has twice, the third four times the
features of the first.

He et al. 2015, "Deep residual learning for image recognition" (arXiv 1512.03385), section 4.2. He et al. 2016,
"Identity mappings in deep residual networks" (arXiv 1603.05027), section 3. Zagoruyko & Komodakis 2016, "Wide residual
networks" (arXiv 1605.07146), table 1. Xie et al. 2017, "Aggregated residual transformations for deep neural networks"
(arXiv 1611.05431), section 5.3. Huang et al. 2016, "Deep networks with stochastic depth" (arXiv 1603.09382), section 3.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from flax.core import FrozenDict

from deepjax.units import Add, Drop, Plain, check_branch_init, norm_factory
from deepjax.zoo.network import check_option, check_order, check_rate
from deepjax.zoo.residual import BASIC, BOTTLENECK, ResNet, check_residual, units_per_stage

COMMON = {"norm": "batch", "branch_init": "default", "dropout": 0.0, "scan": True, "dtype": None}
COUNTS = ("width", "widen", "groups", "group_width", "stem_stride")  # options that must be at least 1


@dataclasses.dataclass(frozen=True)
class Variant:
    """An entry of the table. Calling it with options of the network returns the network.

    These are the options of all variants. A variant has those that its `options` lists, besides `depth` and
    `num_classes`:
      depth: layers with kernels along the branches, `layers` n + `others`.
      num_classes: number of logits.
      width: features of the first stage. If units are bottlenecks: features of their 3x3 convolutions.
      widen: factor of the stages' 16, 32 and 64 features.
      groups, group_width: groups of a unit's 3x3 convolution, and features of one group in the first stage. The outputs
        of the units have 256, 512 and 1024 features for every number of groups.
      shortcut: where the shape changes: "A" pads with zeros, "B" projects; "C" projects in every unit.
      stem_stride: 2 halves the resolution at once, for a quarter of the cost.
      survival: of the last unit. Unit l of L survives with probability 1 - l / L (1 - survival) (Huang et al., eq. 4).
        A unit that is dropped for the whole batch is not computed; then `remat` is "unit", unless it is given or scan
        is off.
      scaling: of branches: "original": at test, by their survival (eq. 5); "inverted": in training, by its inverse.
      per: "batch": a unit is dropped for the whole batch, as in the paper; "example": for each row separately.
      norm: a name in `units.NORMS`, or a module factory. With "none", convolutions have biases.
      order: "post": the norm before the ReLU; "last": after it (see `residual.imagenet`). Pre-activation variants do
        not have it.
      branch_init: "default"; "zero_scale": the last norm's scale of each branch starts at 0, for order "post";
        "skip_init": a learned factor of each branch starts at 0; "fixup": Fixup initialization, with norm "none".
      dropout: probability that an input of a unit's convolutions except the first is dropped.
      scan: run equal units as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: when called: a depth that is not `layers` n + `others`, an unknown word, a count below 1, a
        probability outside [0, 1], or a branch_init that does not go with the norm, the order or the join.
    """

    depth: int  # the default
    layers: int  # of the depth, for one unit in each stage
    features: Callable[..., Sequence[int]]  # (the variant's options) -> features of a unit's convolutions, first stage
    stem: Callable[..., int]  # (the variant's options) -> features of the first convolution
    options: Mapping[str, Any]  # this variant's options and their defaults, without `depth` and `num_classes`
    others: int = 2  # layers of the depth outside of units
    windows: Sequence[int] = BASIC
    order: str = "post"
    join: Callable = Add

    def __call__(self, *args, **options):
        """Make the network with these options: `depth` and `num_classes` by position or name, the others by name."""
        bound = self.__signature__.bind(*args, **options)
        bound.apply_defaults()
        given = dict(bound.arguments)
        own = {name: given[name] for name in self.options}
        units = units_per_stage(given["depth"], self.layers, self.others)
        _check(self, given)
        first = self.features(**own)
        return ResNet(
            depths=(units,) * 3,
            features=tuple(tuple(scale * each for each in first) for scale in (1, 2, 4)),
            windows=self.windows,
            strided=self.windows.index(3),
            groups=own.get("groups", 1),
            stem_features=self.stem(**own),
            stem_stride=own.get("stem_stride", 1),
            order=given.get("order", self.order),
            shortcut=own["shortcut"],
            join=_drop(own["scaling"], own["per"]) if self.join is Drop else self.join,
            survival=own.get("survival", 1.0),
            # With "none", what the scan stores for a dropped unit costs half of the time saved (docs/design.md, Depth).
            remat="unit" if given["scan"] and own.get("per") == "batch" else "none",
            usual_input=(32, 32, 3),
            **{name: given[name] for name in ("num_classes", *COMMON) if name in given},
        )

    @property
    def __signature__(self):
        """Depth and number of classes, then the options by name."""
        parameter, by_name = inspect.Parameter, inspect.Parameter.KEYWORD_ONLY
        names = [parameter("depth", parameter.POSITIONAL_OR_KEYWORD, default=self.depth)]
        names += [parameter("num_classes", parameter.POSITIONAL_OR_KEYWORD, default=10)]
        common = {name: usual for name, usual in COMMON.items() if self.join is not Plain or name != "branch_init"}
        order = {} if self.order == "pre" else {"order": self.order}
        options = {**self.options, **common, **order}
        return inspect.Signature(
            [*names, *(parameter(name, by_name, default=usual) for name, usual in options.items())]
        )


def _check(variant, given):
    counts = {name: given[name] for name in ("num_classes", *COUNTS) if name in given}
    check_residual(given["shortcut"], given["dropout"], **counts)
    if variant.join is Drop:
        check_rate("stochastic_depth", survival=given["survival"])
        check_option("stochastic_depth", "scaling", given["scaling"], ("original", "inverted"))
        check_option("stochastic_depth", "per", given["per"], ("batch", "example"))
    branch_init, norm = given.get("branch_init", "default"), norm_factory(given["norm"])
    check_order("residual network", given.get("order", "post"), norm)
    check_branch_init(branch_init, norm=norm, order=variant.order, join=variant.join)


@cache  # so that equal networks are equal
def _drop(scaling, per):
    return partial(Drop, 1.0, scaling, per)  # each unit's own survival goes before this one


def _variant(depth, layers, features, stem, options, **fields):
    return Variant(depth, layers, features, stem, FrozenDict(options), **fields)


def _basic(width, **_):
    return width, width


def _bottleneck(width, **_):
    return width, width, 4 * width


def _width(width, **_):
    return width


USUAL = {"width": 16, "shortcut": "A", "stem_stride": 1}
STOCHASTIC = {"survival": 0.5, "scaling": "original", "per": "batch", "width": 16, "shortcut": "A"}
VARIANTS = {
    "cifar_resnet": _variant(32, 6, _basic, _width, USUAL),
    "cifar_plain": _variant(32, 6, _basic, _width, USUAL, join=Plain),
    "cifar_preact": _variant(164, 9, _bottleneck, _width, USUAL | {"shortcut": "B"}, windows=BOTTLENECK, order="pre"),
    "wide_resnet": _variant(
        28,
        6,
        lambda widen, **_: (16 * widen,) * 2,
        lambda **_: 16,
        {"widen": 10, "shortcut": "B"},
        others=4,
        order="pre",
    ),
    "cifar_resnext": _variant(
        29,
        9,
        lambda groups, group_width, **_: (groups * group_width,) * 2 + (256,),
        lambda **_: 64,
        {"groups": 8, "group_width": 64, "shortcut": "B"},
        windows=BOTTLENECK,
    ),
    "stochastic_depth": _variant(110, 6, _basic, _width, STOCHASTIC, join=Drop),
}
DEPTHS = {  # {network: depths for which there is a named network, such as cifar_resnet20}
    "cifar_resnet": (20, 32, 44, 56, 110, 1202),
    "cifar_plain": (20, 32, 44, 56, 110, 1202),
    "cifar_preact": (164, 1001),
    "stochastic_depth": (110, 1202),
}
MODELS = {
    **VARIANTS,
    **{f"{name}{depth}": partial(VARIANTS[name], depth) for name, depths in DEPTHS.items() for depth in depths},
    **{
        f"wrn_{depth}_{widen}": partial(VARIANTS["wide_resnet"], depth, widen=widen)
        for depth, widen in ((16, 8), (28, 10), (40, 4))
    },
    **{
        f"resnext29_{groups}x64d": partial(VARIANTS["cifar_resnext"], 29, groups=groups, group_width=64)
        for groups in (8, 16)
    },
}
