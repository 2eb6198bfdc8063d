"""Find every layer of any Linen model, also inside `nn.scan`, `nn.remat`, `nn.vmap` and `units.stack`.

A layer is a module that owns a parameter `kernel` of two or more axes: `nn.Dense`, `nn.DenseGeneral`, `nn.Conv`,
`nn.ConvTranspose`, `deepjax.layers.Conv`, a user-defined module. A layer is identified by its path. In a scan, all
units share one path.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.recurrent import DenseParams

from deepjax import layers as deepjax_layers
from deepjax.errors import InputError
from deepjax.functional.arrays import per_feature
from deepjax.trace.calls import around_calls
from deepjax.trace.notes import has_notes, put_notes

# output = the kernel's linear map of the input + bias
AFFINE = (
    nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv, nn.ConvLocal, nn.ConvTranspose, DenseParams,
    deepjax_layers.Conv, deepjax_layers.ConvTranspose, deepjax_layers.Dense,
)  # fmt: skip
# their kernels may have more than two axes, and these are no window
WITHOUT_WINDOW = (nn.DenseGeneral, nn.Einsum, nn.ConvLocal, deepjax_layers.Maxout)


class Layer(NamedTuple):
    """One layer, as an abstract pass describes it. Shapes are the module's own: without an axis of a scan's units."""

    path: tuple[str, ...]  # of the module, below the model
    shape: tuple[int, ...]  # of the kernel
    dtype: Any  # of the kernel
    outputs: tuple[int, ...]  # the kernel's axes of output features, in the order of the bias's axes
    groups: int  # the kernels of the groups, each with its own inputs, are side by side in the output features
    affine: bool  # the output is a linear map of the input by the kernel, plus a bias per feature
    convolution: bool
    writable: bool  # the kernel is a parameter itself, not computed from others as by nn.WeightNorm

    @property
    def name(self) -> str:
        """Path as one word."""
        return "/".join(self.path) or "the model itself"

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the kernel's first axes that are positions of the input; each position has a separate kernel."""
        return self.shape[: sum(axis == i for i, axis in enumerate(self.outputs))]

    @property
    def features(self) -> int:
        """Number of output features."""
        return math.prod(self.shape[axis] for axis in self.outputs)

    @property
    def window(self) -> tuple[int, ...]:
        """Sizes of the kernel's window; () without a convolution."""
        return self.shape[:-2] if self.convolution else ()

    @property
    def inputs(self) -> int:
        """Number of input features per group."""
        return self.fan_in // math.prod(self.window)

    @property
    def fan_in(self) -> int:
        """Number of inputs that one output is a weighted sum of."""
        return math.prod(self.shape) // self.features

    def to_kernel(self, matrix):
        """Reshape a matrix [fan_in, features] to the kernel's shape and dtype."""
        inputs = [size for axis, size in enumerate(self.shape) if axis not in self.outputs]
        kernel = matrix.reshape(*inputs, *(self.shape[axis] for axis in self.outputs))
        return jnp.moveaxis(kernel, range(len(inputs), kernel.ndim), self.outputs).astype(self.dtype)

    def per_feature(self, values):
        """Reshape one value per output feature so that it broadcasts against the kernel."""
        sizes = [self.shape[axis] for axis in self.outputs] + [1] * (len(self.shape) - len(self.outputs))
        return jnp.moveaxis(values.reshape(sizes), range(len(self.outputs)), self.outputs)


def find_layers(model, key, x, call) -> list[Layer]:
    """Return the layers of a model in the order of their first calls. Only shapes are computed.

    Args:
      model: any Linen model.
      key: PRNG key, for `model.init`.
      x: the model's first argument, or its `jax.ShapeDtypeStruct`.
      call: dictionary of the model's keyword arguments, such as {"train": True}.

    Raises:
      InputError: a called module owns a kernel and its output cannot be observed; the module is named.
    """
    found = {}

    def look(module, run, args, kwargs):
        result = run(*args, **kwargs)
        if module.path not in found and _owns_kernel(module):
            layer = _describe(module, args)
            if output_of(module, args, result) is None:
                raise InputError(
                    f"layer {layer.name}: {type(module).__name__} owns a kernel and does not return one array of "
                    f"floats, so its output cannot be observed; return the kernel's output alone"
                )
            found[module.path] = layer
        return result

    def run(variables, key, x):
        return run_model(look, model, variables, key, x, call)[1]

    variables = jax.eval_shape(lambda key, x: model.init(key, x, **call), key, x)
    jax.eval_shape(run, variables, key, x)
    return list(found.values())


def find_shared(model, key, x, call, layers) -> set[tuple[str, ...]]:
    """Return the paths of layers whose kernel all steps of a scan, or all lanes of a vmap, share.

    A layer is shared if Flax refuses a parameter that depends on the layer's output. Only shapes are computed.

    Args:
      model, key, x, call: as for `find_layers`.
      layers: the result of `find_layers`.
    """

    def refused(some):
        paths = {layer.path: layer for layer in some}

        def note(module, run, args, kwargs):
            result = run(*args, **kwargs)
            layer = paths.get(module.path)
            if layer is not None and not has_notes(module):
                put_notes(module, len(layer.shape), value=jnp.sum(output_of(module, args, result)))
            return result

        try:
            jax.eval_shape(lambda key, x: run_model(note, model, None, key, x, call)[1], key, x)
        except Exception:  # the type of Flax's error differs between its versions
            return True
        return False

    def search(some):
        if not some or not refused(some):
            return set()
        if len(some) == 1:
            return {some[0].path}
        half = len(some) // 2
        return search(some[:half]) | search(some[half:])

    return search(layers)


def run_model(rule, model, variables, key, x, call) -> tuple[Any, dict]:
    """Return (outputs, variables afterwards) of one call in which `rule` intercepts every module's call.

    Args:
      rule: as for `around_calls`. It may write parameters.
      variables: variables of the model; None to initialize it.
      key: PRNG key, for whatever the model draws.
      model, x, call: as for `find_layers`.
    """
    with around_calls(rule):
        if variables is None:
            return model.init_with_output(key, x, **call)
        mutable = nn.DenyList(("intermediates", "perturbations"))
        return model.apply(variables, x, **call, rngs={"params": key}, mutable=mutable)


def output_of(module, args, result) -> Any:
    """Return a layer's output as one array whose last axes are `Layer.outputs`, or None if it has none.

    `nn.OptimizedLSTMCell` multiplies by several kernels at once: its `DenseParams` return (kernel, bias) and not the
    product, which is computed here.
    """
    if isinstance(module, DenseParams):
        kernel, bias = result
        product = args[0] @ kernel.astype(args[0].dtype)
        return product if bias is None else product + per_feature(bias, product.ndim)
    if not (hasattr(result, "dtype") and jnp.issubdtype(result.dtype, jnp.floating)):
        return None
    features = _feature_axes(module, args, result.ndim)
    last = tuple(range(-len(features), 0))
    return result if features == last else jnp.moveaxis(result, features, last)


def _feature_axes(module, args, rank):
    """Return the axes of a layer's output that are also axes of its kernel, counted from the end; () for the last."""
    if isinstance(module, nn.Einsum):
        _, features = _einsum_axes(module, args)
        return tuple(axis if axis < 0 else axis - rank for axis in features)
    if isinstance(module, nn.DenseGeneral) and _sequence(module.batch_dims):
        positions, features = len(_sequence(module.batch_dims)), len(_sequence(module.features))
        return *range(-rank, positions - rank), *range(-features, 0)
    return ()


def _einsum_axes(module, args):
    """Return (axes of the kernel that are in the result, these axes of the result), in the order of the result."""
    equation = module.einsum_str or (args[1] if len(args) > 1 else None)
    if equation is None or "..." in equation.split("->")[0].split(",")[-1]:
        raise InputError(
            f"layer {'/'.join(module.path)}: Einsum with einsum_str {equation!r}; give the module its einsum_str, "
            f"without '...' for the kernel"
        )
    operands, result = equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    before, dots, after = result.partition("...")
    before, after = (before, after) if dots else ("", before)
    axes = {name: i for i, name in enumerate(before)} | {name: i - len(after) for i, name in enumerate(after)}
    common = [name for name in axes if name in kernel]
    return tuple(kernel.index(name) for name in common), tuple(axes[name] for name in common)


def _sequence(value):
    return (value,) if isinstance(value, int) else tuple(value)


def _owns_kernel(module):
    return getattr(module.variables.get("params", {}).get("kernel"), "ndim", 0) >= 2


def _describe(module, args):
    kernel = module.variables["params"]["kernel"]
    outputs, groups = (kernel.ndim - 1,), getattr(module, "feature_group_count", getattr(module, "groups", 1))
    positions = 0  # the first axes of the kernel, each entry of which has a separate kernel
    if isinstance(module, nn.Einsum):
        outputs, _ = _einsum_axes(module, args)
    elif isinstance(module, nn.DenseGeneral):
        positions = len(_sequence(module.batch_dims))
        outputs = tuple(range(kernel.ndim - len(_sequence(module.features)), kernel.ndim))
    elif isinstance(module, nn.ConvLocal):
        positions = kernel.ndim - 2
    elif getattr(module, "transpose_kernel", False):
        outputs = (kernel.ndim - 2,)
    if positions:
        outputs, groups = (*range(positions), *outputs), math.prod(kernel.shape[:positions])
    return Layer(
        path=module.path,
        shape=kernel.shape,
        dtype=kernel.dtype,
        outputs=outputs,
        groups=groups,
        affine=isinstance(module, AFFINE),
        convolution=kernel.ndim > 2 and not isinstance(module, WITHOUT_WINDOW),
        writable=module.is_mutable_collection("params"),
    )
