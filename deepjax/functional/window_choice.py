"""The derivative of the largest value of each window: two primitives, each of which is the transpose of the other.

    pick(x, dx):  dy[window] = dx at the largest value of x in the window
    drop(x, dy):  dx = for each window, dy added at the largest value of x in it

Of equal values, the first is the largest. Both are linear in the second array, and the places of the largest values do
not change with x (but at ties), so forward mode, reverse mode and their compositions need no other rule. What computes
them is chosen when a program is lowered: on CPU, `drop` by the optional package deepjax_native, where it is installed.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from deepjax.functional import native
from deepjax.functional.convolution.backend import vary_alike

MAX_TAPS = 32  # larger windows would be too many operations to compile
PICK, DROP = Primitive("pick_largest"), Primitive("drop_at_largest")


def pick(x, dx, window, stride, pads):
    """Return dx at the largest value of each window of x. For the arguments see `windows.largest`."""
    if jax.typeof(dx).sharding.mesh.explicit_axes:  # the primitives have no rules for it
        return pick_of_jax(x, dx, window=window, stride=stride, pads=pads)
    x, dx = vary_alike(x, dx)
    return PICK.bind(x, dx, window=window, stride=stride, pads=pads)


def views(x, padding, window, stride, pads):
    """Yield, for each pixel of a window, the values that all windows have there."""
    padded = lax.pad(x, jnp.asarray(padding, x.dtype), [(low, high, 0) for low, high in pads])
    spans = [(size - w) // s * s + 1 for size, w, s in zip(padded.shape, window, stride, strict=True)]
    for tap in itertools.product(*map(range, window)):
        yield lax.slice(padded, tap, [t + span for t, span in zip(tap, spans, strict=True)], stride)


def largest(x, window, stride, pads):
    """Return the largest value of each window, by an operation of XLA."""
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(x, np.asarray(lowest, x.dtype), lax.max, window, stride, pads)


# Implementations


def pick_of_jax(x, dx, *, window, stride, pads):
    """Compute `pick` by the derivative that JAX has for `lax.reduce_window`."""
    return jax.jvp(lambda x: largest(x, window, stride, pads), (x,), (dx,))[1]


def pick_of_views(x, dx, *, window, stride, pads):
    """Compute `pick` as a choice among shifted views."""
    if math.prod(window) > MAX_TAPS:
        return pick_of_jax(x, dx, window=window, stride=stride, pads=pads)
    first, *others = views(x, -np.inf, window, stride, pads)
    best, place = first, jnp.zeros(first.shape, jnp.uint8)
    for i, view in enumerate(others, 1):
        larger = view > best
        best, place = jnp.where(larger, view, best), jnp.where(larger, jnp.uint8(i), place)
    taps = enumerate(views(dx, 0.0, window, stride, pads))
    return sum(jnp.where(place == i, view, jnp.zeros((), dx.dtype)) for i, view in taps)


def _transposed(pick):
    """Return `drop` as the transpose of an implementation of `pick`."""

    def drop(x, dy, **geometry):
        varying = jax.typeof(dy).manual_axis_type  # inside a shard_map, dx varies over the devices as dy does
        dx = jax.ShapeDtypeStruct(x.shape, dy.dtype, sharding=jax.typeof(dy).sharding, manual_axis_type=varying)
        return jax.linear_transpose(lambda dx: pick(x, dx, **geometry), dx)(dy)[0]

    return drop


drop_of_jax, drop_of_views = _transposed(pick_of_jax), _transposed(pick_of_views)


def _native_drop(x, dy, *, window, stride, pads):
    low = tuple(low for low, _ in pads[1:-1])
    return native.package().max_pool_gradient(x, dy, window[1:-1], stride[1:-1], low)


# Rules


def _shape(x, window, stride, pads):
    sizes = zip(x.shape, window, stride, pads, strict=True)
    return tuple((size + low + high - w) // s + 1 for size, w, s, (low, high) in sizes)


def _define(primitive, other, shape, lowerings):
    """Give a primitive its rules.

    Args:
      primitive: `PICK` or `DROP`.
      other: its transpose.
      shape: (x, window, stride, pads) -> shape of the result.
      lowerings: {platform: function of the context of the lowering that returns the implementation}.
    """
    run = jax.jit(primitive.bind, static_argnames=("window", "stride", "pads"))
    primitive.def_impl(lambda *arrays, **geometry: run(*arrays, **geometry))
    primitive.def_abstract_eval(lambda x, z, **geometry: z.update(shape=shape(x, **geometry), weak_type=False))

    def tangent(primals, tangents, **geometry):
        (x, z), (_, dz) = primals, tangents
        result = primitive.bind(x, z, **geometry)
        zero = isinstance(dz, ad.Zero)
        return result, ad.Zero(jax.typeof(result).to_tangent_aval()) if zero else primitive.bind(x, dz, **geometry)

    def transpose(dresult, x, z, **geometry):
        zero = isinstance(dresult, ad.Zero)
        return None, ad.Zero(z.aval) if zero else other.bind(x, dresult, **geometry)

    def batched(arrays, dims, **geometry):
        """Fold the mapped axis into the batch."""
        lanes = next(array.shape[dim] for array, dim in zip(arrays, dims, strict=True) if dim is not None)
        arrays = [batching.bdim_at_front(array, dim, lanes) for array, dim in zip(arrays, dims, strict=True)]
        result = primitive.bind(*(array.reshape(-1, *array.shape[2:]) for array in arrays), **geometry)
        return result.reshape(lanes, -1, *result.shape[1:]), 0

    ad.primitive_jvps[primitive] = tangent
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batched
    for platform, choose in lowerings.items():

        def lower(context, x, z, *, choose=choose, **geometry):
            function = partial(choose(context), **geometry)
            return mlir.lower_fun(function, multiple_results=False)(context, x, z)

        mlir.register_lowering(primitive, lower, platform=platform)


def _drop_on_cpu(context):
    x, dy = context.avals_in
    package = native.package() if native.runs_whole(context) else None
    whole = package and x.dtype == dy.dtype and package.supports_max_pool(x.ndim - 2, x.dtype)
    return _native_drop if whole else drop_of_views


_define(PICK, DROP, _shape, {None: lambda _: pick_of_jax, "cpu": lambda _: pick_of_views})
_define(DROP, PICK, lambda x, **_: x.shape, {None: lambda _: drop_of_jax, "cpu": _drop_on_cpu})
