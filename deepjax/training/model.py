"""The model of a config: one of the zoo's networks, or a Linen module that the caller gives."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from deepjax import zoo
from deepjax.config import Config
from deepjax.errors import InputError


def make_model(config, num_classes, model=None):
    """Return `model`, or, if it is None, the zoo's network of a config.

    Args:
      config: the experiment.
      num_classes: number of classes of the data set; None: the network's usual number.
      model: a Linen module in place of the zoo's.

    Raise InputError if the options and the data do not go together, if the zoo has no such network, or if `model`
    is no Linen module.
    """
    if model is not None:
        _check_module(model)
        return model
    if "dtype" in config.model_options:
        raise InputError(f"model_options.dtype {config.model_options['dtype']!r} is not an option; set --dtype")
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    return zoo.create(config.model, config.model_options | {"dtype": dtype}, num_classes=num_classes)


def _check_module(model):
    """Raise InputError for anything but a Linen module, such as the class of one."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InputError(f"model={model.__name__} is a class; give a module, such as model={model.__name__}()")
    if not isinstance(model, nn.Module):
        raise InputError(f"model {model!r:.80} is no flax.linen.Module; give one, or name a network by config.model")


def check_in_zoo(where, name, remedy):
    """Raise InputError if the run `where` is not of one of the zoo's networks, but of a user's module called `name`."""
    if name not in zoo.MODELS:
        raise InputError(f"{where}: the zoo has no model {name}; {remedy}")


def with_given(config, model, dataset):
    """Return the config with the names of the model and the data set that the caller gives as objects, if any.

    Raise InputError for fields of the config that would have no effect on such a model, and as `make_model`.
    """
    if dataset is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, name=dataset.name))
    if model is None:
        return config
    _check_module(model)
    default, name = Config(), type(model).__name__
    for field in ("model_options", "dtype", "pretrained"):
        if getattr(config, field) != getattr(default, field):
            raise InputError(f"{field} {getattr(config, field)} has no effect on model={name}(...); leave it out")
    if name in zoo.MODELS:
        raise InputError(f"model={name}(...): the zoo has a network of this name; rename the class")
    return dataclasses.replace(config, model=name)
