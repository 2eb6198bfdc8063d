"""The table language of networks that are lists of steps, with parallel branches or without.

A network is {stage: steps}. The notation follows the tables of the papers, so that the two can be compared:

    {"stage1": (Convolve(64, 11, 4, 2), Pool()), "stage2": (Convolve(192, 5), Pool())}

A module of parallel branches, whose outputs are concatenated, is a step too:

    Parallel("stage3a", ((Convolve(64),), (Convolve(96), Convolve(128, 3)), (Pool("max", 3, 1, 1), Convolve(32))))
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers, layers
from deepjax.units import ConvNorm, Norm, Unit, stack


class Convolve(NamedTuple):
    """Convolution, the network's normalization, ReLU."""

    features: int
    window: int | tuple[int, int] = 1
    stride: int = 1
    padding: int | None = None  # None: half the window
    groups: int = 1
    bias: float = 0.0  # initial value
    name: str = ""  # of its parameters. "": conv1, conv2, ... in the order of the unnamed convolutions


class Depthwise(NamedTuple):
    """`multiplier` convolutions of each feature alone, without norm or ReLU: the first half of a separable one."""

    multiplier: int
    window: int
    stride: int = 1


class Fork(NamedTuple):
    """Several convolutions of the same map, whose outputs are concatenated. Their names end in a, b, ..."""

    convolutions: tuple[Convolve, ...]


class Pool(NamedTuple):
    """Pooling. With `ceil`, the last window may reach over the edge, as with PyTorch's ceil_mode."""

    kind: str = "max"  # or "avg"
    window: int = 3
    stride: int = 2
    padding: int | None = 0  # None, with ceil: such that ceil(side / stride) pixels come out, as TensorFlow's "SAME"
    ceil: bool = False
    count_padding: bool = True  # of "avg"


class LocalNorm(NamedTuple):
    """Local response normalization: the arguments of `functional.local_response_norm`."""

    size: int
    alpha: float
    beta: float
    k: float


@dataclass(frozen=True)  # a NamedTuple without fields would equal ()
class RandomDrop:
    """Dropout, at the network's rate `dropout`."""


class Parallel(NamedTuple):
    """Branches of the same map, whose outputs are concatenated. The parameters are grouped under `name`."""

    name: str
    branches: tuple[tuple["Step", ...], ...]


class Residual(NamedTuple):
    """relu(x + scale * expand(branches of x)): Szegedy et al. 2016 (arXiv 1602.07261), section 3.3.

    expand is a linear 1x1 convolution to as many features as x has.
    """

    name: str
    branches: tuple[tuple["Step", ...], ...]
    scale: float = 1.0
    activated: bool = True  # False: without the ReLU


class Repeat(NamedTuple):
    """`depth` equal steps with separate parameters, as one `units.stack`. The name of `step` is not used."""

    name: str
    step: Any  # Convolve, Parallel or Residual
    depth: int


class Auxiliary(NamedTuple):
    """An auxiliary head for training. Its input is the map at this step. Place it directly in a stage."""

    head: Callable[..., nn.Module]  # called with num_classes, dropout=, options= and name=


Step = Convolve | Depthwise | Fork | Pool | LocalNorm | RandomDrop | Parallel | Residual | Repeat | Auxiliary


class NetworkOptions(NamedTuple):
    """The options of a network that all of its steps share."""

    norm: Norm | None
    kernel_init: Callable
    dtype: Any = None
    order: str = "post"  # as of `ConvNorm`
    use_bias: bool | None = None  # as of `ConvNorm`
    dropout: float = 0.0  # of a `RandomDrop`
    scan: bool = False  # whether a Repeat is one scan
    remat: str = "none"  # as of `units.stack`


class Branches(nn.Module):
    """The module of `Parallel`. Submodules: branch1_conv1, ..., by branch and convolution; conv1, ... of one branch.

    >>> from deepjax.units import NORMS
    >>> from deepjax.zoo.network import INITS
    >>> fork = Fork((Convolve(1, (1, 3)), Convolve(1, (3, 1))))
    >>> branches = ((Convolve(4),), (Pool("max", 3, 1, 1), Convolve(2), fork))
    >>> module = Branches(branches, NetworkOptions(NORMS["batch"], INITS["he"]))
    >>> y, variables = jax.eval_shape(
    ...     lambda: module.init_with_output(jax.random.key(0), jnp.ones((1, 5, 5, 3)), train=True)
    ... )
    >>> y.shape, sorted(variables["params"])
    ((1, 5, 5, 6), ['branch1_conv1', 'branch2_conv1', 'branch2_conv2a', 'branch2_conv2b'])
    """

    branches: Sequence[Sequence[Any]]
    options: NetworkOptions
    expand: bool = False  # end with a linear 1x1 convolution to the number of features of the input

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features_in] -> [batch, H', W', features of all branches]."""
        outputs = []
        for i, steps in enumerate(self.branches, 1):
            prefix = f"branch{i}_" if len(self.branches) > 1 else ""
            outputs.append(run(steps, x, self.options, prefix=prefix, train=train, mask=mask))
        y = jnp.concatenate(outputs, -1)
        if not self.expand:
            return y
        init, dtype = self.options.kernel_init, self.options.dtype
        return layers.Conv(x.shape[-1], (1, 1), use_bias=True, kernel_init=init, dtype=dtype, name="expand")(y)


class ScaledAdd(nn.Module):
    """The join skip + scale * branch."""

    scale: float

    @nn.compact
    def __call__(self, skip, branch, *, train: bool):
        """Two arrays of one shape -> their weighted sum."""
        return skip + self.scale * branch


def run(steps, x, options, *, train, mask, prefix="", numbers=None):
    """Return x after the steps. The module whose compact method calls `run` owns their parameters.

    Args:
      steps: the steps, one after the other.
      x: [batch, H, W, features].
      options: `NetworkOptions`.
      train, mask: as for any module.
      prefix: prefix of the names of convolutions without a `name`.
      numbers: iterator of the numbers of these convolutions. None: 1, 2, ...
    """
    numbers = numbers or itertools.count(1)
    for step in steps:
        match step:
            case Pool():
                x = pool(x, step)
            case LocalNorm():
                x = functional.local_response_norm(x, **step._asdict())
            case RandomDrop():
                x = layers.Dropout(options.dropout)(x, train=train)
            case Depthwise():
                x = _depthwise(step, x.shape[-1], options, f"{prefix}conv{next(numbers)}")(x)
            case Fork(convolutions):
                name = f"{prefix}conv{next(numbers)}"
                modules = [make(conv, options, name=name + a) for a, conv in zip("abcd", convolutions, strict=False)]
                x = jnp.concatenate([module(x, train=train, mask=mask) for module in modules], -1)
            case _:
                name = step.name or f"{prefix}conv{next(numbers)}"
                x = make(step, options, name=name)(x, train=train, mask=mask)
    return x


def make(step, options, **place) -> nn.Module:
    """Return the Linen module of a step, which is called with `train` and `mask`. `place`: its `name` and `parent`."""
    match step:
        case Convolve():
            return ConvNorm(
                *step[:4],
                groups=step.groups,
                norm=options.norm,
                order=options.order,
                use_bias=options.use_bias,
                kernel_init=options.kernel_init,
                bias_init=constant(step.bias),
                dtype=options.dtype,
                **place,
            )
        case Parallel():
            return Branches(step.branches, options, **place)
        case Residual():
            # parent=None: a part belongs to the unit or stack that it is given to.
            branch = Branches(step.branches, options, expand=True, parent=None)
            activation = functional.relu if step.activated else None
            return Unit(branch, ScaledAdd(step.scale, parent=None), activation=activation, **place)
        case _:
            unit = make(step.step, options, parent=None)
            return stack(unit, step.depth, scan=options.scan, remat=options.remat, **place)


def _depthwise(step, features, options, name):
    return layers.Conv(
        step.multiplier * features,
        (step.window, step.window),
        step.stride,
        step.window // 2,
        groups=features,
        kernel_init=options.kernel_init,
        dtype=options.dtype,
        name=name,
    )


def pool(x, step):
    """Return x [batch, H, W, features] after a `Pool`."""
    padding = step.padding
    if padding is None:
        over = [(-(-side // step.stride) - 1) * step.stride + step.window - side for side in x.shape[1:3]]
        padding = [max(pixels, 0) // 2 for pixels in over]
    where = {"stride": step.stride, "padding": padding, "ceil": step.ceil}
    if step.kind == "max":
        return functional.max_pool(x, step.window, **where)
    return functional.avg_pool(x, step.window, count_padding=step.count_padding, **where)


@cache  # so that equal networks compare as equal
def constant(value) -> Callable:
    """Return the initializer that fills with one value."""
    return initializers.constant(value)


def sequential_names(stages, norm, prefix="features"):
    """Return {path: torchvision's name} of convolutions (and batch norms) that torchvision keeps in one Sequential.

    A convolution, its norm, its ReLU and a pool each have a number there.

    >>> sequential_names({"stage1": (Convolve(64, 11), Pool()), "stage2": (Convolve(192, 5),)}, norm=False)
    {'conv1/conv': 'features.0', 'conv2/conv': 'features.3'}
    """
    names, place, numbers = {}, 0, itertools.count(1)
    for step in itertools.chain.from_iterable(stages.values()):
        if isinstance(step, Repeat):
            paths = [f"{step.name}/unit{i}" for i in range(1, step.depth + 1)]
        else:
            paths = [step.name or f"conv{next(numbers)}"] if isinstance(step, Convolve) else []
        for path in paths:
            names[f"{path}/conv"] = f"{prefix}.{place}"
            if norm:
                names[f"{path}/norm"] = f"{prefix}.{place + 1}"
            place += 3 if norm else 2
        place += isinstance(step, Pool)
    return names
