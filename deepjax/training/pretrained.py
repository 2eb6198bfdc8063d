"""Where the parameters of a run begin, if not anew: `config.pretrained`."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax import data, weights, zoo
from deepjax.errors import InputError
from deepjax.training.run import load_run
from deepjax.weights.files import TORCH, is_ours, read_state_dict
from deepjax.weights.hub import PRETRAINED, find
from deepjax.weights.pytorch import LEAVES, fit, to_numpy

SUFFIXES = (".safetensors", *TORCH)


class Source(NamedTuple):
    """Weights to begin with, and how images were standardized for them."""

    where: str
    name: str | None  # of the network, in the zoo; None: of a PyTorch state dict, which does not say
    network: Any  # a Linen module; None for a state dict
    tensors: Any  # variables; or {PyTorch's name: array or tensor}
    standardizer: data.Standardizer


def read(where, model):
    """The Source that `config.pretrained` names; `model` is the name of the network which is to be trained.

    Raises InputError for a file, folder or name that is none of what may be there.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        run = load_run(path)
        return Source(where, run.config.model, run.model, run.variables, run.standardizer)
    if path.suffix in SUFFIXES and not is_ours(path):
        return Source(where, None, None, read_state_dict(path), _standardizer(zoo.preprocessing(model)))
    if path.suffix not in SUFFIXES and ("/" in where or path.exists()):
        raise InputError(f"pretrained {where}: no folder of a run, and no file that ends in {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:  # before anything is fetched
        _check_network(where, PRETRAINED[find(where)][0], model, zoo.create(model).borrowed)
    found = weights.load_pretrained(path if path.suffix in SUFFIXES else where)
    name = found.source["network"]
    preprocessing = found.preprocessing or zoo.preprocessing(name)
    return Source(where, name, found.network, found.variables, _standardizer(preprocessing))


def _check_network(where, name, model, borrowed):
    """Raises InputError where weights of the network `name` are no use for `model`."""
    if name != model and not borrowed:
        raise InputError(f"pretrained {where} is of the network {name}, model is {model}; set one to the other")


def _standardizer(preprocessing):
    return data.Standardizer("channel", *(np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std)))


def begin(source, model, name, shape, key, *, reset_head):
    """The variables with which the network `model`, called `name`, begins, for examples of `shape`.

    A network with weights of its own name takes them all; without reset_head its head, too. One that borrows layers
    from another (`Network.borrowed`) takes these, and the rest begins anew, drawn with `key`.

    Raises InputError for weights of another network, or which do not fit, with both shapes.
    """
    model = model.clone(usual_input=tuple(shape))  # what a head of flattened maps, or a stem of grey images, depends on
    if source.name is not None:
        _check_network(source.where, source.name, name, model.borrowed)
    if source.name == name:
        return fit(model, source.tensors, reset_head=reset_head, key=key)
    if model.borrowed:
        if not reset_head:
            raise InputError(f"reset_head False: {name} only borrows layers of {source.where}, its head begins anew")
        tensors = source.tensors if source.name is None else weights.to_torch(source.network, source.tensors)
        return _borrow(model, tensors, source.where, key)
    return weights.from_torch(model, source.tensors, reset_head=reset_head, key=key)


def _borrow(model, tensors, where, key):
    """Fresh variables, with those of `model.borrowed` from a state dict, of which the rest is left alone."""
    shape = (1, *model.usual_input)
    drawn = jax.jit(lambda key: model.init(key, jnp.zeros(shape), train=False))(key)
    leaves: Any = flatten_dict(jax.device_get(drawn))
    for path, leaf in leaves.items():
        theirs = model.borrowed.get("/".join(path[1:-1]))
        if theirs is None:
            continue
        name = f"{theirs}.{LEAVES[path[-1]]}"
        if name not in tensors:
            raise InputError(f"pretrained {where} lacks {name}, which the network borrows; is it of another network?")
        value = to_numpy(tensors[name])
        value = np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value
        if value.shape != leaf.shape:
            raise InputError(
                f"pretrained {where}: {name}, as {'/'.join(path)}, has shape {value.shape}, but the network's has "
                f"{leaf.shape}"
            )
        leaves[path] = np.ascontiguousarray(value, leaf.dtype)
    return unflatten_dict(leaves)
