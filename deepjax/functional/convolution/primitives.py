"""The three maps as JAX primitives, which differentiate into each other.

A convolution is the trilinear form

    T(x, kernel, dy) = sum over n, o, k, i, j of x[n, o * stride + k * dilation - low, i] kernel[k, i, j] dy[n, o, j],

and each map is its derivative in one of the three arrays: forward in dy, input gradient in x, kernel gradient in the
kernel. A map is linear in each of its two operands, so its transposes are the other two maps, and forward mode, reverse
mode and all their compositions need no other rule. (A `custom_vjp` has no forward mode.)

`maps.py` says how each map is computed on each platform.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from deepjax.functional.convolution import backend
from deepjax.functional.convolution.form import form_of

# map: (first operand, second operand, result)
ROLES = {
    "forward": ("x", "kernel", "y"),
    "input_gradient": ("y", "kernel", "x"),
    "kernel_gradient": ("x", "y", "kernel"),
}
MAP_OF = {frozenset(operands): (name, operands) for name, (*operands, _) in ROLES.items()}
# The index that two of the arrays share and the third has not.
SHARED = {
    frozenset(("x", "y")): "example",
    frozenset(("x", "kernel")): "feature in",
    frozenset(("y", "kernel")): "feature out",
}
PRIMITIVES = {name: Primitive(f"conv_{name}") for name in ROLES}


def bind(name, a, b, form) -> jax.Array:
    """Compute one of the three maps by its primitive. For the arguments see `maps.apply`."""
    return PRIMITIVES[name].bind(a, b, form=form)


def define(name, choose: Callable, platforms):
    """Give the primitive of a map its rules.

    Args:
      name: of the map.
      choose: (name, platform, form, context of the lowering) -> the function of (a, b, form) that computes the map.
      platforms: those that have their own functions, and "default".
    """
    primitive, (first, second, result) = PRIMITIVES[name], ROLES[name]
    run = jax.jit(primitive.bind, static_argnames="form")
    primitive.def_impl(lambda a, b, *, form: run(a, b, form=form))
    primitive.def_abstract_eval(lambda a, b, *, form: a.update(shape=_shape(name, a, b, form), weak_type=False))
    ad.defbilinear(
        primitive,
        lambda dz, a, b, *, form: _by_roles({result: dz, second: b}, form),
        lambda dz, a, b, *, form: _by_roles({result: dz, first: a}, form),
    )
    batching.primitive_batchers[primitive] = partial(_batched, name)
    for platform in platforms:

        def lower(context, a, b, *, form, platform=platform):
            function = partial(choose(name, platform, form, context), form=form)
            return mlir.lower_fun(function, multiple_results=False)(context, a, b)

        mlir.register_lowering(primitive, lower, platform=None if platform == "default" else platform)


def stated(eqn):
    """Return the jaxpr of an equation of these primitives in operations of `jax.lax`; None for another equation."""
    names = [name for name, primitive in PRIMITIVES.items() if eqn.primitive is primitive]
    if not names:
        return None
    operands = (jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars)
    return jax.make_jaxpr(partial(getattr(backend, names[0]), **eqn.params))(*operands).jaxpr


def _shape(name, a, b, form):
    if name == "forward":
        return (a.shape[0], *(axis.out for axis in form.axes), b.shape[-1])
    if name == "input_gradient":
        return (a.shape[0], *(axis.size for axis in form.axes), b.shape[-2] * form.groups)
    return (*(axis.window for axis in form.axes), a.shape[-1] // form.groups, b.shape[-1])


def _by_roles(arrays, form):
    """Compute the array that is missing of x, kernel and y from the two others, {role: array}."""
    name, (first, second) = MAP_OF[frozenset(arrays)]
    return bind(name, arrays[first], arrays[second], form)


# A mapped axis becomes part of an index of the convolution, so that one larger convolution does the work of all.


def _batched(name, operands, dims, *, form):
    """Fold the mapped axis into the groups if both operands have it; else into the index shared with the result."""
    *roles, result = ROLES[name]
    mapped = [role for role, dim in zip(roles, dims, strict=True) if dim is not None]
    index = "group" if len(mapped) == 2 else SHARED[frozenset((*mapped, result))]
    folded = []
    for role, operand, dim in zip(roles, operands, dims, strict=True):
        if role in mapped:
            operand = jnp.moveaxis(operand, dim, 0)
            lanes, operand = len(operand), _fold(operand, *_place(role, index, form.groups))
        folded.append(operand)
    wider = _wider(name, folded, form.groups * (lanes if index == "group" else 1), form)
    z = bind(name, folded[0], folded[1], wider)
    return _unfold(z, lanes, *_place(result, index, form.groups)), 0


def _wider(name, operands, groups, form):
    """Return the `Form` of the folded operands."""
    arrays = dict(zip(ROLES[name], operands, strict=False))
    features = arrays["kernel"].shape[-2] if "kernel" in arrays else arrays["x"].shape[-1] // groups
    return form_of(form.axes, groups, features)


def _place(role, index, groups):
    """Return (axis, outer): the index is the slow part of what is left of this axis behind `outer` entries."""
    if index == "example":
        return 0, 1
    if index == "group":
        return -1, 1
    return (-2, 1) if (role, index) == ("kernel", "feature in") else (-1, groups)


def _fold(array, axis, outer):
    """Move the first axis of `array` into another one, counted without it, behind its first `outer` blocks."""
    shape = array.shape[1:]
    axis %= len(shape)
    parts = array.reshape(len(array), *shape[:axis], outer, shape[axis] // outer, *shape[axis + 1 :])
    return jnp.moveaxis(parts, 0, axis + 1).reshape(*shape[:axis], len(array) * shape[axis], *shape[axis + 1 :])


def _unfold(array, lanes, axis, outer):
    """Undo `_fold`."""
    shape, axis = array.shape, axis % array.ndim
    inner = shape[axis] // outer // lanes
    parts = array.reshape(*shape[:axis], outer, lanes, inner, *shape[axis + 1 :])
    whole = (*shape[:axis], outer * inner, *shape[axis + 1 :])
    return jnp.moveaxis(parts, axis + 1, 0).reshape(lanes, *whole)
