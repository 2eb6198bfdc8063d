"""Pretrained weights as the initial parameters of a run: `config.pretrained`."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax import data, weights, zoo
from deepjax.errors import InputError
from deepjax.foreign import check_finite
from deepjax.training.trained import read_trained
from deepjax.units import stack_units, unstack_units
from deepjax.weights.files import is_ours, read_state_dict
from deepjax.weights.hub import PRETRAINED, find
from deepjax.weights.pytorch import LEAVES, expected_variables, fit, heads, is_stacked


class Source(NamedTuple):
    """Weights to begin with, and how images were standardized for them."""

    where: str
    name: str | None  # of the network, in the zoo; None for a PyTorch state dict, which does not record it
    network: Any  # a Linen module; None for a state dict
    tensors: Any  # variables; or {PyTorch's name: array}
    standardizer: data.Standardizer


def read(where, model, only=()):
    """Return the Source that `config.pretrained` names, for the network called `model` and its parameters `only`.

    Raise InputError for a file, folder or name that is not a valid source.
    """
    path, kind = Path(where).expanduser(), weights.kind_of(where, "pretrained")
    if kind == "run":
        run = read_trained(path, f"pretrained {where}")
        return Source(where, run.name, run.network, run.variables, run.standardizer)
    if kind == "file" and not is_ours(path):
        return Source(where, None, None, read_state_dict(path), _standardizer(zoo.preprocessing(model)))
    if kind == "network":  # before anything is fetched
        _check_network(where, PRETRAINED[find(where)][0], model, zoo.create(model).borrowed, only)
    found = weights.load_pretrained(path if kind == "file" else where)
    name = found.source["network"]
    preprocessing = found.preprocessing or zoo.preprocessing(name)
    return Source(where, name, found.network, found.variables, _standardizer(preprocessing))


def _check_network(where, name, model, borrowed, only):
    """Raise InputError if weights of the network `name` cannot be used for `model`."""
    if name != model and not borrowed and not only:
        raise InputError(
            f"pretrained {where} is of the network {name}, model is {model}; set one to the other, or name the "
            f"parameters that both have in pretrained_layers"
        )


def _standardizer(preprocessing):
    return data.Standardizer("channel", *(np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std)))


def initial_variables(source, model, name, shape, key, *, reset_head, only=()):
    """Return the initial variables of the network `model`, called `name`, for examples of `shape`.

    From a network of the same name, all weights are taken, except those of the head if `reset_head` is set. With
    `only`, those that match one of its patterns are taken, from any network that has them in the same shape. A network
    that borrows layers of another network (`Network.borrowed`) takes only these layers. The rest is initialized with
    the PRNG key `key`.

    Raise InputError for weights of another network, or of other shapes, which the message gives.
    """
    model = model.clone(usual_input=tuple(shape))  # a head of flattened maps, or a stem of gray images, depends on it
    if source.name is not None:
        _check_network(source.where, source.name, name, model.borrowed, only)
    if only:
        return _take(model, source, key, only, reset_head)
    if source.name == name:
        return fit(model, source.tensors, reset_head=reset_head, key=key)
    if model.borrowed:
        if not reset_head:
            raise InputError(f"reset_head False: {name} only borrows layers of {source.where}; its head must be reset")
        tensors = source.tensors if source.name is None else weights.to_torch(source.network, source.tensors)
        return _borrow(model, tensors, source.where, key)
    return weights.from_torch(model, source.tensors, reset_head=reset_head, key=key)


def _take(model, source, key, patterns, reset_head):
    """Return new variables, with those that match one of the patterns, and moments beside them, from the source."""
    where = source.where
    if source.name is None:  # a PyTorch state dict of the same network
        theirs: Any = flatten_dict(
            unstack_units(weights.from_torch(model, source.tensors, reset_head=reset_head, key=key))
        )
    else:
        theirs = flatten_dict(unstack_units(jax.device_get(dict(source.tensors))))
    expected = expected_variables(model)
    head = heads(model, expected) if reset_head else set()
    taken = {
        path for path in expected if path not in head and any(fnmatchcase("/".join(path[1:]), p) for p in patterns)
    }
    for pattern in patterns:
        if not any(fnmatchcase("/".join(path[1:]), pattern) for path in taken):
            without = " (reset_head leaves out the head)" if reset_head else ""
            raise InputError(f"pretrained_layers {pattern!r} matches no parameter{without}; {_nearest(expected)}")
    for path in sorted(taken):
        shape, found = expected[path].shape, theirs.get(path)
        if found is None or found.shape != shape:
            raise InputError(
                f"pretrained_layers: {'/'.join(path[1:])} is {shape} in the network, but "
                f"{'missing' if found is None else found.shape} in {where}; leave it out of the patterns"
            )
        check_finite({"/".join(path): found}, f"pretrained {where}")
    drawn = jax.jit(lambda key: model.init(key, jnp.zeros((1, *model.usual_input)), train=False))(key)
    leaves: Any = flatten_dict(unstack_units(jax.device_get(drawn)))
    leaves |= {path: np.asarray(theirs[path], expected[path].dtype) for path in taken}
    return stack_units(unflatten_dict(leaves)) if is_stacked(model) else unflatten_dict(leaves)


def _nearest(expected):
    names = sorted({path[1] for path in expected})
    return f"choose from {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _borrow(model, tensors, where, key):
    """Return new variables, with those of `model.borrowed` replaced from a state dict."""
    shape = (1, *model.usual_input)
    drawn = jax.jit(lambda key: model.init(key, jnp.zeros(shape), train=False))(key)
    leaves: Any = flatten_dict(jax.device_get(drawn))
    for path, leaf in leaves.items():
        theirs = model.borrowed.get("/".join(path[1:-1]))
        if theirs is None:
            continue
        name = f"{theirs}.{LEAVES[path[-1]]}"
        if name not in tensors:
            raise InputError(
                f"pretrained {where} lacks {name}, which the network borrows; the weights may be of another network"
            )
        value = np.asarray(tensors[name])
        check_finite({name: value}, f"pretrained {where}")
        value = np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value
        if value.shape != leaf.shape:
            raise InputError(
                f"pretrained {where}: {name}, as {'/'.join(path)}, has shape {value.shape}, but the network's has "
                f"{leaf.shape}"
            )
        leaves[path] = np.ascontiguousarray(value, leaf.dtype)
    return unflatten_dict(leaves)
