"""What all networks have in common: outputs, general options, minimum image size, names of layers in torchvision."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deepjax import initializers
from deepjax.errors import InputError, choices
from deepjax.layers import Dense, Dropout
from deepjax.units import norm_factory

# Option `init` of every network: the initializer of its convolutions and hidden layers. Its fan_out is not divided by
# the groups of a convolution. That is PyTorch's fan_out, and the published initialization of ResNeXt, MobileNet v2 and
# v3 and EfficientNet, which these networks keep. One without a published one has None, the default of `layers.Conv`.
INITS = {
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
    """A network that classifies images. The class of a family adds its fields and `__call__`.

    `network(x, train=..., mask=...)` returns logits [batch, num_classes]. With auxiliary heads it returns, in training
    only, (logits, auxiliary logits, ...). With `return_logits=False` it returns the input of the last dense layer,
    [batch, features], and with `features_only=True` {name of a stage: its map [batch, H, W, features]}.
    """

    num_classes: int = 1000
    return_logits: bool = True
    features_only: bool = False
    norm: Any = "batch"  # a name in `units.NORMS`, a factory, or None; stored as a factory or None
    dropout: float = 0.0  # see each family
    kernel_init: Any = INITS["he"]  # an initializer; None: the default of `layers.Conv`, which knows its groups
    dtype: jnp.dtype | None = None  # of the computation; parameters are float32
    usual_input: tuple[int, ...] = (224, 224, 3)  # shape of one example, for which the network was designed
    min_size: int = 1  # smallest height and width, in pixels
    remat: str = "none"  # what the backward pass stores of the stacks; see `units.stack`

    reversible = False  # whether the stacks have reversible units, for remat "reversible"
    auxiliary_weight = 0.0  # of the loss of each auxiliary head
    borrowed = {}  # noqa: RUF012  {path of a layer: torchvision's name of the module of another network that it comes from}

    def __post_init__(self):
        self.norm = norm_factory(self.norm)
        super().__post_init__()

    def check_images(self, x):
        """Raise InputError unless x is [batch, height, width, channels] with at least `min_size` pixels a side."""
        if x.ndim != 4:
            raise InputError(f"images must be [batch, height, width, channels]; x has shape {x.shape}")
        if min(x.shape[1:3]) < self.min_size:
            raise InputError(
                f"image size {x.shape[1]}x{x.shape[2]} is below this network's minimum of "
                f"{self.min_size}x{self.min_size}"
            )

    def classify(self, x, *, train, name="head", kernel_init=None, dropout=None):
        """Return logits of x [batch, features], by dropout and a dense layer. Return x if `return_logits` is False."""
        if not self.return_logits:
            return x
        rate = self.dropout if dropout is None else dropout
        x = Dropout(rate)(x, train=train) if rate else x
        kernel_init = kernel_init or initializers.lecun_normal()
        return Dense(self.num_classes, kernel_init=kernel_init, dtype=self.dtype, name=name)(x)

    def torch_names(self) -> Mapping[str, str | tuple[str, tuple[int, int]]]:
        """Return {path of a layer, with scanned units as unit1, unit2, ...: name of torchvision's module}.

        For a dense layer of flattened maps, the name is (name, (height, width) of the maps), because torchvision
        flattens features first.

        Raises:
          InputError: torchvision does not have this network.
        """
        raise InputError(
            f"torchvision has no such network: {type(self).__name__} with these options; use weights of deepjax"
        )


GENERAL = {
    "return_logits": True,
    "features_only": False,
    "init": None,
    "remat": None,
}  # see `create`; None: the network's own


def with_general_options(network, options) -> Any:
    """Return the network with options of `GENERAL`. Raise InputError for an unknown init or an impossible remat."""
    options = dict(options)
    remat = options.pop("remat", None)
    if remat is not None:
        kept = ("none", "unit", "sqrt", *(["reversible"] if network.reversible else []))
        check_option(type(network).__name__, "remat", remat, kept)
        options["remat"] = remat
    if remat not in (None, "none") and not getattr(network, "scan", False):
        raise InputError(
            f"option remat {remat!r} needs a network with scanned units; this one has none, so leave it out"
        )
    init = options.pop("init", None)
    if init is not None:
        if not isinstance(init, str) or init not in INITS:
            raise InputError(f"option init {init!r} is unknown; {choices(str(init), INITS)}")
        options["kernel_init"] = INITS[init]
    return network.clone(**options) if options else network


def check_at_least_one(network, **values):
    """Raise InputError for a count below 1."""
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{network}: {name} {value} must be at least 1")


def check_rate(network, **rates):
    """Raise InputError for a probability outside [0, 1]."""
    for name, value in rates.items():
        if not 0 <= value <= 1:
            raise InputError(f"{network}: {name} {value} is a probability; it must be in [0, 1]")


def check_option(network, option, value, valid):
    """Raise InputError for a value that is not one of the valid ones."""
    if value not in valid:
        raise InputError(f"{network}: {option} {value!r} is unknown; {choices(str(value), valid)}")


def check_order(network, order, norm):
    """Raise InputError unless order is "post" (norm, then activation) or, with a norm, "last" (the reverse)."""
    check_option(network, "order", order, ("post", "last"))
    if order != "post" and norm_factory(norm) is None:
        raise InputError(f"{network}: order {order} has no effect with norm none; set norm batch")


def named(factory, **names):
    """Return {name: factory with fixed arguments}: `named(vgg, vgg11={"config": "A"})`."""
    return {name: partial(factory, **arguments) for name, arguments in names.items()}
