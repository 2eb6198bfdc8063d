"""What is examined: a model, its data, its loss and its plan of training, in one form for Linen, NNX and functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from deepjax.errors import InputError, first_line
from deepjax.trace import accepts

STREAMS = ("dropout",)  # of PRNG keys that a Linen model may draw from in training
# names under which models take whether they train, and what the name's value is while they train
TRAIN = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}
RATE = 1e-3  # of Adam, where no optimizer is given


@dataclass(frozen=True)
class Subject:
    """A model with data, loss and plan. All functions are pure, and none of them is jitted."""

    init: Callable[[jax.Array], dict]
    """PRNG key -> variables: a dict with "params" and, if there are any, collections of state such as "batch_stats"."""
    apply: Callable[..., tuple[Any, dict]]
    """(variables, inputs, train, PRNG key) -> (predictions, the collections of state after the call)."""
    inputs: Any
    """Pytree of NumPy arrays [examples, ...]: the training set, or one batch of it."""
    targets: Any
    """Pytree of NumPy arrays [examples, ...]."""
    loss: Callable[[Any, Any], jax.Array]
    """(predictions, targets) -> scalar."""
    optimizer: optax.GradientTransformation
    batch_size: int
    epochs: int | None
    """Planned passes over the examples; None: not known."""
    planned: bool
    """Whether the caller has given the optimizer, so that its settings can be judged."""
    module: nn.Module | None = None
    """The Linen model, where it is one."""
    call: tuple[tuple[str, Any], ...] = ()
    """Name of the argument that sets the mode, such as "train", and its value in training; () if there is none."""
    given: bool = False
    """Whether variables were given: `init` returns these for every key."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(jax.tree.leaves(self.inputs)[0])

    def rows(self, index) -> tuple[Any, Any]:
        """Return the inputs and targets of these examples."""
        return jax.tree.map(lambda a: a[index], (self.inputs, self.targets))

    def value(self, variables, inputs, targets, key, train=True) -> tuple[jax.Array, tuple[Any, dict]]:
        """Return (loss, (predictions, state after the call))."""
        predictions, state = self.apply(variables, inputs, train, key)
        return self.loss(predictions, targets), (predictions, state)

    def with_(self, **changes) -> "Subject":
        """Return a copy with these fields changed."""
        return replace(self, **changes)


def subject(model, batch, loss, *, variables=None, optimizer=None, batch_size=None, epochs=None) -> Subject:
    """Bring a model, data and plan to the form of a `Subject`, and check that they fit each other.

    Args:
      model: a Linen module; an NNX module; or a function (params, inputs) -> predictions, with `variables` its params.
      batch: (inputs, targets), pytrees of arrays [examples, ...]: the training set, or one batch of it.
      loss: function (predictions, targets) -> scalar.
      variables: initial or trained variables of the model. None: they are drawn by `model.init`; an NNX module has its
        own. For a function they are its parameters.
      optimizer: the planned Optax transformation. None: Adam with a rate of 0.001, which is not judged.
      batch_size: examples of a planned step; None: at most 32.
      epochs: planned passes over the examples; None: not known.

    Raises:
      InputError: the arrays do not fit each other, the model cannot be called on them, or the loss is not a scalar.
    """
    inputs, targets = _checked_arrays(batch)
    examples = len(jax.tree.leaves(inputs)[0])
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs {epochs} must be at least 1")
    init, apply, module, call = _functions(model, variables, inputs)
    made = Subject(
        init=init,
        apply=apply,
        inputs=inputs,
        targets=targets,
        loss=loss,
        optimizer=optax.adam(RATE) if optimizer is None else optimizer,
        batch_size=min(batch_size or 32, examples),
        epochs=epochs,
        planned=optimizer is not None,
        module=module,
        call=call,
        given=variables is not None or module is None,
    )
    _check(made)
    return made


def _checked_arrays(batch):
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"batch must be (inputs, targets), not {type(batch).__name__}")
    pair = []
    for name, tree in zip(("inputs", "targets"), batch, strict=True):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        if not leaves or any(leaf.ndim == 0 or leaf.dtype.kind not in "fiubV" for leaf in leaves):
            kinds = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves) or "nothing"
            raise InputError(f"{name} must be arrays of numbers [examples, ...], not {kinds}")
        narrow = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}
        leaves = [leaf.astype(narrow.get(str(leaf.dtype), leaf.dtype)) for leaf in leaves]
        pair.append(jax.tree.unflatten(jax.tree.structure(tree), leaves))
    lengths = {len(leaf) for leaf in jax.tree.leaves(pair)}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"inputs and targets must have the same number of examples, not {sorted(lengths)}")
    return pair


def _functions(model, variables, inputs):
    """Return (init, apply, the Linen module or None, the argument that says whether the model trains)."""
    if isinstance(model, nn.Module):
        return linen(model, variables, inputs)
    if _is_nnx(model):
        return *_nnx(model), None, ()
    if callable(model):
        if variables is None:
            raise InputError("variables must be the parameters where model is a function (params, inputs)")
        return *_function(model, variables), None, ()
    raise InputError(f"model must be a Linen module, an NNX module or a function, not {type(model).__name__}")


def _function(model, params):
    """Return (init, apply) of a function of parameters. Their names are their paths, as lists have no names."""
    pairs, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [tuple(jax.tree_util.keystr((part,), simple=True) for part in path) or ("weights",) for path, _ in pairs]
    plain = {"params": traverse_util.unflatten_dict({n: leaf for n, (_, leaf) in zip(names, pairs, strict=True)})}

    def apply(variables, inputs, train, key):
        flat = traverse_util.flatten_dict(variables["params"])
        return model(jax.tree.unflatten(tree, [flat[name] for name in names]), inputs), {}

    return lambda key: plain, apply


def linen(model, variables, inputs):
    """Return (init, apply, the module, the argument that says whether it trains) of a Linen module."""
    call = tuple((name, value) for name, value in TRAIN.items() if _takes(model, name))[:1]
    one = jax.tree.map(lambda a: a[:2], inputs)

    def arguments(train):
        return {name: value if train else not value for name, value in call}

    def init(key):
        if variables is not None:
            return _split(variables)
        keys = {"params": key} | {name: jax.random.fold_in(key, i + 1) for i, name in enumerate(STREAMS)}
        return _split(model.init(keys, one, **arguments(False)))

    def apply(variables, inputs, train, key):
        keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(STREAMS)}
        # Some models change their state in evaluation too, though they should not.
        mutable = [name for name in variables if name != "params"]
        out, state = model.apply(variables, inputs, **arguments(train), rngs=keys, mutable=mutable)
        return out, dict(state) if train else {}

    return init, apply, model, call


def _takes(model, name):
    """Whether a model's call takes an argument of this name (and not just any, as with `**kwargs`)."""
    return accepts(model, name) and not accepts(model, "no_such_argument_of_a_model")


def _split(variables):
    plain = nn.meta.unbox(variables)
    plain = {"params": plain} if "params" not in plain else plain
    return {name: tree for name, tree in plain.items() if name == "params" or (tree and name != "intermediates")}


def _is_nnx(model):
    from flax import nnx

    return isinstance(model, nnx.Module)


def _nnx(model):
    """Return (init, apply) of an NNX module. It has its variables already; modes are set by its `train` and `eval`."""
    from flax import nnx

    modes = {}
    for train in (True, False):
        copy = nnx.clone(model)
        copy.train() if train else copy.eval()
        modes[train] = nnx.split(copy, nnx.Param, ...)
    _, params, rest = modes[True]
    state = {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(rest)}

    def apply(variables, inputs, train, key):
        graph, params, rest = modes[train]
        params, rest = jax.tree.map(lambda a: a, params), jax.tree.map(lambda a: a, rest)
        nnx.replace_by_pure_dict(params, variables["params"])
        nnx.replace_by_pure_dict(rest, variables["state"])
        merged = nnx.merge(graph, params, rest)
        out = merged(inputs)
        _, _, rest = nnx.split(merged, nnx.Param, ...)
        return out, {"state": nnx.to_pure_dict(rest)} if train else {}

    return lambda key: state, apply


def _check(made):
    """Call the model and the loss once on abstract arrays."""
    x, y = made.rows(slice(0, made.batch_size))
    shapes = jax.tree.map(lambda a: tuple(a.shape), x)
    try:
        variables = jax.eval_shape(made.init, jax.random.key(0))
    except Exception as error:  # any model of the user's own
        raise InputError(f"model cannot be initialized on inputs of shape {shapes}: {first_line(error)}") from error
    if not jax.tree.leaves(variables["params"]):
        raise InputError("model has no parameters, so there is nothing to train")
    try:
        predictions, _ = jax.eval_shape(lambda v: made.apply(v, x, True, jax.random.key(0)), variables)
    except Exception as error:
        raise InputError(f"model cannot be called on inputs of shape {shapes}: {first_line(error)}") from error
    out = jax.tree.map(lambda a: a.shape, predictions)
    goal = jax.tree.map(lambda a: tuple(a.shape), y)
    try:
        value = jax.eval_shape(made.loss, predictions, y)
    except Exception as error:
        text = f"loss cannot be computed from predictions {out} and targets {goal}: {first_line(error)}"
        raise InputError(text) from error
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        found = getattr(value, "shape", type(value).__name__)
        raise InputError(f"loss must return one real number, not an array of shape {found}; take its mean")


def one_array(inputs: Any) -> bool:
    """Whether inputs are one array, and not a dictionary or another structure of them."""
    return jax.tree.structure(inputs) == jax.tree.structure(0)


def parameter_count(variables: Mapping) -> int:
    """Return the number of parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))
