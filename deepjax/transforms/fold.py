"""Fold batch normalization into the neighboring layers, for inference.

In inference a batch norm is y = factor x + shift, with factor = scale / sqrt(var + epsilon) and
shift = bias - mean factor. A Dense or Conv right before it can take both into its kernel and bias. So can one right
after it, unless it pads with zeros: the norm would not have shifted those.

Which layer is next to which norm is read from the jaxpr of one inference call. This works for any composition of
modules, and inside scans, whose variables are stacked.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.interpreters.partial_eval import dce_jaxpr

from deepjax import layers
from deepjax.errors import InputError
from deepjax.functional.arrays import per_feature
from deepjax.trace import TOP, Interpreter, around_calls, call_arguments, call_jaxpr, normalizes_by_batch, read_mark
from deepjax.trace.batch_norm import NORM_CLASSES

# Subclasses are not among them, nor among NORM_CLASSES: a subclass may use its kernel in another way.
LAYER_CLASSES = (layers.Conv, layers.Dense, nn.Conv, nn.Dense)


@dataclass(frozen=True)
class Folded:
    """A model without some of its batch norms, for inference. `fold_batch_norm` makes it."""

    model: nn.Module
    norms: frozenset[str]  # paths of the norms that are skipped
    biased: frozenset[str]  # paths of the layers that have got a bias but are configured to have none

    def apply(self, variables, *args, **call):
        """Call the model with the variables of the `Folding`. The arguments are those of `model.apply`.

        Raises:
          InputError: the call is one of training, or the variables are not those of the `Folding`.
        """
        if call.get("train"):
            raise InputError("train=True: a folded model is for inference; train the model that it was made from")
        with around_calls(self._run):
            return self.model.apply(variables, *args, **call)

    def _run(self, module, run, args, kwargs):
        if type(module) not in NORM_CLASSES + LAYER_CLASSES:
            return run(*args, **kwargs)
        path = "/".join(module.path)
        if type(module) in NORM_CLASSES and normalizes_by_batch(module, args, kwargs):
            raise InputError(f"{path} is in training mode: a folded model is for inference")
        if path in self.norms:
            return args[0].astype(_output_dtype(module, args[0]))
        y = run(*args, **kwargs)
        if path not in self.biased:
            return y
        if not module.has_variable("params", "bias"):
            raise InputError(f"{path} has no bias: give a folded model the variables of its Folding")
        bias = module.get_variable("params", "bias")
        return (y + per_feature(bias, y.ndim)).astype(y.dtype)


class Folding(NamedTuple):
    """The result of `fold_batch_norm`. Use it as `folding.model.apply(folding.variables, x, train=False)`."""

    model: Folded
    variables: Any
    folded: dict[str, str]  # path of a norm -> path of the layer that it was folded into
    left: dict[str, str]  # path of a norm that is not folded -> the reason
    parameters_left: int  # number of values in the scales and biases of the norms that are not folded


def fold_batch_norm(model, variables, x=None, **call):
    """Merge inference batch norm into the Dense or Conv before it, or after it where padding allows.

    The batch norms, Conv and Dense of `deepjax.layers` are folded, and Flax's BatchNorm, Conv and Dense, anywhere in a
    model, also inside `nn.scan`. A norm is left as it is if its input is not the output of one such layer alone
    (pre-activation units), if it or the layer is called twice, or if their variables are also used elsewhere.

    Args:
      model: any Linen module.
      variables: trained variables of the model; inside scans and vmaps, stacked along leading axes.
      x: a batch of inputs, or `jax.ShapeDtypeStruct`s: only shape and dtype matter. None: one example of the shape
        `model.usual_input`, which every network of the zoo has.
      **call: further arguments of an inference call. A model that takes `train` gets `train=False`.

    Returns:
      `Folding`. Its variables have the model's paths without those of folded norms, and a `bias` for every layer that
      a norm was folded into.

    Raises:
      InputError: x or the variables do not fit the model, x is None and the model has no usual input, or a batch norm
        is in training mode.

    >>> model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True), nn.relu, nn.Dense(2)])
    >>> x = np.ones((1, 4), np.float32)
    >>> folding = fold_batch_norm(model, jax.jit(model.init)(jax.random.key(0), x), x)
    >>> print(folding.folded, folding.left, folding.parameters_left)
    {'layers_1': 'layers_0'} {} 0
    >>> folding.model.apply(folding.variables, x).shape
    (1, 2)
    """
    if x is None:
        if not hasattr(model, "usual_input"):
            raise InputError(
                f"fold_batch_norm: x None needs a network of the zoo, but {type(model).__name__} has no usual_input; "
                f"pass a batch of its inputs"
            )
        x = jax.ShapeDtypeStruct((1, *model.usual_input), jnp.float32)
    variables = nn.meta.unbox(unfreeze(variables))
    graph = _graph(model, variables, x, call_arguments(model, train=False) | call)
    leaves: dict[tuple, Any] = flatten_dict(variables)
    shapes = {name: jnp.shape(leaf) for name, leaf in leaves.items()}
    folded, left = {}, {}
    for path in graph.norms:
        layer, why = _target(path, graph, folded, shapes)
        if layer is None:
            left[path] = why
        else:
            folded[path] = layer
            _merge(graph.norms[path], graph.layers[layer], graph.before.get(layer) == path, leaves)
    moments = {"/".join(name[1:-1]) for name in leaves if name[0] == "batch_stats" and name[-1] == "var"}
    left |= dict.fromkeys(sorted(moments - set(graph.norms)), "inference does not call it")
    biased = frozenset(path for path in folded.values() if not graph.layers[path].module.use_bias)
    parameters = [leaf for name, leaf in leaves.items() if name[0] == "params" and "/".join(name[1:-1]) in left]
    return Folding(
        model=Folded(model, frozenset(folded), biased),
        variables=unflatten_dict(leaves),
        folded=folded,
        left=left,
        parameters_left=sum(np.size(leaf) for leaf in parameters),
    )


# Which layer is next to which norm


class _Called(NamedTuple):
    """A norm or a layer, as it is called."""

    path: tuple[str, ...]
    module: nn.Module  # unbound, for its options
    shapes: dict[tuple[str, ...], tuple[int, ...]]  # of its variables, inside of scans and vmaps
    rank: int  # of its input


class _Graph(NamedTuple):
    """The norms and layers of a model by path, and which is right before which."""

    norms: dict[str, _Called]  # in the order of the calls
    layers: dict[str, _Called]
    calls: Counter  # path -> number of calls
    before: dict[str, str]  # path -> path of the one whose output it takes, if nothing else uses that output
    shared: set[str]  # those whose variables are used outside of their own call


def _graph(model, variables, x, call):
    norms, layers = {}, {}

    def collect(module, run, args, kwargs):
        if type(module) not in NORM_CLASSES + LAYER_CLASSES or not args:
            return run(*args, **kwargs)
        path = "/".join(module.path)
        if type(module) in NORM_CLASSES and normalizes_by_batch(module, args, kwargs):
            raise InputError(f"{path} is in training mode: give fold_batch_norm the arguments of an inference call")
        shapes = {
            (collection, *module.path, name): leaf.shape
            for collection in ("params", "batch_stats")
            for name, leaf in module.variables.get(collection, {}).items()
        }
        called = _Called(module.path, module.copy(parent=None, name=None), shapes, args[0].ndim)
        (norms if type(module) in NORM_CLASSES else layers)[path] = called
        return run(*args, **kwargs)

    with around_calls(collect):
        jaxpr = call_jaxpr(model, variables, x, call)
    # Flax's scan leaves equations whose results are not used.
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    parameters, _ = jax.tree.flatten_with_path(variables)
    owned: list[Any] = [_Variable(tuple(key.key for key in name[1:-1])) for name, _ in parameters]
    reader = _Reader({*norms, *layers})
    reader.body(jaxpr, owned + [None] * (len(jaxpr.invars) - len(owned)), TOP)
    before = {path: output.path for path, output in reader.inputs.items() if reader.uses[output] == 1}
    return _Graph(norms, layers, reader.calls, before, reader.shared)


class _Variable(NamedTuple):
    """A value of the reader: a variable of the module at `owner`."""

    owner: tuple[str, ...]


class _Output(NamedTuple):
    """A value of the reader: the output of one call of a norm or layer."""

    path: str
    call: int  # which one


class _Reader(Interpreter):
    """Follow the outputs and the variables of norms and layers through a jaxpr. All other arrays are None."""

    def __init__(self, paths):
        self.paths = paths  # of the norms and layers
        self.calls, self.uses = Counter(), Counter()  # the latter: of outputs
        self.inputs: dict[str, _Output] = {}  # path -> what its last call took
        self.shared: set[str] = set()

    def equation(self, eqn, values, where):
        mark = read_mark(eqn)
        if mark and mark.method == "__call__" and (path := "/".join(mark.path)) in self.paths:
            self._use(values, where)
            return [self._pass(path, mark.role, values[0])]
        if eqn.primitive.name == "name":
            return values
        self._use(values, where)
        return [None] * len(eqn.outvars)

    def _pass(self, path, role, value):
        """Return the value of an array that enters or leaves a norm or layer."""
        if role == "exit":
            self.calls[path] += 1
            return _Output(path, self.calls[path])
        if isinstance(value, _Output):
            self.inputs[path] = value
        return None

    def join(self, values, shape, choice=None):
        self._use(values, TOP)
        return None

    def body(self, jaxpr, values, where):
        """An output that enters or leaves a loop or a branch is not followed further."""
        return self._stop(super().body(jaxpr, self._stop(values), where))

    def _stop(self, values):
        outputs = [value for value in values if isinstance(value, _Output)]
        self._use(outputs, TOP)
        return [None if isinstance(value, _Output) else value for value in values]

    def _use(self, values, where):
        for value in values:
            if isinstance(value, _Output):
                self.uses[value] += 1
            elif isinstance(value, _Variable) and where.path[: len(value.owner)] != value.owner:
                self.shared.add("/".join(value.owner))


# The folding


def _target(path, graph, folded, shapes):
    """Return (path of the layer that a norm can be folded into, None), or (None, the reason why there is none)."""
    norm, source = graph.norms[path], graph.before.get(path)
    if graph.calls[path] != 1:
        return None, f"it is called {graph.calls[path]} times" if graph.calls[path] else "its output is not used"
    if getattr(norm.module, "axis", -1) not in (-1, norm.rank - 1):
        return None, "its features are not the last axis"
    neighbors = [folded.get(source, source)]  # a norm that was folded is no longer between them
    neighbors += [after for after, before in graph.before.items() if before == path]
    obstacles = {layer: _obstacle(path, layer, graph, shapes) for layer in neighbors if layer in graph.layers}
    for layer, why in obstacles.items():
        if why is None:
            return layer, None
    no_layer = "its input is not the output of one Dense or Conv alone, nor does one alone take its output"
    return None, next(iter(obstacles.values()), no_layer)


def _obstacle(path, layer, graph, shapes):
    """Return the reason why a norm cannot be folded into a layer next to it, or None."""
    if graph.calls[layer] != 1:
        return f"{layer} is called {graph.calls[layer]} times"
    if {path, layer} & graph.shared:
        return f"its variables, or those of {layer}, are also used elsewhere"
    if graph.before.get(layer) == path and _pads(graph.layers[layer]):
        return f"{layer} after it pads"
    leading = set()
    for name, inner in {**graph.norms[path].shapes, **graph.layers[layer].shapes}.items():
        more = len(shapes[name]) - len(inner)
        leading.add(shapes[name][:more] if shapes[name][more:] == inner else None)
    if len(leading) > 1 or None in leading:
        return f"its variables are not stacked along leading axes as those of {layer}"
    return None


def _pads(layer):
    """Return whether a layer multiplies with padding, or with something else than its kernel."""
    window, module = layer.shapes[("params", *layer.path, "kernel")][:-2], layer.module
    if not window:
        return False
    if getattr(module, "mask", None) is not None:
        return True
    if isinstance(module.padding, str):
        return module.padding != "VALID" and max(window) > 1
    return any(jax.tree.leaves(module.padding))


def _merge(norm, layer, after, leaves):
    """Replace the leaves of a norm by a new kernel and bias of the layer before it, or `after` it."""

    def pop(collection, name, default=None):
        return np.asarray(leaves.pop((collection, *norm.path, name), default), np.float64)

    mean, var = pop("batch_stats", "mean"), pop("batch_stats", "var")
    factor = pop("params", "scale", 1) / np.sqrt(var + norm.module.epsilon)
    shift = pop("params", "bias", 0) - mean * factor
    names = [("params", *layer.path, name) for name in ("kernel", "bias")]
    kernel, bias = (np.asarray(leaves.get(name, 0), np.float64) for name in names)
    stacked = factor.ndim - 1
    if after:
        factor, shift = _per_input(factor, kernel.shape), _per_input(shift, kernel.shape)
        bias = bias + (kernel * shift).sum(tuple(range(stacked, kernel.ndim - 1)))
        kernel = kernel * factor
    else:
        bias = bias * factor + shift
        kernel = kernel * factor.reshape(*factor.shape[:-1], *[1] * (kernel.ndim - factor.ndim), -1)
    dtype = leaves[names[0]].dtype
    leaves |= {name: jnp.asarray(value.astype(dtype)) for name, value in zip(names, (kernel, bias), strict=True)}


def _per_input(values, kernel_shape):
    """Arrange values [*stacked, features_in] for a kernel [*stacked, *window, features_in / groups, features]."""
    *stacked, features = values.shape
    groups = features // kernel_shape[-2]
    columns = values.reshape(*stacked, groups, kernel_shape[-2]).swapaxes(-1, -2)
    columns = np.repeat(columns, kernel_shape[-1] // groups, axis=-1)
    return columns.reshape(*stacked, *[1] * (len(kernel_shape) - columns.ndim), *columns.shape[-2:])


def _output_dtype(norm, x):
    """Return the dtype of a norm's output: that of x for ours, while Flax's promotes it with that of its parameters."""
    if not isinstance(norm, nn.BatchNorm):
        return x.dtype
    learned = norm.use_scale or norm.use_bias
    return norm.dtype or (jnp.promote_types(x.dtype, norm.param_dtype) if learned else x.dtype)
