"""Find the arguments that a module's call takes, for models, units and norms."""

import contextlib
import inspect
from typing import Any

import flax.errors
import flax.linen as nn

from deepjax.errors import InputError, first_line


def accepts(module: Any, name: str) -> bool:
    """Return whether `module(..., name=...)` is a valid call.

    A call with `**kwargs` takes every name. `nn.Sequential` passes its keyword arguments to its first layer, so it
    takes what that layer takes.

    Args:
      module: a Linen module, or any other callable.
      name: name of a keyword argument, such as "train" or "mask".

    >>> accepts(nn.Dense(3), "train"), accepts(nn.BatchNorm(), "use_running_average")
    (False, True)
    """
    if isinstance(module, nn.Sequential):
        return bool(module.layers) and accepts(module.layers[0], name)
    try:
        parameters = inspect.signature(module).parameters
    except ValueError:  # a built-in function without a signature
        return False
    keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = name in parameters and parameters[name].kind in keyword
    return named or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def call_arguments(module: Any, **offered: Any) -> dict[str, Any]:
    """Return those of the offered keyword arguments that `module`'s call takes.

    >>> call_arguments(nn.BatchNorm(), train=True, use_running_average=False)
    {'use_running_average': False}
    """
    return {name: value for name, value in offered.items() if accepts(module, name)}


@contextlib.contextmanager
def input_errors(shape):
    """Raise the error of a model that cannot be called as one `InputError`, which names the input's shape.

    Args:
      shape: shape of the model's input, for the message.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> with input_errors((1, 4)):
    ...     nn.Dense(3).apply({}, jnp.ones((1, 4)))
    Traceback (most recent call last):
    deepjax.errors.InputError: the model does not take an input of shape (1, 4): ...
    """
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, flax.errors.FlaxError) as error:
        raise InputError(f"the model does not take an input of shape {shape}: {first_line(error)}") from error
