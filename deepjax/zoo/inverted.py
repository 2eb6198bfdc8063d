"""The units of MobileNets and EfficientNets: 1x1 convolution, depthwise convolution, 1x1 convolution.

Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks" (arXiv 1801.04381), figures 3b and 4d. A
family gives the rows of its paper's table.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from deepjax import functional
from deepjax.errors import InputError
from deepjax.layers import Dense
from deepjax.units import Add, ConvNorm, Drop, Plain, SqueezeExcite, Unit, stack
from deepjax.zoo.network import Network, check_at_least_one, check_rate

ACTIVATIONS = {"relu": functional.relu, "relu6": jax.nn.relu6, "hard_swish": jax.nn.hard_swish, "silu": jax.nn.silu}


class UnitRow(NamedTuple):
    """A unit, as a row of a paper's table describes it."""

    window: int  # of the depthwise convolution
    hidden: int  # its features
    features: int  # of the unit's output
    stride: int = 1
    activation: str = "relu6"
    squeeze: int = 0  # features inside squeeze-and-excitation; 0: none


class InvertedResidual(nn.Module):
    """The branch of one row. Submodules: `expand`, `depthwise`, `squeeze`, `project`.

    A 1x1 convolution to `hidden` features, unless x already has as many; a depthwise convolution;
    squeeze-and-excitation, if the row has it; a 1x1 convolution to `features`, without activation if `linear`.
    """

    row: UnitRow
    conv: Callable  # `ConvNorm` with the network's options
    gate: Callable = functional.sigmoid  # of the squeeze-and-excitation
    linear: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H / stride, W / stride, features]."""
        row, activation = self.row, ACTIVATIONS[self.row.activation]
        if row.hidden != x.shape[-1]:
            x = self.conv(row.hidden, 1, activation=activation, name="expand")(x, train=train, mask=mask)
        depthwise = self.conv(
            row.hidden, row.window, row.stride, groups=row.hidden, activation=activation, name="depthwise"
        )
        x = depthwise(x, train=train, mask=mask)
        if row.squeeze:
            init, dtype = self.conv.keywords["kernel_init"], self.conv.keywords["dtype"]
            inside = functional.relu if row.activation == "hard_swish" else activation
            x = SqueezeExcite(row.squeeze, inside, self.gate, init, dtype, name="squeeze")(x)
        last = None if self.linear else activation
        return self.conv(row.features, 1, activation=last, name="project")(x, train=train, mask=mask)


class InvertedNetwork(Network):
    """3x3 convolution of stride 2, stages of units, 1x1 convolution, global average pool, dense layers.

    A unit that keeps its shape has a skip. The first unit of each stage is a separate module, stage1_first. Equal units
    that follow each other are one scan: stage1_rest, and stage1_rest2, ... if not all of them are equal.
    """

    stem: int  # features of the first convolution
    stages: tuple[tuple[UnitRow, ...], ...]
    final: int = 0  # features of the last convolution; 0: there is none
    hidden: int = 0  # features of a dense layer before the logits; 0: there is none
    activation: str = "relu6"  # of the first and last convolution and the dense layer
    gate: Callable = functional.sigmoid
    skip: bool = True
    linear: bool = True
    survival: float = 1.0  # unit i of n, counted from 0, survives with probability 1 - i / n (1 - survival)
    scan: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the maps are stem, stage1, stage2, ..., final."""
        self.check_images(x)
        activation = ACTIVATIONS[self.activation]
        conv = partial(
            ConvNorm,
            norm=self.norm,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )
        x = conv(self.stem, 3, 2, activation=activation, name="stem")(x, train=train, mask=mask)
        maps, done = {"stem": x}, 0
        for stage, name, rows in self.runs():
            x = self._run(name, rows, done, x.shape[-1], conv)(x, train=train, mask=mask)
            maps[stage] = x
            done += len(rows)
        if self.final:
            x = conv(self.final, 1, activation=activation, name="final")(x, train=train, mask=mask)
            maps["final"] = x
        if self.features_only:
            return maps
        x = functional.global_avg_pool(x)
        if self.hidden:
            dense = Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name="hidden")
            x = activation(dense(x))
        return self.classify(x, train=train)

    def runs(self):
        """Yield (stage's name, run's name, rows) of each stage's first unit and of each run of equal units after it."""
        for number, rows in enumerate(self.stages, 1):
            stage = f"stage{number}"
            yield stage, f"{stage}_first", rows[:1]
            for i, (_, run) in enumerate(itertools.groupby(rows[1:]), 1):
                yield stage, f"{stage}_rest{i if i > 1 else ''}", tuple(run)

    def _run(self, name, rows, done, features_in, conv):
        """Return the module of a run of equal units. `done` units come before it."""
        row, total = rows[0], sum(map(len, self.stages))
        survivals = [functional.linear_survival(done + i, total, self.survival) for i in range(len(rows))]
        skip = self.skip and row.stride == 1 and features_in == row.features
        drops = skip and self.survival < 1
        first = name.endswith("_first")
        join = Plain(parent=None)
        if skip:
            join = Drop(survivals[0] if first else None, parent=None) if drops else Add(parent=None)
        branch = InvertedResidual(row, conv, self.gate, self.linear, parent=None)
        if first:
            return Unit(branch, join, name=name)
        per_unit = {"survival": survivals} if drops else None
        unit = Unit(branch, join, parent=None)
        return stack(unit, len(rows), scan=self.scan, per_unit=per_unit, remat=self.remat, name=name)

    def unit_paths(self) -> list[tuple[str, int, UnitRow]]:
        """Return [(path, with scanned units as unit1, unit2, ...; features_in; row)] of all units, in order."""
        units, features_in = [], self.stem
        for _, name, rows in self.runs():
            for i, row in enumerate(rows, 1):
                units.append((name if name.endswith("_first") else f"{name}/unit{i}", features_in, row))
                features_in = row.features
        return units


def conv_names(ours, conv, norm):
    """Return {path of a part of a `ConvNorm`: torchvision's name}."""
    return {f"{ours}/conv": conv, f"{ours}/norm": norm}


def block_names(unit, features_in, row, block):
    """Return the names of a unit of MobileNet v3 or EfficientNet, whose parts torchvision numbers."""
    parts = [] if row.hidden == features_in else ["expand"]
    parts += ["depthwise", "squeeze", "project"] if row.squeeze else ["depthwise", "project"]
    names = {}
    for i, part in enumerate(parts):
        ours, theirs = f"{unit}/branch/{part}", f"{block}.{i}"
        if part == "squeeze":
            names |= {f"{ours}/reduce": f"{theirs}.fc1", f"{ours}/expand": f"{theirs}.fc2"}
        else:
            names |= conv_names(ours, f"{theirs}.0", f"{theirs}.1")
    return names


def round_to_eights(features):
    """Return the nearest multiple of 8 that is at least 8 and at least nine tenths of `features`."""
    rounded = max(8, int(features + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * features else rounded + 8


def check(name, width, num_classes, dropout, **more):
    """Raise InputError for options that no `InvertedNetwork` can have."""
    if width <= 0:
        raise InputError(f"{name}: width {width} must be above 0; it multiplies the features")
    check_at_least_one(name, num_classes=num_classes)
    check_rate(name, dropout=dropout, **more)
