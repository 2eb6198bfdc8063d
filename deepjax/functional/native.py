"""The optional package deepjax_native: convolutions by oneDNN and max pooling's gradient on CPU, from `native/`.

It is used where it is installed. The environment variable DEEPJAX_NATIVE=0 switches it off.
"""

import functools
import importlib
import importlib.util
import os
from typing import Any

from deepjax.errors import InputError, first_line


@functools.cache
def package() -> Any:
    """Return the package deepjax_native; None if it is not installed or switched off.

    Raise InputError if it is installed but cannot be loaded.
    """
    if os.environ.get("DEEPJAX_NATIVE") == "0" or importlib.util.find_spec("deepjax_native") is None:
        return None
    try:
        return importlib.import_module("deepjax_native")
    except Exception as error:  # of its libraries, which may be anything
        raise InputError(
            f"the package deepjax_native cannot be loaded ({first_line(error)}); install it again, or set the "
            f"environment variable DEEPJAX_NATIVE=0"
        ) from error


def runs_whole(context) -> bool:
    """Return whether a program that is being lowered gives every operation whole arrays of one device.

    XLA cannot divide the operations of the package among devices, as it does with its own under plain `jit`.

    Args:
      context: `mlir.LoweringRuleContext`.
    """
    axes = context.module_context.axis_context
    mesh = getattr(axes, "mesh", None)
    if mesh is not None:  # inside a shard_map
        return set(axes.manual_axes) == set(mesh.axis_names)
    return getattr(axes, "num_devices", 1) == 1
