"""The entry point of every convolution of the package: three linear maps, and a table of their implementations.

A convolution is linear in x and linear in the kernel. Three arrays take part, and each map computes one of them from
the other two; `Form` holds everything that is static:

    forward:          x [batch, *size, features_in], kernel [*window, features_in // groups, features_out]
                      -> y [batch, *out, features_out]
    input_gradient:   dy like y, kernel -> dx like x
    kernel_gradient:  x, dy like y -> dkernel like the kernel

The three are closed under differentiation: the derivatives of each are the other two (`primitives.py`). A transposed
convolution is the map `input_gradient`, called on its own.

`TABLE` selects the implementation by platform and kind. Which platform is compiled for is known only when a program is
lowered, so the choice is made there, and one traced program serves every platform. On CPU, the optional package
deepjax_native computes what it supports (`functional/native.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from deepjax.functional import native
from deepjax.functional.convolution import backend, canonical, grouped, primitives, taps


class Maps(NamedTuple):
    """An implementation of the three maps, each a function of two arrays and a `Form`."""

    forward: Callable
    input_gradient: Callable
    kernel_gradient: Callable


FEW = 8  # features in, below which oneDNN's input gradient is slower than ours: it computes 16 at once

BACKEND = Maps(backend.forward, backend.input_gradient, backend.kernel_gradient)

TABLE = {
    ("cpu", "dense"): Maps(canonical.forward, canonical.input_gradient, canonical.kernel_gradient),
    ("cpu", "depthwise"): Maps(taps.forward, taps.input_gradient, taps.kernel_gradient),
    ("cpu", "grouped"): Maps(grouped.forward, grouped.input_gradient, grouped.kernel_gradient),
    ("default", "dense"): BACKEND,
    ("default", "depthwise"): BACKEND,
    ("default", "grouped"): BACKEND,
}


def apply(name, a, b, form) -> jax.Array:
    """Compute one of the three maps.

    Args:
      name: field of `Maps`: "forward", "input_gradient" or "kernel_gradient".
      a, b: the two arrays that the map takes, of one dtype, in the order of the module's docstring.
      form: `Form` of the convolution from x to y.

    Returns:
      The third array.
    """
    a, b = backend.vary_alike(a, b)
    # In explicit sharding mode, the reshapes of our own implementations would need a sharding each.
    if jax.typeof(a).sharding.mesh.explicit_axes:
        return getattr(TABLE["default", form.kind], name)(a, b, form)
    return primitives.bind(name, a, b, form)


def _choose(name, platform, form, context):
    """Return the implementation of a map for a program that is being lowered."""
    package = native.package() if platform == "cpu" else None
    x_or_dy, other = context.avals_in
    few = name == "input_gradient" and form.groups == 1 and other.shape[-2] < FEW
    if package and not few and native.runs_whole(context) and package.supports(form, x_or_dy.dtype):
        return getattr(package, name)
    return getattr(TABLE[platform, form.kind], name)


for _name in Maps._fields:
    primitives.define(_name, _choose, sorted({platform for platform, _ in TABLE}))
