"""Residual networks for CIFAR beyond He et al. 2015: pre-activation, wide, grouped, and with stochastic depth.

He et al. 2016, "Identity mappings in deep residual networks" (arXiv 1603.05027). Zagoruyko & Komodakis 2016, "Wide
residual networks" (arXiv 1605.07146). Xie et al. 2017, "Aggregated residual transformations for deep neural networks"
(arXiv 1611.05431). Huang et al. 2016, "Deep networks with stochastic depth" (arXiv 1603.09382).
"""

from functools import cache, partial

from deepjax.units import Add, Drop, check_branch_init, norm_factory
from deepjax.zoo.network import check_option, check_rate
from deepjax.zoo.residual import BASIC, BOTTLENECK, ResNet, check_residual, cifar, units_per_stage


def cifar_preact(
    depth=164,
    num_classes=10,
    *,
    width=16,
    shortcut="B",
    stem_stride=1,
    norm="batch",
    branch_init="default",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """The pre-activation bottleneck network of He et al. 2016, section 3: depth 9n + 2.

    Arguments as `cifar`; branch_init "zero_scale" does not go with pre-activation.
    """
    units = units_per_stage(depth, 9)
    check_residual(shortcut, dropout, num_classes=num_classes, width=width, stem_stride=stem_stride)
    check_branch_init(branch_init, norm=norm_factory(norm), order="pre")
    return ResNet(
        depths=(units,) * 3,
        features=tuple((width * scale, width * scale, 4 * width * scale) for scale in (1, 2, 4)),
        windows=BOTTLENECK,
        strided=1,
        num_classes=num_classes,
        stem_features=width,
        stem_stride=stem_stride,
        order="pre",
        shortcut=shortcut,
        norm=norm,
        branch_init=branch_init,
        dropout=dropout,
        scan=scan,
        dtype=dtype,
        usual_input=(32, 32, 3),
    )


def wide_resnet(
    depth=28,
    num_classes=10,
    *,
    widen=10,
    dropout=0.0,
    shortcut="B",
    norm="batch",
    branch_init="default",
    scan=True,
    dtype=None,
):
    """The wide residual network of Zagoruyko & Komodakis 2016, table 1: pre-activation, depth 6n + 4.

    Args:
      depth: layers with kernels, of which three are projections: 10, 16, 22, 28, 40, or any other 6n + 4.
      num_classes: logits.
      widen: the stages have 16, 32 and 64 features times this.
      dropout: the probability to drop what enters the second convolution of a unit; the paper's, where it drops, are
        0.3 for CIFAR and 0.4 for SVHN.
      shortcut, norm, branch_init, scan, dtype: as of `cifar_preact`.

    Raises:
      InputError: a depth that is not 6n + 4, a widen below 1, a dropout outside [0, 1], and as `cifar_preact`.
    """
    units = units_per_stage(depth, 6, others=4)
    check_residual(shortcut, dropout, num_classes=num_classes, widen=widen)
    check_branch_init(branch_init, norm=norm_factory(norm), order="pre")
    return ResNet(
        depths=(units,) * 3,
        features=tuple((width * widen,) * 2 for width in (16, 32, 64)),
        windows=BASIC,
        num_classes=num_classes,
        stem_features=16,
        order="pre",
        shortcut=shortcut,
        norm=norm,
        branch_init=branch_init,
        dropout=dropout,
        scan=scan,
        dtype=dtype,
        usual_input=(32, 32, 3),
    )


def cifar_resnext(
    depth=29,
    num_classes=10,
    *,
    groups=8,
    group_width=64,
    shortcut="B",
    norm="batch",
    branch_init="default",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """The CIFAR network of Xie et al. 2017, section 5.3: bottlenecks with groups, depth 9n + 2.

    Args:
      depth: layers with kernels: 29, or any other 9n + 2.
      num_classes: logits.
      groups: of a unit's 3x3 convolution.
      group_width: features of one group in the first stage; the second has twice, the third four times as many. The
        units' outputs have 256, 512 and 1024 features, whatever the groups.
      shortcut, norm, branch_init, dropout, scan, dtype: as of `cifar_resnet`.

    Raises:
      InputError: a depth that is not 9n + 2, groups or a group_width below 1, and as `cifar_resnet`.
    """
    units = units_per_stage(depth, 9)
    check_residual(shortcut, dropout, num_classes=num_classes, groups=groups, group_width=group_width)
    check_branch_init(branch_init, norm=norm_factory(norm))
    inner = groups * group_width
    return ResNet(
        depths=(units,) * 3,
        features=tuple((inner * scale, inner * scale, 256 * scale) for scale in (1, 2, 4)),
        windows=BOTTLENECK,
        strided=1,
        groups=groups,
        num_classes=num_classes,
        stem_features=64,
        shortcut=shortcut,
        norm=norm,
        branch_init=branch_init,
        dropout=dropout,
        scan=scan,
        dtype=dtype,
        usual_input=(32, 32, 3),
    )


def stochastic_depth(
    depth=110,
    num_classes=10,
    *,
    survival=0.5,
    scaling="original",
    per="batch",
    width=16,
    shortcut="A",
    norm="batch",
    branch_init="default",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """`cifar_resnet` whose units are dropped in training, the later the oftener (Huang et al. 2016, section 3).

    Dropped for the whole batch, a unit is not computed. Then option remat is "unit", unless it is given or scan is off.

    Args:
      depth, num_classes, width, shortcut, norm, branch_init, dropout, scan, dtype: as of `cifar_resnet`; branch_init
        "skip_init" does not go with stochastic depth.
      survival: of the last unit. Unit l of L survives with probability 1 - l / L (1 - survival) (eq. 4).
      scaling: of branches: "original": at test, by their survival (eq. 5); "inverted": in training, by its inverse.
      per: "batch": a unit is dropped for the whole batch, as in the paper; "example": for each row apart.

    Raises:
      InputError: a survival outside [0, 1], an unknown scaling or per, and as `cifar_resnet`.
    """
    check_rate("stochastic_depth", survival=survival)
    check_option("stochastic_depth", "scaling", scaling, ("original", "inverted"))
    check_option("stochastic_depth", "per", per, ("batch", "example"))
    check_branch_init(branch_init, norm=norm_factory(norm), join=Drop)
    options = {"width": width, "shortcut": shortcut, "norm": norm, "branch_init": branch_init}
    options |= {"dropout": dropout, "scan": scan, "dtype": dtype}
    network = cifar(depth, num_classes, join=Add, **options)
    # What "none" keeps for a dropped unit costs about half of what dropping it saves (docs/design.md, Depth).
    remat = "unit" if scan and per == "batch" else "none"
    return network.clone(join=_drop(scaling, per), survival=survival, remat=remat)


@cache  # so that equal networks are equal
def _drop(scaling, per):
    return partial(Drop, 1.0, scaling, per)  # each unit's own survival goes before this one


MODELS = {
    "cifar_preact": cifar_preact,
    **{f"cifar_preact{depth}": partial(cifar_preact, depth) for depth in (164, 1001)},
    "wide_resnet": wide_resnet,
    **{
        f"wrn_{depth}_{widen}": partial(wide_resnet, depth, widen=widen)
        for depth, widen in ((16, 8), (28, 10), (40, 4))
    },
    "cifar_resnext": cifar_resnext,
    **{f"resnext29_{groups}x64d": partial(cifar_resnext, 29, groups=groups, group_width=64) for groups in (8, 16)},
    "stochastic_depth": stochastic_depth,
    **{f"stochastic_depth{depth}": partial(stochastic_depth, depth) for depth in (110, 1202)},
}
