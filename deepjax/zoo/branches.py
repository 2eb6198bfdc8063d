"""Networks of modules with parallel branches, described as tables: GoogLeNet and the Inceptions.

A module is a tuple of branches, whose outputs are concatenated; a branch is a tuple of steps, one after the other:

    ((Conv(64),), (Conv(96), Conv(128, 3)), (Pool("max", 3, 1, 1), Conv(32)))

A module of one branch is a plain chain, such as a stem.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, layers
from deepjax.errors import InputError
from deepjax.units import NORMS, ConvNorm, Norm, Unit, stack
from deepjax.zoo.network import INITS, Network, check_at_least_one, check_rate


class Conv(NamedTuple):
    """Convolution, norm, ReLU."""

    features: int
    window: int | tuple[int, int] = 1
    stride: int = 1
    padding: int | None = None  # None: half the window


class Fork(NamedTuple):
    """Several convolutions of one map, concatenated."""

    convs: tuple[Conv, ...]


class Depthwise(NamedTuple):
    """`multiplier` convolutions of each feature alone, without norm or ReLU: the first half of a separable one."""

    multiplier: int
    window: int
    stride: int = 1


class Pool(NamedTuple):
    """Pooling. With `ceil` as in PyTorch: the last window may reach over the map, and an only one by a pixel."""

    kind: str  # "max" or "avg"
    window: int
    stride: int
    padding: int | None = 0  # None, with ceil: such that ceil(side / stride) pixels come out, as TensorFlow's "SAME"
    ceil: bool = False
    count_padding: bool = True  # of "avg"


class LocalNorm(NamedTuple):
    """Arguments of `functional.local_response_norm`."""

    size: int
    alpha: float
    beta: float
    k: float


class Repeat(NamedTuple):
    """`depth` equal modules. With a `scale`, each is relu(x + scale * expand(module(x))): see `Mixed.expand`."""

    branches: tuple
    depth: int
    scale: float | None = None
    activated: bool = True  # False: without that ReLU


class Mixed(nn.Module):
    """A module of parallel branches. Submodules: branch1_conv1, ... by number of branch and step; conv2a, ... forks.

    >>> module = Mixed(((Conv(4),), (Pool("max", 3, 1, 1), Conv(2), Fork((Conv(1, (1, 3)), Conv(1, (3, 1)))))))
    >>> y, variables = module.init_with_output(jax.random.key(0), jnp.ones((1, 5, 5, 3)), train=True)
    >>> y.shape, sorted(variables["params"])
    ((1, 5, 5, 6), ['branch1_conv1', 'branch2_conv2', 'branch2_conv3a', 'branch2_conv3b'])
    """

    branches: Sequence[Sequence[tuple]]
    expand: bool = False  # end with a linear 1x1 convolution to as many features as came in
    norm: Norm | None = NORMS["batch"]
    kernel_init: Callable = INITS["he"]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H', W', features of all branches]."""
        y = []
        for i, steps in enumerate(self.branches, 1):
            z, prefix = x, f"branch{i}_" if len(self.branches) > 1 else ""
            for j, step in enumerate(steps, 1):
                z = self._step(step, z, f"{prefix}conv{j}", train, mask)
            y.append(z)
        y = jnp.concatenate(y, -1)
        return self._linear(x.shape[-1], name="expand")(y) if self.expand else y

    def _step(self, step, x, name, train, mask):
        match step:
            case Conv():
                brick = ConvNorm(
                    *step,
                    norm=self.norm,
                    kernel_init=self.kernel_init,
                    dtype=self.dtype,
                    name=name,
                )
                return brick(x, train=train, mask=mask)
            case Fork(convs):
                letters = zip("abcdefgh", convs, strict=False)
                return jnp.concatenate([self._step(conv, x, name + a, train, mask) for a, conv in letters], -1)
            case Depthwise(multiplier, window, stride):
                features = x.shape[-1]
                conv = layers.Conv(
                    multiplier * features,
                    (window, window),
                    stride,
                    window // 2,
                    groups=features,
                    kernel_init=self.kernel_init,
                    dtype=self.dtype,
                    name=name,
                )
                return conv(x)
            case Pool():
                return pool(x, step)
            case LocalNorm():
                return functional.local_response_norm(x, **step._asdict())

    def _linear(self, features, name):
        init = self.kernel_init
        return layers.Conv(features, (1, 1), use_bias=True, kernel_init=init, dtype=self.dtype, name=name)


def pool(x, step):
    """X after the pooling that `step` describes."""
    padding, window = [], []
    for side in x.shape[1:3]:
        over = (-(-side // step.stride) - 1) * step.stride + step.window - side
        low = max(over, 0) // 2 if step.padding is None else step.padding
        padding.append(low)
        window.append(min(step.window, max(side + 2 * low, step.window - 1)) if step.ceil else step.window)
    where = {"stride": step.stride, "padding": padding, "ceil": step.ceil}
    if step.kind == "max":
        return functional.max_pool(x, window, **where)
    return functional.avg_pool(x, window, count_padding=step.count_padding, **where)


class ScaledAdd(nn.Module):
    """The join skip + scale * branch: Szegedy et al. 2016, section 3.3."""

    scale: float

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """Two arrays of one shape -> their weighted sum."""
        return skip + self.scale * branch


class InceptionNetwork(Network):
    """Modules one after the other, global average pool, linear head; in training also auxiliary heads.

    With `auxiliary`, the heads are always among the parameters, and are used only with train=True: then the answer is
    (logits, logits of the last auxiliary head, ..., of the first), each [batch, num_classes].
    """

    stages: Mapping[str, Mapping[str, Any]]  # {stage: {what to append for a module's name: table or Repeat}}
    heads: Mapping[str, Callable[..., nn.Module]]  # {module's name: makes the head that sees what it puts out}
    auxiliary: bool = True
    auxiliary_dropout: float = 0.0  # in the heads, before their logits
    min_training_size: int = 1  # pixels: the smallest height and width at which the heads work
    scan: bool = False  # whether equal modules are one scan, for tables with `Repeat`

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; its stages are those of the table."""
        self.check_images(x)
        heads = self.heads if self.auxiliary and self.return_logits and not self.features_only else {}
        if heads and train and min(x.shape[1:3]) < self.min_training_size:
            raise InputError(
                f"image size {x.shape[1]}x{x.shape[2]} is below the auxiliary head's training minimum of "
                f"{self.min_training_size}x{self.min_training_size}; use larger images, or auxiliary=False"
            )
        maps, others = {}, []
        for stage, modules in self.stages.items():
            for key, table in modules.items():
                x = self._module(table, stage + key)(x, train=train, mask=mask)
                if stage + key in heads and (train or self.is_initializing()):
                    head = self._head(heads[stage + key], f"auxiliary{len(others) + 1}")
                    others.append(head(x, train=train, mask=mask))
            maps[stage] = x
        if self.features_only:
            return maps
        logits = self.classify(functional.global_avg_pool(x), train=train)
        return (logits, *reversed(others)) if train and others else logits

    def _head(self, head, name):
        return head(self.num_classes, dropout=self.auxiliary_dropout, **self._common(), name=name)

    def _common(self):
        return {"norm": self.norm, "kernel_init": self.kernel_init, "dtype": self.dtype}

    def _module(self, table, name):
        if not isinstance(table, Repeat):
            return Mixed(table, **self._common(), name=name)
        # parent=None: each part belongs to the unit or stack that it is given to.
        unit = Mixed(table.branches, expand=table.scale is not None, **self._common(), parent=None)
        if table.scale is not None:
            activation = functional.relu if table.activated else None
            unit = Unit(unit, ScaledAdd(table.scale, parent=None), activation=activation, parent=None)
        if table.depth > 1:
            return stack(unit, table.depth, scan=self.scan, remat=self.remat, name=name)
        return unit.copy(name=name, parent=self)


def check(network, num_classes, **rates):
    """Raises InputError for options that a network of this kind cannot have."""
    check_at_least_one(network, num_classes=num_classes)
    check_rate(network, **rates)
