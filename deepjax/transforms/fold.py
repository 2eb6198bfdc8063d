"""Batch normalization folded into its neighbours, for inference.

In inference a batch norm is y = factor x + shift, with factor = scale / sqrt(var + epsilon) and
shift = bias - mean factor. A Dense or Conv right before it can take both into its kernel and bias; one right after it
can too, where it does not pad with zeros, which the norm would have left alone.

What stands right before what is read off the jaxpr of one inference call, in which every layer's input and output is
marked. That sees through any composition of modules, and through scans, whose variables are stacked.
"""

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Var, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from deepjax import layers
from deepjax.errors import InputError

# Only these very classes: a subclass may use its kernel in another way.
NORMS = (layers.BatchNorm, layers.BatchRenorm, layers.GhostBatchNorm, layers.MovingAverageBatchNorm, nn.BatchNorm)
LAYERS = (layers.Conv, nn.Conv, nn.Dense)
MARK = "deepjax.transforms.fold "  # the name of a layer's input or output in a jaxpr starts so


@dataclass(frozen=True)
class Folded:
    """A model some of whose batch norms are in its kernels and biases. Made by `fold_batch_norm`, for inference."""

    model: nn.Module
    norms: frozenset[str]  # paths of the norms that are left out
    biased: frozenset[str]  # paths of the layers that get a bias and would not add it themselves

    def apply(self, variables, *args, **call):
        """As the model's own `apply`, with the variables of the `Folding`. InputError in training."""
        if call.get("train"):
            raise InputError("train=True: a folded model is for inference; train the model that it was made from")
        with nn.intercept_methods(self._run):
            return self.model.apply(variables, *args, **call)

    def _run(self, next_method, args, kwargs, context):
        module, path = context.module, "/".join(context.module.path)
        if context.method_name != "__call__" or type(module) not in NORMS + LAYERS:
            return next_method(*args, **kwargs)
        if type(module) in NORMS and _trains(module, args, kwargs):
            raise InputError(f"{path} is in training mode: a folded model is for inference")
        if path in self.norms:
            return args[0].astype(_output_dtype(module, args[0]))
        y = next_method(*args, **kwargs)
        if path not in self.biased:
            return y
        if not module.has_variable("params", "bias"):
            raise InputError(f"{path} has no bias: give a folded model the variables of its Folding")
        bias = module.get_variable("params", "bias")
        return (y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)).astype(y.dtype)


class Folding(NamedTuple):
    """What `fold_batch_norm` gives: `folding.model.apply(folding.variables, x, train=False)`."""

    model: Folded
    variables: Any
    folded: dict[str, str]  # path of a norm -> path of the layer that took it up
    left: dict[str, str]  # path of a norm -> why it is still there
    parameters_left: int  # values in the scales and biases of batch norms that are still there


def fold_batch_norm(model, variables, x=None, **call):
    """Merge inference batch norm into the Dense or Conv before it, or after it where padding allows.

    Known are `deepjax.layers` Conv and batch norms, Flax's Conv, Dense and BatchNorm, wherever they stand in a model,
    also inside `nn.scan`. Left are norms whose input is not the output of such a layer alone (pre-activation units),
    and those of layers called twice or whose variables something else uses too.

    Args:
      model: any Linen module.
      variables: the model's, trained; in scans and vmaps stacked along leading axes.
      x: a batch of inputs, or `jax.ShapeDtypeStruct`s: only its shape and dtype matter, and no more than the model's
        wiring depends on them. None: the first of some usual shapes (images of 32, 224, 28 pixels, rows of features,
        sequences, volumes) that fits the variables.
      **call: further arguments of an inference call; a model that takes `train` gets `train=False`.

    Returns:
      `Folding`. Variables have the model's paths, without those of folded norms, and a `bias` for every layer that
      took one up.

    Raises:
      InputError: x or variables that do not fit the model, or arguments under which a batch norm trains.

    >>> model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=True), nn.relu, nn.Dense(2)])
    >>> folding = fold_batch_norm(model, model.init(jax.random.key(0), jnp.ones((1, 4))), jnp.ones((1, 4)))
    >>> print(folding.folded, folding.left, folding.parameters_left)
    {'layers_1': 'layers_0'} {} 0
    >>> folding.model.apply(folding.variables, jnp.ones((5, 4))).shape
    (5, 2)
    """
    if "train" in inspect.signature(type(model).__call__).parameters:
        call.setdefault("train", False)
    leaves: dict[tuple, Any] = flatten_dict(nn.meta.unbox(unfreeze(variables)))
    graph = _guess(model, leaves, call) if x is None else _trace(model, leaves, x, call)
    shapes = {name: jnp.shape(leaf) for name, leaf in leaves.items()}
    folded, left = {}, {}
    for path in graph.norms:
        layer, why = _place(path, graph, folded, shapes)
        if layer is None:
            left[path] = why
        else:
            folded[path] = layer
            _merge(graph.norms[path], graph.layers[layer], graph.before.get(layer) == path, leaves)
    unseen = "no call of it was seen: inference makes none, or an nn.jit that was traced before hides it"
    moments = {"/".join(name[1:-1]) for name in leaves if name[0] == "batch_stats" and name[-1] == "var"}
    left |= dict.fromkeys(sorted(moments - set(graph.norms)), unseen)
    biased = frozenset(path for path in folded.values() if not graph.layers[path].module.use_bias)
    parameters = [leaf for name, leaf in leaves.items() if name[0] == "params" and "/".join(name[1:-1]) in left]
    return Folding(
        model=Folded(model, frozenset(folded), biased),
        variables=unflatten_dict(leaves),
        folded=folded,
        left=left,
        parameters_left=sum(np.size(leaf) for leaf in parameters),
    )


# The wiring


class _Known(NamedTuple):
    """A norm or a layer, as it is called."""

    path: tuple[str, ...]
    module: nn.Module  # unbound: its options
    shapes: dict[tuple[str, ...], tuple[int, ...]]  # of its variables inside of scans and vmaps
    rank: int  # of its input


class _Graph(NamedTuple):
    """Who is called, and who stands right before whom; by path."""

    norms: dict[str, _Known]  # in the order of the calls
    layers: dict[str, _Known]
    calls: Counter  # how often
    before: dict[str, str]  # whose output is this one's input, and goes nowhere else
    shared: set[str]  # those whose variables are used outside of their own call


def _trace(model, leaves, x, call):
    graph = _Graph({}, {}, Counter(), {}, set())

    def mark(next_method, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__" or type(module) not in NORMS + LAYERS or not args:
            return next_method(*args, **kwargs)
        path = "/".join(module.path)
        if type(module) in NORMS and _trains(module, args, kwargs):
            raise InputError(f"{path} is in training mode: give fold_batch_norm the arguments of an inference call")
        shapes = {
            (collection, *module.path, name): leaf.shape
            for collection in ("params", "batch_stats")
            for name, leaf in module.variables.get(collection, {}).items()
        }
        known = graph.norms if type(module) in NORMS else graph.layers
        known[path] = _Known(module.path, module.copy(parent=None, name=None), shapes, args[0].ndim)
        y = next_method(checkpoint_name(args[0], f"{MARK}in {path}"), *args[1:], **kwargs)
        return checkpoint_name(y, f"{MARK}out {path}")

    def forward(values, x):
        with nn.intercept_methods(mark):
            return model.apply(unflatten_dict(dict(zip(leaves, values, strict=True))), x, **call)

    try:
        jaxpr = jax.make_jaxpr(forward)(list(leaves.values()), x).jaxpr
    except InputError:
        raise
    except (TypeError, ValueError, flax.errors.FlaxError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the model does not take x {jax.tree.map(jnp.shape, x)} with these variables: {reason}"
        ) from error
    # Flax's scan leaves equations behind whose results nobody takes.
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    owners = {v: "/".join(name[1:-1]) for v, name in zip(jaxpr.invars, leaves, strict=False)}
    _read(jaxpr, owners, graph, None)
    return graph


def _read(jaxpr, owners, graph, inside):
    """Fill the graph. owners: variable of the jaxpr -> path of its module; inside: the call that the jaxpr is in."""
    uses = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, Var))
    uses.update(v for v in jaxpr.outvars if isinstance(v, Var))
    outputs = {}  # variable -> path of the call that it is the output of
    for eqn in jaxpr.eqns:
        name = str(eqn.params["name"]) if eqn.primitive.name == "name" else ""
        role, path = name.removeprefix(MARK).split(" ", 1) if name.startswith(MARK) else (None, "")
        if role == "in":
            inside = path
            if uses[eqn.invars[0]] == 1 and eqn.invars[0] in outputs:
                graph.before[path] = outputs[eqn.invars[0]]
        elif role == "out":
            inside = None
            outputs[eqn.outvars[0]] = path
            graph.calls[path] += 1
        bodies = list(jaxprs_in_params(eqn.params))
        for body in bodies:  # its inputs are the last of the equation's own
            pairs = zip(body.invars, eqn.invars[len(eqn.invars) - len(body.invars) :], strict=False)
            _read(body, {v: owners[o] for v, o in pairs if isinstance(o, Var) and o in owners}, graph, inside)
        if not bodies:
            used = (owners.get(v, inside) for v in eqn.invars if isinstance(v, Var))
            graph.shared.update(owner for owner in used if owner != inside)


def _guess(model, leaves, call):
    """The graph for the first usual input that the variables fit."""
    first = None
    features = sorted({leaf.shape[-2] for name, leaf in leaves.items() if name[-1] == "kernel" and leaf.ndim > 1})
    for pixels in ((32, 32), (224, 224), (28, 28), (), (32,), (16, 16, 16)):
        for n in features:
            try:
                return _trace(model, leaves, jax.ShapeDtypeStruct((1, *pixels, n), jnp.float32), call)
            except Exception as error:  # a model may fail in any way on inputs that it was not made for
                first = first or error
    raise InputError(
        f"no usual input fits the model and its variables: give fold_batch_norm an x (the first try: {first})"
    )


# The folding


def _place(path, graph, folded, shapes):
    """(path of the layer that can take up a norm, None), or (None, why there is none)."""
    norm, source = graph.norms[path], graph.before.get(path)
    if graph.calls[path] != 1:
        return None, f"it is called {graph.calls[path]} times" if graph.calls[path] else "its output is not used"
    if getattr(norm.module, "axis", -1) not in (-1, norm.rank - 1):
        return None, "its features are not the last axis"
    neighbours = [folded.get(source, source)]  # a norm that was folded does not stand between any more
    neighbours += [after for after, before in graph.before.items() if before == path]
    obstacles = {layer: _obstacle(path, layer, graph, shapes) for layer in neighbours if layer in graph.layers}
    for layer, why in obstacles.items():
        if why is None:
            return layer, None
    nobody = "its input is not the output of one Dense or Conv alone, nor does one alone take its output"
    return None, next(iter(obstacles.values()), nobody)


def _obstacle(path, layer, graph, shapes):
    """Why a layer next to a norm cannot take it up; None: it can."""
    if graph.calls[layer] != 1:
        return f"{layer} is called {graph.calls[layer]} times"
    if {path, layer} & graph.shared:
        return f"something else uses its variables, or those of {layer}"
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
    """Whether a layer sees more than its input, or its kernel is not all that it multiplies with."""
    window, module = layer.shapes[("params", *layer.path, "kernel")][:-2], layer.module
    if not window:
        return False
    if getattr(module, "mask", None) is not None:
        return True
    if isinstance(module.padding, str):
        return module.padding != "VALID" and max(window) > 1
    return any(jax.tree.leaves(module.padding))


def _merge(norm, layer, after, leaves):
    """Replace the leaves of a norm by a new kernel and bias of the layer before it (`after`: of the one after it)."""

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
    """Values [*stacked, features_in] laid out for a kernel [*stacked, *window, features_in / groups, features]."""
    *stacked, features = values.shape
    groups = features // kernel_shape[-2]
    columns = values.reshape(*stacked, groups, kernel_shape[-2]).swapaxes(-1, -2)
    columns = np.repeat(columns, kernel_shape[-1] // groups, axis=-1)
    return columns.reshape(*stacked, *[1] * (len(kernel_shape) - columns.ndim), *columns.shape[-2:])


# What the two libraries do differently


def _trains(norm, args, kwargs):
    if not isinstance(norm, nn.BatchNorm):
        return kwargs["train"]
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    return not nn.merge_param("use_running_average", norm.use_running_average, given)


def _output_dtype(norm, x):
    if not isinstance(norm, nn.BatchNorm):
        return x.dtype
    learned = norm.use_scale or norm.use_bias
    return norm.dtype or (jnp.promote_types(x.dtype, norm.param_dtype) if learned else x.dtype)
