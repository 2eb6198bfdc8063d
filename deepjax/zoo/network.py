"""What every network of the zoo has: its answers, its smallest image, its names in PyTorch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deepjax import initializers
from deepjax.errors import InputError, choices
from deepjax.layers import Dropout
from deepjax.units import norm_factory

INITS = {  # option `init` of every network: how its convolutions' (and hidden layers') kernels start
    "he": initializers.he_normal(mode="fan_out"),
    "he_fan_in": initializers.he_normal(),
    "he_uniform": initializers.he_uniform(),
    "xavier": initializers.xavier_normal(),
    "xavier_uniform": initializers.xavier_uniform(),
    "lecun": initializers.lecun_normal(),
    "orthogonal": initializers.orthogonal(),
    "delta_orthogonal": initializers.delta_orthogonal(),
}


class Network(nn.Module, kw_only=True):
    """A network of images. A family's class adds its own fields, `__call__`, and what follows here where it applies.

    Called as `network(x, train=..., mask=...)`, it returns logits [batch, num_classes]; with auxiliary heads, and
    only in training, (logits, auxiliary logits, ...). With `return_logits=False`, what the last dense layer would
    see: [batch, features]. With `features_only=True`, {stage's name: its map [batch, H, W, features]}.
    """

    num_classes: int = 1000
    return_logits: bool = True
    features_only: bool = False
    norm: Any = "batch"  # a word of `units.NORMS`, a factory of your own, or None; kept as a factory or None
    dropout: float = 0.0  # see each family
    kernel_init: Callable = INITS["he"]
    dtype: jnp.dtype | None = None  # of the computation; parameters are float32
    usual_input: tuple[int, ...] = (224, 224, 3)  # one example's shape, as the network was designed for
    min_size: int = 1  # pixels: the smallest height and width that it takes
    remat: str = "none"  # what the backward pass keeps of its stacks: see `units.stack`

    reversible = False  # whether its stacks are of reversible units, for remat "reversible"
    auxiliary_weight = 0.0  # of each auxiliary head's loss, for networks that have such heads
    borrowed = {}  # noqa: RUF012  {path of a layer: torchvision's module of another network, from which it comes}

    def __post_init__(self):
        self.norm = norm_factory(self.norm)
        super().__post_init__()

    def check_images(self, x):
        """InputError unless x is [batch, height, width, channels] with at least `least` pixels a side."""
        if x.ndim != 4:
            raise InputError(f"images must be [batch, height, width, channels]; x has shape {x.shape}")
        if min(x.shape[1:3]) < self.min_size:
            raise InputError(
                f"image size {x.shape[1]}x{x.shape[2]} is below this network's minimum of "
                f"{self.min_size}x{self.min_size}"
            )

    def classify(self, x, *, train, name="head", kernel_init=None, dropout=None):
        """Logits of x [batch, features] by a dense layer, after dropout; x itself with return_logits=False."""
        if not self.return_logits:
            return x
        rate = self.dropout if dropout is None else dropout
        x = Dropout(rate)(x, train=train) if rate else x
        kernel_init = kernel_init or initializers.lecun_normal()
        return nn.Dense(self.num_classes, kernel_init=kernel_init, dtype=self.dtype, name=name)(x)

    def torch_names(self) -> Mapping[str, str | tuple[str, tuple[int, int]]]:
        """{path of a layer, with scanned units as unit1, unit2, ...: name of torchvision's module}.

        A dense layer that takes flattened maps is (name, (height, width) of the maps), since torchvision flattens
        features first. Networks that torchvision does not have raise InputError.
        """
        raise InputError(
            f"{type(self).__name__} of this form: torchvision has no such network, so its weights have no other names"
        )


GENERAL = {"return_logits": True, "features_only": False, "init": None, "remat": None}  # see `create`; None: as usual


def with_general_options(network, options) -> Any:
    """The network with options of `GENERAL` set. Raises InputError for an unknown init, or a remat that cannot be."""
    options = dict(options)
    remat = options.pop("remat", None)
    if remat is not None:
        kept = ("none", "unit", "sqrt", *(["reversible"] if network.reversible else []))
        check_option(type(network).__name__, "remat", remat, kept)
        options["remat"] = remat
    if remat not in (None, "none") and not getattr(network, "scan", False):
        raise InputError(f"option remat {remat!r} needs a network with scanned units; this one has none: leave it out")
    init = options.pop("init", None)
    if init is not None:
        if not isinstance(init, str) or init not in INITS:
            raise InputError(f"option init {init!r} is unknown; {choices(str(init), INITS)}")
        options["kernel_init"] = INITS[init]
    return network.clone(**options) if options else network


def check_at_least_one(network, **values):
    """Raises InputError for a count below 1."""
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{network}: {name} {value} must be at least 1")


def check_rate(network, **rates):
    """Raises InputError for a probability outside [0, 1]."""
    for name, value in rates.items():
        if not 0 <= value <= 1:
            raise InputError(f"{network}: {name} {value} is a probability; it must be in [0, 1]")


def check_option(network, option, value, valid):
    """Raises InputError for a value that is not one of the valid ones."""
    if value not in valid:
        raise InputError(f"{network}: {option} {value!r} is unknown; {choices(str(value), valid)}")


def named(factory, **names):
    """{name: factory with the given arguments fixed}: `named(vgg, vgg11={"config": "A"})`."""
    return {name: partial(factory, **arguments) for name, arguments in names.items()}
