"""Networks by name, collected from the families' files.

`MODELS` is {name: function of the network's options}; `CARDS` is {name: what is published about its trained weights}.
A family's file has both. To add a family, write its file and add its name to `FAMILIES`.
"""

import functools
import inspect
import operator
from importlib import import_module
from typing import Any

import jax.numpy as jnp

from deepjax.errors import InputError, choices
from deepjax.zoo.cards import Card, Preprocessing
from deepjax.zoo.network import GENERAL, with_general_options

FAMILIES: tuple[Any, ...] = tuple(
    import_module(f"deepjax.zoo.{family}")
    for family in (
        "residual",
        "residual_cifar",
        "reversible",
        "shake",
        "highway",
        "dense",
        "plain",
        "small",
        "googlenet",
        "inception",
        "inception_v4",
        "lenet",
        "monster",
        "alexnet",
        "vgg",
        "allconv",
        "speed",
        "mobile",
        "xception",
        "efficientnet",
    )
)
MODELS = {name: function for family in FAMILIES for name, function in family.MODELS.items()}
CARDS: dict[str, Card] = {name: card for family in FAMILIES for name, card in getattr(family, "CARDS", {}).items()}


def create(name, *, num_classes=None, **options):
    """The network called `name`, as a Linen module.

        model = create("cifar_resnet20", num_classes=10)
        variables = jax.jit(model.init, static_argnames="train")(key, x, train=False)  # without jit: slower
        logits = model.apply(variables, x, train=False)

    Args:
      name: a key of `MODELS`.
      num_classes: number of logits; None: the network's usual number.
      **options: what `options_of(name)` lists, such as depth, width, dtype. Every network has
        features_only: True: called, it returns {stage's name: its map}, and has no head.
        return_logits: False: called, it returns what the last dense layer would see, such as pooled features.
        remat: "none", "unit" or "sqrt": what its scanned units keep for the backward pass; see `units.stack`.
          Reversible networks also have "reversible". None: as is usual for the network, mostly "none".
        init: how kernels start, a name in `network.INITS`; None: as is usual for the network.

    Raises:
      InputError: an unknown name or option, or a value that the network cannot have.
    """
    if name not in MODELS:
        raise InputError(f"model {name!r} is unknown; {choices(name, MODELS)}")
    valid = options_of(name)
    function, general = MODELS[name], {}
    for option, value in options.items():
        if option not in valid:
            raise InputError(f"model {name} has no option {option!r}; {choices(option, valid)}")
        usual = valid[option]
        fits = type(value) is type(usual) or (type(usual) is float and type(value) is int)
        fits = fits or (option == "norm" and (value is None or callable(value)))
        if usual is not None and not fits:
            raise InputError(
                f"option {option} of model {name} is {value!r}; it must be {type(usual).__name__}, such as {usual!r}"
            )
    if options.get("dtype") is not None:
        try:
            jnp.dtype(options["dtype"])
        except TypeError:
            raise InputError(f"option dtype of model {name} is {options['dtype']!r}; try bfloat16") from None
    if num_classes is not None:
        try:
            options["num_classes"] = operator.index(num_classes)
        except TypeError:
            raise InputError(f"num_classes {num_classes!r} must be an int") from None
    for option in set(options) - set(inspect.signature(function).parameters):
        general[option] = options.pop(option)
    return with_general_options(function(**options), general)


def options_of(name):
    """The options of a network and their defaults. What its name fixes (resnet18's depths) is not among them."""
    function = MODELS[name]
    fixed = {"num_classes", *(function.keywords if isinstance(function, functools.partial) else ())}
    parameters = inspect.signature(function).parameters.values()
    own = {p.name: p.default for p in parameters if p.name not in fixed}
    # what scanned units keep is a question only where there are such units
    general = {name: default for name, default in GENERAL.items() if name != "remat" or "scan" in own}
    return general | own


def usual_input(name):
    """Shape of one example, (height, width, channels), that a network was designed for."""
    return create(name).usual_input


def preprocessing(name) -> Preprocessing:
    """Return how images are prepared for torchvision's IMAGENET1K_V1 weights of a network.

    Raises:
      InputError: a network of which torchvision has no weights.
    """
    if name not in CARDS:
        raise InputError(
            f"the image preprocessing for weights of {name} is unknown; export the weights from a run, or convert them "
            f"with --preprocessing"
        )
    return CARDS[name].preprocessing
