"""How to reach every layer of any Linen model, also inside `nn.scan`, `nn.remat` and `nn.vmap`.

A layer is a module that owns a parameter `kernel` and puts out one array: `nn.Dense`, `nn.Conv`, `nn.ConvTranspose`,
`nn.DenseGeneral`, `deepjax.layers.Conv`, a user's own. Flax lets an interceptor stand around every call, also in the
traced body of a scan, and there it may write parameters. So each layer can be given its kernel for the input that the
layers before it, ready by then, put out: one pass settles the whole model, whatever its depth. Numbers leave a scan the
same way, as one more parameter beside the kernel that is taken out again.

Parameters that all steps of a scan (or all lanes of a vmap) share cannot depend on what happens inside; those layers
are found by trying, and measured by a callback instead.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax import layers
from deepjax.errors import InputError

NOTE = "init_from_data_"  # begins the names of parameters that carry statistics out of the pass
AFFINE = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvTranspose, layers.Conv)  # y = kernel's linear map + bias


class Layer(NamedTuple):
    """What a first, abstract pass tells of a layer. Shapes are those that it sees itself: without an axis of units."""

    path: tuple[str, ...]
    shape: tuple[int, ...]  # of the kernel
    dtype: Any
    outputs: tuple[int, ...]  # the kernel's axes of output features
    groups: int
    affine: bool  # what it puts out is the kernel's linear map of its input, and a bias
    convolution: bool

    @property
    def name(self):
        """The path as one word."""
        return "/".join(self.path) or "the model itself"

    @property
    def features(self):
        """How many outputs the kernel has."""
        return math.prod(self.shape[axis] for axis in self.outputs)

    @property
    def window(self):
        """The kernel's axes of a window: () where it is no convolution's."""
        return self.shape[:-2] if self.convolution else ()

    @property
    def inputs(self):
        """How many numbers a tap of the window takes in; without a window, all."""
        return self.fan_in // math.prod(self.window)

    @property
    def fan_in(self):
        """How many numbers one output is a sum of."""
        return math.prod(self.shape) // self.features

    def to_kernel(self, matrix):
        """[fan_in, features] -> the kernel's shape."""
        inputs = [size for axis, size in enumerate(self.shape) if axis not in self.outputs]
        kernel = matrix.reshape(*inputs, *(self.shape[axis] for axis in self.outputs))
        return jnp.moveaxis(kernel, range(len(inputs), kernel.ndim), self.outputs).astype(self.dtype)

    def per_feature(self, values):
        """One value per output feature, in a shape that multiplies the kernel."""
        shape = [size if axis in self.outputs else 1 for axis, size in enumerate(self.shape)]
        return values.reshape(shape)


class Change(NamedTuple):
    """What to do to a layer whose first output is known."""

    scale: Any = 1.0  # of the kernel: a scalar, or shaped like the output features
    bias: Any = None  # the new bias; None: as it is
    notes: Any = {}  # noqa: RUF012  scalars to remember, by name


def find_layers(model, key, x, call):
    """The layers of a model in the order of their first calls; nothing is computed.

    Raises InputError where there are none.
    """
    found = {}

    def look(module, run, *_):
        y = run()
        if module.path not in found and _is_layer(module, y):
            found[module.path] = _describe(module)
            if not module.is_mutable_collection("params"):
                raise InputError(
                    f"layer {found[module.path].name}: its kernel is made from other parameters (as by nn.WeightNorm "
                    f"and nn.SpectralNorm), and cannot be set; initialize the model without that"
                )
        return y

    variables = jax.eval_shape(lambda key, x: model.init(key, x, **call), key, x)
    jax.eval_shape(lambda variables, key, x: _pass(look, model, variables, key, x, call), variables, key, x)
    if not found:
        raise InputError(f"{type(model).__name__} has no layer with a kernel; there is nothing to initialize from data")
    return list(found.values())


def _is_layer(module, y):
    kernel = module.variables.get("params", {}).get("kernel")
    return getattr(kernel, "ndim", 0) >= 2 and hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.floating)


def _describe(module):
    kernel = module.variables["params"]["kernel"]
    outputs = (kernel.ndim - 1,)
    if isinstance(module, nn.DenseGeneral):
        features = (module.features,) if isinstance(module.features, int) else tuple(module.features)
        outputs = tuple(range(kernel.ndim - len(features), kernel.ndim))
    elif getattr(module, "transpose_kernel", False):
        outputs = (kernel.ndim - 2,)
    groups = getattr(module, "feature_group_count", getattr(module, "groups", 1))
    convolution = kernel.ndim > 2 and not isinstance(module, nn.DenseGeneral)
    return Layer(module.path, kernel.shape, kernel.dtype, outputs, groups, isinstance(module, AFFINE), convolution)


def _pass(around, model, variables, key, x, call):
    """`model.init`, or `model.apply` of variables, with `around(module, run, args, kwargs)` in place of every call.

    Returns the variables afterwards.
    """

    def intercept(next_method, args, kwargs, context):
        def run():
            return next_method(*args, **kwargs)

        return around(context.module, run, args, kwargs) if context.method_name == "__call__" else run()

    with nn.intercept_methods(intercept):
        if variables is None:
            return model.init(key, x, **call)
        return model.apply(variables, x, **call, rngs={"params": key}, mutable=nn.DenyList("intermediates"))[1]


def settle(model, variables, key, x, call, found, change, *, start=None, shared=None):
    """One pass in which every layer gets its kernel, and is changed once its first output is known. Pure.

    Args:
      model, x, call: what is initialized, and with which arguments it is called.
      variables: where to begin; None: with `model.init`.
      key: for `init`, and for whatever the model draws.
      found: the `Layer`s to settle.
      change: (layer, z, bias) -> Change, where z is the first output less its bias, in at least float32.
      start: (layer, module, x) -> kernel to begin with, from the layer's own input; None: the one it has.
      shared: {path: function of (layer, module, run)} that takes the place of all this for some layers.

    Returns:
      (variables, {path: {name: note}}). A note has the kernel's rank, with the axes of units in their place.
    """
    by_path = {layer.path: layer for layer in found}
    shared = shared or {}
    starting = []  # not empty while a layer is called apart from its model

    def around(module, run, args, kwargs):
        layer = by_path.get(module.path)
        if layer is None or starting or _noted(module):
            return run()
        if layer.path in shared:
            return shared[layer.path](layer, module, run)
        if start is not None:
            starting.append(layer)
            module.put_variable("params", "kernel", start(layer, module, *args[:1]))
            starting.pop()
        y = run()
        # a subclass that calls its parent's __call__ has been settled there
        if _noted(module):
            return y

        def again():  # as a module of its own: Flax lets no call define its parameters twice
            starting.append(layer)
            probe, own = module.clone(parent=None, name=None), {"params": module.variables["params"]}
            y = probe.apply(own, *args, **kwargs, rngs={"params": module.make_rng("params")})
            starting.pop()
            return y

        size = mean_square(args[0]) if args and hasattr(args[0], "dtype") else jnp.ones(())
        return _change(module, layer, again, y, change, {"input": size})

    variables = _pass(around, model, variables, key, x, call)
    return _take_notes(variables)


def _noted(module):
    return any(name.startswith(NOTE) for name in module.variables.get("params", {}))


def _change(module, layer, again, y, change, seen):
    params = module.variables["params"]
    bias = params.get("bias")
    dtype = y.dtype
    y = y.astype(jnp.promote_types(dtype, jnp.float32))
    z = y if bias is None or not layer.affine else y - _to_rank(bias, y.ndim)
    scale, new_bias, notes = change(layer, z, bias)
    scale = jnp.asarray(scale)
    kernel = params["kernel"] * (layer.per_feature(scale) if scale.ndim else scale)
    module.put_variable("params", "kernel", kernel.astype(layer.dtype))
    if new_bias is not None:
        bias = new_bias.astype(params["bias"].dtype)
        module.put_variable("params", "bias", bias)
    if layer.affine:
        y = z * (_to_rank(scale, z.ndim) if scale.ndim else scale)
        y = (y if bias is None else y + _to_rank(bias, y.ndim)).astype(dtype)
    else:
        y = again()
    for name, value in {"reached": variance(y), **seen, **notes}.items():
        module.put_variable("params", NOTE + name, jnp.reshape(value, (1,) * len(layer.shape)))
    return y


def _to_rank(per_feature, rank):
    return per_feature.reshape((1,) * (rank - per_feature.ndim) + per_feature.shape)


def variance(y):
    """Of all numbers in y together, in at least float32."""
    return jnp.var(y.astype(jnp.promote_types(y.dtype, jnp.float32)))


def mean_square(x):
    """Of all numbers in x together, in at least float32."""
    return jnp.mean(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))))


def _take_notes(variables):
    params, notes = {}, {}
    leaves: Any = flatten_dict(variables["params"])
    for path, value in leaves.items():
        if path[-1].startswith(NOTE):
            notes.setdefault(path[:-1], {})[path[-1].removeprefix(NOTE)] = value
        else:
            params[path] = value
    return {**variables, "params": unflatten_dict(params)}, notes


def varies(layer, z):
    """How much the most lively feature changes from example to example, as a fraction of z's mean square."""
    rows = z.reshape(-1, math.prod(z.shape[z.ndim - len(layer.outputs) :]))
    if len(rows) == 1:
        return jnp.ones(())
    return jnp.max(jnp.var(rows, 0)) / jnp.maximum(jnp.mean(jnp.square(rows)), jnp.finfo(rows.dtype).tiny)


def find_shared(model, key, x, call, found) -> Collection[tuple[str, ...]]:
    """Paths of the layers whose kernel all steps of a scan, or all lanes of a vmap, share; nothing is computed."""

    def works(some):
        def depend(layer, z, _):
            return Change(scale=1 + 0 * z.sum())

        try:
            jax.eval_shape(lambda key, x: settle(model, None, key, x, call, some, depend), key, x)
        except Exception:  # Flax refuses it with several kinds of error, which differ between versions
            return False
        return True

    return () if works(found) else {layer.path for layer in found if not works([layer])}


def check_alive(layer, notes, only=None):
    """Raises InputError where the output of a layer (of one of its units only) is not finite or does not vary."""
    if layer.path not in notes:  # Flax had a trace of it from before
        raise InputError(f"layer {layer.name} cannot be reached inside nn.jit; jit the whole model instead")
    varying, reached = (np.ravel(notes[layer.path][name]) for name in ("varies", "reached"))
    for unit, (lively, value) in enumerate(zip(varying, reached, strict=True)):
        if only not in (None, unit):
            continue
        where = f"{layer.name}, unit {unit + 1} of {len(reached)}" if len(reached) > 1 else layer.name
        if lively <= 1e-10:
            raise InputError(
                f"layer {where}: its output has zero variance over the examples (it is dead, or fed constants); "
                f"check x, and the activations and biases before it"
            )
        if not np.isfinite(lively + value):
            raise InputError(f"layer {where}: its output is not finite; check x, and the layers before it")


def scaled(variables, scales):
    """Variables whose kernels are multiplied by {path: scale}, of the kernel's rank or with one number."""
    params: Any = flatten_dict(variables["params"])
    for path, scale in scales.items():
        kernel = params[*path, "kernel"]
        if np.ndim(scale) != kernel.ndim:
            scale = jnp.reshape(scale, (1,) * kernel.ndim)
        params[*path, "kernel"] = (kernel * scale).astype(kernel.dtype)
    return {**variables, "params": unflatten_dict(params)}


def squeezed(note):
    """A note as a number; as an array of its units' inside a scan."""
    return float(note.item()) if note.size == 1 else np.ravel(note)


def compiled(function: Callable):
    """jit, without optimization on CPU: random numbers and decompositions are slow to compile and run only once."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=options)
