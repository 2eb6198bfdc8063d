"""Networks that are a list of steps: convolutions and pools one after the other, then dense layers or a convolution.

A family writes its network down as stages of steps (`Convolve`, `Pool`, "lrn", "drop"), which one can read against the
table of the paper.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import flax.linen as nn
import jax

from deepjax import functional, initializers
from deepjax.errors import InputError
from deepjax.layers import Conv, Dropout
from deepjax.units import ConvNorm, norm_factory
from deepjax.zoo.network import Network, check_at_least_one, check_option, check_rate

ORDERS = ("post", "last")


class Convolve(NamedTuple):
    """A convolution with its ReLU, and the network's normalization between them."""

    features: int
    window: int
    stride: int = 1
    padding: int | None = None  # None: half the window
    groups: int = 1
    bias: float = 0.0  # at the start


class Pool(NamedTuple):
    """Overlapping or plain pooling."""

    window: int = 3
    stride: int = 2
    kind: str = "max"  # or "avg"
    ceil: bool = False  # take the windows that reach over the edge


Step = Convolve | Pool | str  # "lrn": `krizhevsky_norm`; "drop": dropout of the network's rate


class Chain(Network):
    """Stages of steps, then a head. Convolutions are named conv1, conv2, ..., hidden layers hidden1, hidden2, ..."""

    stages: Sequence[Sequence[Step]]
    grid: int | None = None  # the last maps are averaged to grid x grid pixels; None: they stay, and fix the image size
    hidden: Sequence[int] = ()  # units of the dense ReLU layers before the logits
    hidden_bias: float = 0.0  # of these, at the start
    drops: str = "outputs"  # what dropout drops of the hidden layers: their "outputs" or their "inputs"
    input_dropout: float = 0.0
    head: str = "dense"  # "conv": a 1x1 convolution and ReLU, whose mean over the image are the logits
    order: str = "post"  # "post": norm, then ReLU; "last": ReLU, then norm

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are stage1, stage2, ..."""
        self.check_images(x)
        x = Dropout(self.input_dropout)(x, train=train) if self.input_dropout else x
        maps, convolutions = {}, 0
        for i, stage in enumerate(self.stages, 1):
            for step in stage:
                convolutions += isinstance(step, Convolve)
                x = self._step(step, f"conv{convolutions}", x, train, mask)
            maps[f"stage{i}"] = x
        if self.features_only:
            return maps
        return self._conv_head(x) if self.head == "conv" else self._dense_head(x, train)

    def _step(self, step, name, x, train, mask):
        if step == "drop":
            return Dropout(self.dropout)(x, train=train)
        if step == "lrn":
            return krizhevsky_norm(x)
        if isinstance(step, Pool):
            pool = functional.max_pool if step.kind == "max" else functional.avg_pool
            return pool(x, step.window, stride=step.stride, ceil=step.ceil)
        conv = ConvNorm(
            step.features,
            step.window,
            step.stride,
            step.padding,
            groups=step.groups,
            norm=self.norm,
            order=self.order,
            use_bias=self.norm is None or self.order == "last",
            kernel_init=self.kernel_init,
            bias_init=constant(step.bias),
            dtype=self.dtype,
            name=name,
        )
        return conv(x, train=train, mask=mask)

    def _dense_head(self, x, train):
        if self.grid:
            x = functional.adaptive_avg_pool(x, self.grid)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, 1):
            x = Dropout(self.dropout)(x, train=train) if i > 1 or self.drops == "inputs" else x
            bias = constant(self.hidden_bias)
            name = f"hidden{i}"
            dense = nn.Dense(width, kernel_init=self.kernel_init, bias_init=bias, dtype=self.dtype, name=name)
            x = functional.relu(dense(x))
        return self.classify(x, train=train, dropout=0.0 if self.drops == "inputs" else None)

    def _conv_head(self, x):
        if self.return_logits:
            conv = Conv(
                self.num_classes, (1, 1), use_bias=True, kernel_init=self.kernel_init, dtype=self.dtype, name="head"
            )
            x = functional.relu(conv(x))
        return functional.global_avg_pool(x)


def krizhevsky_norm(x):
    """Local response normalization with the numbers of Krizhevsky et al. 2012, section 3.3: n 5, k 2, 1e-4, 0.75."""
    return functional.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)


@cache  # so that equal networks are equal
def constant(value) -> Callable:
    """The initializer that fills with one value."""
    return initializers.constant(value)


def check_chain(network, *, norm="none", order="post", num_classes=1, **rates):
    """Raises InputError for options that a network of plain convolutions cannot have, or that would do nothing."""
    check_at_least_one(network, num_classes=num_classes)
    check_option(network, "order", order, ORDERS)
    check_rate(network, **rates)
    if order != "post" and norm_factory(norm) is None:
        raise InputError(f"{network}: order {order} does nothing with norm none; set norm batch")
