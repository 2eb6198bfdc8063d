"""PyTorch's names and layouts for the variables of a network, both ways, exactly.

PyTorch stores a kernel as [features, features_in, *window], we store [*window, features_in, features]; its `weight` of
a norm is our `scale`, its running_mean and running_var are our batch_stats `mean` and `var`. Which module is which,
the network itself says (`zoo.network.Network.torch_names`). Scanned units are one array here, and many there.
"""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.units import stack_units, unstack_units
from deepjax.weights.files import read_state_dict, unwrap

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
UNUSED = "num_batches_tracked"  # how often PyTorch has updated a norm's moments; only momentum=None would use it
# In the DenseNets' published files, layers still have the names that they had before torchvision 0.3.
OLD = re.compile(r"(.*\.denselayer\d+\.(?:norm|conv))\.([12]\..*)")


def from_torch(network, source, *, reset_head=False, key=None, fresh=()) -> Any:
    """The variables that hold what a PyTorch state dict holds.

    Args:
      network: the name of a network that torchvision has, or that network, made by `zoo.create` with options. One that
        is made without its head (features_only, return_logits=False) takes whole state dicts too.
      source: {PyTorch's name: array or tensor}, or the path of a .safetensors, .pth or .pt file, see
        `files.read_state_dict`. Tensors of any float type become the network's float32.
      reset_head: the layers whose size is the number of classes, auxiliary ones too, begin anew, drawn with `key`;
        those of the source are not used. For other classes than the source's.
      key: PRNG key for what begins anew.
      fresh: prefixes of PyTorch's names; these layers, too, begin anew where the source has no tensor of theirs.

    Returns:
      {"params": ..., "batch_stats": ...} of NumPy arrays, for `network.apply(variables, x, train=False)`.

    Raises:
      InputError: a network that torchvision does not have; tensors that are missing, left over, or misshapen; a file
        that cannot be read; no key where one is needed.
    """
    network = _network(network)
    given = read_state_dict(source) if isinstance(source, str | os.PathLike) else unwrap(source, "state_dict")
    given = {OLD.sub(r"\1\2", name): value for name, value in given.items() if not name.endswith(UNUSED)}
    whole = whole_network(network)
    expected = expected_variables(whole)
    places = _places(whole, expected)
    anew = heads(whole, expected) if reset_head else set()
    for prefix in fresh:
        if not any(name.startswith(prefix) for name in given):
            anew |= {path for path, (theirs, _) in places.items() if theirs.startswith(prefix)}
    leaves = _initial(whole, anew, key) if anew else {}
    shapes = {theirs: _torch_shape(expected[path].shape, spatial) for path, (theirs, spatial) in places.items()}
    _check_names(given, shapes, {places[path][0] for path in anew})
    for path, (theirs, spatial) in places.items():
        if path not in anew:
            leaves[path] = _leaf(whole, path, theirs, given[theirs], expected, spatial)
    return _arranged(network, leaves)


def to_torch(network, variables) -> dict[str, np.ndarray]:
    """The state dict that holds what the variables hold. The inverse of `from_torch`.

    Norms' num_batches_tracked, of which we keep no count, are 0.

    Raises InputError where `from_torch` does, and where the variables are not the network's.
    """
    network = _network(network)
    leaves: Any = flatten_dict(unstack_units(jax.device_get(dict(variables))))
    places, state_dict = _places(network, expected_variables(network)), {}
    if set(leaves) != set(places):
        odd = sorted("/".join(path) for path in set(leaves) ^ set(places))
        raise InputError(f"variables are not the network's: {_some(odd)} is in one of them only")
    for path, (theirs, spatial) in places.items():
        state_dict[theirs] = _to_theirs(np.asarray(leaves[path]), spatial)
        if path[-1] == "var":
            state_dict[f"{theirs.rpartition('.')[0]}.{UNUSED}"] = np.zeros((), np.int64)
    return state_dict


def to_numpy(value) -> np.ndarray:
    """An array from an array or a PyTorch tensor."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()  # NumPy has no bfloat16


def expected_variables(network) -> dict[tuple[str, ...], Any]:
    """{path: shape and dtype} of all variables, unit by unit."""
    image = np.zeros((1, *network.usual_input), np.float32)

    def init():
        return unstack_units(network.init(jax.random.key(0), image, train=True))

    return flatten_dict(jax.eval_shape(init))


def is_stacked(network):
    """Whether equal units of a network are a scan."""
    return getattr(network, "scan", True)


def heads(network, expected) -> set[tuple[str, ...]]:
    """Paths, unit by unit, of the variables that other classes would make anew: those whose shape depends on them."""
    other = expected_variables(network.clone(num_classes=network.num_classes + 1))
    return {path for path, leaf in expected.items() if other[path].shape != leaf.shape}


def fit(network, variables, *, reset_head=False, key=None) -> Any:
    """Variables of a network, stacked or not, with its head or without, as the network has them; NumPy arrays.

    reset_head and key as of `from_torch`. Raises InputError, with both shapes, for variables of another network.
    """
    leaves: Any = flatten_dict(unstack_units(jax.device_get(dict(variables))))
    whole = whole_network(network)
    expected = expected_variables(whole)
    if whole is not network and not set(expected) <= set(leaves):
        whole, expected = network, expected_variables(network)
    if reset_head:
        anew = heads(whole, expected)
        leaves = {path: leaf for path, leaf in leaves.items() if path not in anew} | _initial(whole, anew, key)
    _check_leaves(whole, leaves, expected)
    return _arranged(network, leaves)


def _check_leaves(network, leaves, expected):
    for path in sorted(set(leaves) ^ set(expected)):
        name = f"{'/'.join(path)} {(expected | leaves)[path].shape}"
        raise InputError(
            f"variables have {name}, which the network has not" if path in leaves else f"variables lack {name}"
        )
    for path, leaf in expected.items():
        if leaves[path].shape != leaf.shape:
            raise InputError(
                f"variables {'/'.join(path)} have shape {leaves[path].shape}, but the network's have "
                f"{leaf.shape}{_remedy(network, path, expected)}"
            )


def _remedy(network, path, expected):
    """What to add to a complaint about the shape of a leaf."""
    classes = path in heads(network, expected)
    return "; for other classes, reset the head (reset_head=True, --reset-head)" if classes else ""


def _network(network):
    return zoo.create(network) if isinstance(network, str) else network


def whole_network(network):
    """The network with its head."""
    if network.return_logits and not network.features_only:
        return network
    return network.clone(return_logits=True, features_only=False)


def _arranged(network, leaves):
    """The tree of all variables, unit by unit, as the network has them."""
    if whole_network(network) is not network:
        leaves = {path: leaves[path] for path in expected_variables(network)}
    return stack_units(unflatten_dict(leaves)) if is_stacked(network) else unflatten_dict(leaves)


def _initial(network, paths, key) -> dict[tuple[str, ...], np.ndarray]:
    """What a network's init draws for some of its variables. Under jit the others cost nothing."""
    if key is None:
        raise InputError("key: layers that begin anew need one, such as jax.random.key(0)")
    image = np.zeros((1, *network.usual_input), np.float32)

    @jax.jit
    def init(key):
        leaves = flatten_dict(unstack_units(network.init(key, image, train=True)))
        return {"/".join(path): leaves[path] for path in paths}

    return {tuple(name.split("/")): leaf for name, leaf in jax.device_get(init(key)).items()}


def _places(network, expected) -> dict[tuple[str, ...], tuple[str, tuple[int, int] | None]]:
    """{path of a variable: (PyTorch's name of it, height and width of the flattened maps that it takes)}."""
    names, places = network.torch_names(), {}
    for path in expected:
        layer = "/".join(path[1:-1])
        if layer not in names:
            raise InputError(
                f"{type(network).__name__}.torch_names does not name {layer}; options differ from torchvision's form"
            )
        name = names[layer]
        theirs, spatial = (name, None) if isinstance(name, str) else name
        places[path] = f"{theirs}.{LEAVES[path[-1]]}", spatial if path[-1] == "kernel" else None
    return places


def _check_names(given, wanted, unneeded):
    """InputError for tensors that are missing or left over. wanted: {PyTorch's name: shape}."""
    if missing := sorted(set(wanted) - set(given) - unneeded):
        named = [f"{name} {wanted[name]}" for name in missing]
        raise InputError(f"weights lack {_some(named)}; are they of another network?")
    if extra := sorted(set(given) - set(wanted)):
        named = [f"{name} {tuple(given[name].shape)}" for name in extra]
        raise InputError(f"weights have {_some(named)}, which the network has not")


def _leaf(network, path, theirs, value, expected, spatial):
    """Our array of a tensor. Raises InputError for a shape or type that the network has not."""
    value, wanted = to_numpy(value), expected[path]
    shape = _torch_shape(wanted.shape, spatial)
    if value.shape != shape:
        remedy = _remedy(network, path, expected)
        raise InputError(f"weights {theirs} have shape {value.shape}, but the network's have {shape}{remedy}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(f"weights {theirs} are {value.dtype}; they must be floating point numbers")
    return _to_ours(value, spatial).astype(wanted.dtype)  # a copy: PyTorch changes its tensors in place


def _to_ours(value, spatial):
    if value.ndim < 2:
        return value
    if spatial:
        value = value.reshape(len(value), -1, *spatial)
    value = np.moveaxis(value, (0, 1), (-1, -2))
    return np.ascontiguousarray(value.reshape(-1, value.shape[-1]) if spatial else value)


def _to_theirs(value, spatial):
    if value.ndim < 2:
        return value
    if spatial:
        value = value.reshape(*spatial, -1, value.shape[-1])
    value = np.moveaxis(value, (-1, -2), (0, 1))
    return np.ascontiguousarray(value.reshape(len(value), -1) if spatial else value)


def _torch_shape(shape, spatial):
    return _to_theirs(np.empty(shape, bool), spatial).shape


def _some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
