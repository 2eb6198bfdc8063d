"""Networks of steps: the stages of a table, then a head."""

import itertools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional
from deepjax.errors import InputError
from deepjax.layers import Conv, Dense, Dropout
from deepjax.zoo.network import Network, check_at_least_one, check_order, check_rate
from deepjax.zoo.steps import Auxiliary, NetworkOptions, Step, constant, run


class TableNetwork(Network):
    """Stages of steps, followed by a head. Submodules: hidden1, hidden2, ...; auxiliary heads auxiliary1, ...

    If the table has auxiliary heads, their parameters always exist, but they run only with train=True. The output is
    then (logits, logits of the last auxiliary head, ..., logits of the first), each [batch, num_classes].
    """

    stages: Mapping[str, Sequence[Step]]  # {stage: its steps}
    input_dropout: float = 0.0
    grid: int | None = 1  # the last maps are averaged to grid x grid pixels; None: not averaged, for one image size
    sliding: bool = False  # apply the head at every position of the last maps, and average the logits
    hidden: Sequence[int] = ()  # units of the dense ReLU layers before the logits
    hidden_bias: float = 0.0  # initial value of the biases of these layers
    drops: str = "outputs"  # which of the "outputs" or the "inputs" of hidden layers dropout drops
    head: str = "dense"  # "conv": a 1x1 convolution and ReLU, whose means over the image are the logits
    order: str = "post"  # "post": norm, then ReLU; "last": ReLU, then norm
    use_bias: bool | None = None  # of the convolutions. None: if no norm follows directly
    auxiliary: bool = True  # False: leave out the table's auxiliary heads
    auxiliary_dropout: float = 0.0  # in the auxiliary heads, before their logits
    min_training_size: int = 1  # pixels: the smallest height and width at which the auxiliary heads work
    scan: bool = False  # whether equal steps (`Repeat`) are one scan

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are those of the table."""
        self.check_images(x)
        if train:
            self._check_training_size(x)
        x = Dropout(self.input_dropout)(x, train=train) if self.input_dropout else x
        options, numbers, maps, others = self._options(), itertools.count(1), {}, []
        with_heads = self._has_heads() and (train or self.is_initializing())
        for stage, steps in self.stages.items():
            for step in steps:
                if not isinstance(step, Auxiliary):
                    x = run((step,), x, options, numbers=numbers, train=train, mask=mask)
                elif with_heads:
                    name, rate = f"auxiliary{len(others) + 1}", self.auxiliary_dropout
                    head = step.head(self.num_classes, dropout=rate, options=options, name=name)
                    others.append(head(x, train=train, mask=mask))
            maps[stage] = x
        if self.features_only:
            return maps
        logits = self._conv_head(x) if self.head == "conv" else self._dense_head(x, train)
        return (logits, *reversed(others)) if train and others else logits

    def _options(self):
        use_bias = True if self.order == "last" else self.use_bias
        return NetworkOptions(
            self.norm,
            self.kernel_init,
            self.dtype,
            self.order,
            use_bias,
            self.dropout,
            self.scan,
            self.remat,
        )

    def _has_heads(self):
        in_table = any(isinstance(step, Auxiliary) for steps in self.stages.values() for step in steps)
        return in_table and self.auxiliary and self.return_logits and not self.features_only

    def _check_training_size(self, x):
        if self._has_heads() and min(x.shape[1:3]) < self.min_training_size:
            raise InputError(
                f"image size {x.shape[1]}x{x.shape[2]} is below the minimum of "
                f"{self.min_training_size}x{self.min_training_size} for training the auxiliary head; use "
                f"larger images, or auxiliary=False"
            )

    def _dense_head(self, x, train):
        if self.sliding:
            x = _windows(x, self.grid)
        elif self.grid == 1:
            x = functional.global_avg_pool(x)
        elif self.grid:
            x = functional.adaptive_avg_pool(x, self.grid)
        x = x if self.sliding else x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, 1):
            x = Dropout(self.dropout)(x, train=train) if i > 1 or self.drops == "inputs" else x
            bias = constant(self.hidden_bias)
            dense = Dense(width, kernel_init=self.kernel_init, bias_init=bias, dtype=self.dtype, name=f"hidden{i}")
            x = functional.relu(dense(x))
        y = self.classify(x, train=train, dropout=0.0 if self.drops == "inputs" else None)
        return y.mean((1, 2)) if self.sliding else y

    def _conv_head(self, x):
        if self.return_logits:
            conv = Conv(
                self.num_classes, (1, 1), use_bias=True, kernel_init=self.kernel_init, dtype=self.dtype, name="head"
            )
            x = functional.relu(conv(x))
        return functional.global_avg_pool(x)


def _windows(x, side):
    """[batch, H, W, features] -> [batch, H', W', side * side * features]: all windows, each flattened."""
    height, width = (size - side + 1 for size in x.shape[1:3])
    offsets = itertools.product(range(side), repeat=2)
    return jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in offsets], -1)


def check_table(network, *, norm="none", order="post", num_classes=1, **rates):
    """Raise InputError for options that a `TableNetwork` cannot have, or that would have no effect."""
    check_at_least_one(network, num_classes=num_classes)
    check_rate(network, **rates)
    check_order(network, order, norm)
