"""The entry point of every convolution of the package: three linear maps, and a table of their implementations.

A convolution is linear in x and linear in the kernel. Three arrays take part, and each map computes one of them from
the other two; `Form` holds everything that is static:

    forward:          x [batch, *size, features_in], kernel [*window, features_in // groups, features_out]
                      -> y [batch, *out, features_out]
    input_gradient:   dy like y, kernel -> dx like x
    kernel_gradient:  x, dy like y -> dkernel like the kernel

The three are closed under differentiation: the derivatives of each are the other two. A transposed convolution is the
map `input_gradient`, called on its own.

`TABLE` selects the implementation by platform and kind. Which platform is compiled for is known only when a program is
lowered, so the choice is made there (`lax.platform_dependent`), and one traced program serves every platform.

Where the platforms' implementations differ, the derivatives are a `custom_vjp`, so forward mode (`jax.jvp`,
`jax.jacfwd`, `jax.hessian`) is not available for dense and depthwise convolutions. Reverse over reverse is: replace
`jax.hessian(loss)` by `jax.jacrev(jax.grad(loss))`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import lax

from deepjax.functional.convolution import backend, canonical, taps


class Maps(NamedTuple):
    """An implementation of the three maps, each a function of two arrays and a `Form`."""

    forward: Callable
    input_gradient: Callable
    kernel_gradient: Callable


BACKEND = Maps(backend.forward, backend.input_gradient, backend.kernel_gradient)

TABLE = {
    ("cpu", "dense"): Maps(backend.forward, canonical.input_gradient, canonical.kernel_gradient),
    ("cpu", "depthwise"): Maps(taps.forward, taps.input_gradient, taps.kernel_gradient),
    ("cpu", "grouped"): BACKEND,
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
    cpu, default = TABLE["cpu", form.kind], TABLE["default", form.kind]
    # In explicit sharding mode, the reshapes of our own implementations would need a sharding each.
    if cpu is default or jax.typeof(a).sharding.mesh.explicit_axes:
        return getattr(default, name)(a, b, form)
    return _apply(name, a, b, form)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _apply(name, a, b, form):
    cpu, default = (getattr(TABLE[platform, form.kind], name) for platform in ("cpu", "default"))
    if cpu is default:
        return default(a, b, form)
    return lax.platform_dependent(a, b, cpu=partial(cpu, form=form), default=partial(default, form=form))


def _save(name, a, b, form):
    return _apply(name, a, b, form), (a, b)


def _gradients(name, form, saved, cotangent):
    if name == "forward":
        x, kernel, dy = *saved, cotangent
        return apply("input_gradient", dy, kernel, form), apply("kernel_gradient", x, dy, form)
    if name == "input_gradient":
        dy, kernel, x = *saved, cotangent
        return apply("forward", x, kernel, form), apply("kernel_gradient", x, dy, form)
    x, dy, kernel = *saved, cotangent
    return apply("input_gradient", dy, kernel, form), apply("forward", x, kernel, form)


_apply.defvjp(_save, _gradients)
