"""Which arguments a module's call takes: the one answer for models, units and norms."""

import inspect
from typing import Any


def accepts(module: Any, name: str) -> bool:
    """Return whether `module(..., name=...)` is a valid call.

    Args:
      module: a Linen module, or any other callable.
      name: of a keyword argument, such as "train" or "mask".

    >>> import flax.linen as nn
    >>> accepts(nn.Dense(3), "train"), accepts(nn.BatchNorm(), "use_running_average")
    (False, True)
    """
    call = type(module).__call__ if not inspect.isfunction(module) else module
    parameters = inspect.signature(call).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def call_arguments(module: Any, **offered: Any) -> dict[str, Any]:
    """Return those of the offered keyword arguments that `module`'s call takes.

    >>> import flax.linen as nn
    >>> call_arguments(nn.BatchNorm(), train=True, use_running_average=False)
    {'use_running_average': False}
    """
    return {name: value for name, value in offered.items() if accepts(module, name)}
