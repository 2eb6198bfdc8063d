"""Networks by name, collected from the families' files.

`MODELS` is {name: function of the network's options}; `CARDS` is {name: what is published about its trained weights}.
A family's file has both. To add a family, write its file and add its name to `FAMILIES`.
"""

import functools
import inspect
import math
import operator
from collections.abc import Mapping
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
        "features",
        "small",
        "googlenet",
        "inception",
        "inception_v4",
        "lenet",
        "monster",
        "alexnet",
        "vgg",
        "fitnet",
        "multi_column",
        "spatial_transformer",
        "allconv",
        "speed",
        "mobile",
        "xception",
        "efficientnet",
    )
)
MODELS = {name: function for family in FAMILIES for name, function in family.MODELS.items()}
CARDS: dict[str, Card] = {name: card for family in FAMILIES for name, card in getattr(family, "CARDS", {}).items()}


def create(
    name: Any, options: Mapping[str, Any] | None = None, /, *, num_classes: int | None = None, **more: Any
) -> Any:
    """Make a network as a Linen module::

        model = create("cifar_resnet20", num_classes=10)
        variables = jax.jit(model.init, static_argnames="train")(key, x, train=False)  # without jit: slower
        logits = model.apply(variables, x, train=False)

    Args:
      name: a key of `MODELS`.
      options: those that `options_of(name)` lists, such as depth, width, dtype. Every network has

        - features_only: True: a call returns {stage's name: its map}; there is no head.
        - return_logits: False: a call returns the input of the last dense layer, such as pooled features.
        - remat: "none", "unit" or "sqrt": what scanned units store for the backward pass; see `units.stack`. Reversible
          networks also have "reversible". None: the network's usual value, mostly "none".
        - init: initializer of the kernels, a key of `network.INITS`, whose fan_out is PyTorch's: not divided by the
          groups of a convolution. None: the network's usual one.

      num_classes: number of logits. None: the network's usual number.
      **more: options by name, in addition to `options`.

    Raises:
      InputError: an unknown name or option, or a value that the network cannot have. Nothing is built then.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise InputError(f"model {name!r} is unknown; {choices(str(name), MODELS)}")
    given = {**(options or {}), **more}
    check_options(name, given)
    function = MODELS[name]
    if num_classes is not None:
        if isinstance(num_classes, bool) or not hasattr(num_classes, "__index__"):
            raise InputError(f"num_classes {num_classes!r} of model {name} must be an int")
        given["num_classes"] = operator.index(num_classes)
    taken = inspect.signature(function).parameters
    general = {option: given.pop(option) for option in set(given) - set(taken)}
    return with_general_options(function(**given), general)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise InputError unless a network has these options, with values of the right type.

    >>> check_options("mlp", {"depth": 4, "norm": "batch"})
    """
    valid = options_of(name)
    for option, value in options.items():
        if option in ("name", "num_classes"):
            raise InputError(f"model {name}: {option} is not an option; {REMEDIES[option]}")
        if option not in valid:
            raise InputError(f"model {name} has no option {option!r}; {choices(option, valid)}")
        wanted = _wanted(option, value, valid[option])
        if wanted:
            raise InputError(f"option {option} of model {name} is {value!r}; it must be {wanted}")


REMEDIES = {
    "name": "choose the model by its own argument",
    "num_classes": "set the number of classes by its own argument; in a run, the data set gives it",
}
TYPES = {"init": str, "remat": str, "dropout": float, "bias": float}  # of options whose usual value is None


def _wanted(option, value: Any, usual: Any):
    """Describe what the value of an option must be. Return None if the value is valid."""
    if value is None and usual is None:
        return None
    if option == "dtype":
        return None if _is_float_type(value) else "a float type, such as bfloat16"
    if option == "norm" and (value is None or (callable(value) and not isinstance(value, str))):
        return None
    kind = TYPES[option] if usual is None else type(usual)
    if type(value) is not kind and not (kind is float and type(value) is int):
        return kind.__name__ + ("" if usual is None else f", such as {usual!r}")
    return None if not isinstance(value, float) or math.isfinite(value) else "a finite number"


def _is_float_type(dtype):
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def options_of(name: str) -> dict[str, Any]:
    """Return the options of a network and their usual values, without those that its name fixes (resnet18's depths)."""
    function = MODELS[name]
    fixed = {"num_classes", *(function.keywords if isinstance(function, functools.partial) else ())}
    parameters = inspect.signature(function).parameters.values()
    special = {p.name: p.default for p in parameters if p.name not in fixed}
    # `remat` applies to scanned units, which only networks with the option `scan` have.
    general = {name: default for name, default in GENERAL.items() if name != "remat" or "scan" in special}
    return general | special


def usual_input(name):
    """Return the shape of one example, (height, width, channels), that a network was designed for."""
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


def parameter_count(name: str) -> int:
    """Return the number of parameters of a network, with its usual input, options and number of classes."""
    from deepjax.zoo import parameters  # which needs this module

    return parameters.parameter_count(name)
