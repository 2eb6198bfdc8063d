"""Convolutions by oneDNN, and the gradient of max pooling, as FFI targets of XLA on CPU.

`forward`, `input_gradient` and `kernel_gradient` take float32 arrays with features last and a static description of the
convolution: `form.axes`, one object per spatial axis with size, window, stride, low, high and dilation in pixels, and
`form.groups`. The functions have no rules for differentiation and batching.
"""

import ctypes
import importlib.metadata
import os
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

ONEDNN = "onednn-cpu-gomp"


def _load():
    """Load oneDNN, then the library that needs it, and register the targets. Raise ImportError if oneDNN is missing."""
    try:
        files = importlib.metadata.files(ONEDNN) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [Path(f.locate()) for f in files if f.name == "libdnnl.so.3"]
    if not paths or not paths[0].exists():
        raise ImportError(
            f"deepjax_native: {ONEDNN} has no libdnnl.so.3 here; run: pip install --force-reinstall {ONEDNN}"
        )
    # The loader does not look for a library that is there already, so no search path is needed.
    ctypes.CDLL(str(paths[0].resolve()))
    library = ctypes.CDLL(str(Path(__file__).with_name("deepjax_native.so")))
    for name in ("Forward", "InputGradient", "KernelGradient", "MaxPoolGradient"):
        jax.ffi.register_ffi_target(f"deepjax_native.{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return library


_LIBRARY = _load()  # a library that is unloaded would leave XLA with dead pointers


def enabled():
    """Return whether this package is to be used: the environment variable DEEPJAX_NATIVE is not "0"."""
    return os.environ.get("DEEPJAX_NATIVE") != "0"


def supports(form, dtype):
    """Return whether the three maps of this form are computed here: float32, 1 to 3 axes, no negative padding.

    False unless `enabled`.
    """
    padded = all(a.low >= 0 and a.high >= 0 for a in form.axes)
    return enabled() and np.dtype(dtype) == np.float32 and 1 <= len(form.axes) <= 3 and padded


def supports_max_pool(axes, dtype):
    """Return whether the gradient of max pooling over `axes` spatial axes is computed here. False unless `enabled`."""
    return enabled() and np.dtype(dtype) == np.float32 and 1 <= axes <= 3


def forward(x, kernel, form):
    """Compute y [batch, *out, out] from x [batch, *size, in] and the kernel [*window, in // groups, out]."""
    shape = (x.shape[0], *(a.out for a in form.axes), kernel.shape[-1])
    return _call("Forward", x, kernel, shape, form)


def input_gradient(dy, kernel, form):
    """Compute the gradient of the loss in x from that in y."""
    shape = (dy.shape[0], *(a.size for a in form.axes), kernel.shape[-2] * form.groups)
    return _call("InputGradient", dy, kernel, shape, form)


def kernel_gradient(x, dy, form):
    """Compute the gradient of the loss in the kernel from x and that in y."""
    shape = (*(a.window for a in form.axes), x.shape[-1] // form.groups, dy.shape[-1])
    return _call("KernelGradient", x, dy, shape, form)


def max_pool_gradient(x, dy, window, stride, low):
    """Compute the gradient of the loss in x of a max pooling: dy goes to the first of the largest pixels of its window.

    Args:
      x: [batch, *size, features], float32.
      dy: [batch, *out, features], the gradient in the result.
      window, stride, low: one number per spatial axis; `low` counts the pixels of padding before x.
    """
    return _ffi("MaxPoolGradient", (x, dy), x.shape, **_numbers(window=window, stride=stride, low=low))


def _call(name, a, b, shape, form):
    numbers = {field: [getattr(a, field) for a in form.axes] for field in ("stride", "low", "high", "dilation")}
    return _ffi(name, (a, b), shape, groups=np.int64(form.groups), **_numbers(**numbers))


def _numbers(**lists):
    return {name: np.array(numbers, np.int64) for name, numbers in lists.items()}


def _ffi(name, arrays, shape, **attributes):
    given = jax.typeof(arrays[0])
    # Inside a shard_map, the result varies over the devices as the arrays do.
    sharding = NamedSharding(given.sharding.mesh, PartitionSpec())
    result = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding, manual_axis_type=given.manual_axis_type)
    return jax.ffi.ffi_call(f"deepjax_native.{name}", result)(*arrays, **attributes)
