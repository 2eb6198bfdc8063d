"""Convert the variables of a network to PyTorch's names and layouts and back, exactly.

PyTorch stores a kernel as [features, features_in, *window]; ours is [*window, features_in, features]. Its `weight` of a
norm is our `scale`; its running_mean and running_var are our batch_stats `mean` and `var`. The network gives the names
of its layers in PyTorch (`zoo.network.Network.torch_names`). Scanned units are one array here and many arrays there.
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
from deepjax.foreign import check_finite, reading
from deepjax.units import stack_units, unstack_units
from deepjax.weights.files import read_state_dict
from deepjax.weights.state_dict import unwrap

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
UNUSED = "num_batches_tracked"  # number of updates of a norm's moments; PyTorch uses it only with momentum=None
# The published files of the DenseNets have the names of torchvision before 0.3.
OLD = re.compile(r"(.*\.denselayer\d+\.(?:norm|conv))\.([12]\..*)")


def from_torch(network, source, *, reset_head=False, key=None, fresh=()) -> Any:
    """Return a network's variables with the values of a PyTorch state dict.

    Args:
      network: the name of a network that torchvision has, or that network, made by `zoo.create` with options. A
        network without its head (features_only, return_logits=False) also takes the state dict of the whole network.
      source: {PyTorch's name: array or tensor}, or the path of a .safetensors, .pth or .pt file, see
        `files.read_state_dict`. Tensors of any float type become the network's float32. Both are unwrapped, see
        `state_dict.unwrap`.
      reset_head: initialize the layers whose size is the number of classes, auxiliary ones too, instead of reading
        them. Needed for other classes than the source's.
      key: PRNG key of the layers that are initialized. May be None if there are none.
      fresh: prefixes of PyTorch's names. Layers with such a prefix are initialized if the source has no tensor of
        that prefix.

    Returns:
      {"params": ..., "batch_stats": ...} of NumPy arrays, for `network.apply(variables, x, train=False)`.

    Raises:
      InputError: a network that torchvision does not have; tensors that are missing, superfluous, of another shape, or
        not finite in float32; a file that cannot be read; no key where one is needed.
    """
    network = _network(network)
    given = read_state_dict(source) if isinstance(source, str | os.PathLike) else unwrap(source, "state_dict")
    given = {OLD.sub(r"\1\2", name): value for name, value in given.items() if not name.endswith(UNUSED)}
    whole = whole_network(network)
    expected = expected_variables(whole)
    places = _places(whole, expected)
    initialized = heads(whole, expected) if reset_head else set()
    for prefix in fresh:
        if not any(name.startswith(prefix) for name in given):
            initialized |= {path for path, (theirs, _) in places.items() if theirs.startswith(prefix)}
    leaves = _initial(whole, initialized, key) if initialized else {}
    shapes = {theirs: _torch_shape(expected[path].shape, spatial) for path, (theirs, spatial) in places.items()}
    _check_names(given, shapes, {places[path][0] for path in initialized})
    for path, (theirs, spatial) in places.items():
        if path not in initialized:
            leaves[path] = _leaf(whole, path, theirs, given[theirs], expected, spatial)
    return _arranged(network, leaves)


def to_torch(network, variables) -> dict[str, np.ndarray]:
    """Return a PyTorch state dict with the values of a network's variables. The inverse of `from_torch`.

    num_batches_tracked of every norm is 0, because our batch norms do not count their updates.

    Raise InputError as `from_torch` does, and for variables of another network.
    """
    network = _network(network)
    leaves: Any = flatten_dict(unstack_units(jax.device_get(dict(variables))))
    places, state_dict = _places(network, expected_variables(network)), {}
    if set(leaves) != set(places):
        odd = sorted("/".join(path) for path in set(leaves) ^ set(places))
        raise InputError(f"the variables are not of this network: only one of the two has {_some(odd)}")
    for path, (theirs, spatial) in places.items():
        state_dict[theirs] = _to_theirs(np.asarray(leaves[path]), spatial)
        if path[-1] == "var":
            state_dict[f"{theirs.rpartition('.')[0]}.{UNUSED}"] = np.zeros((), np.int64)
    return state_dict


def expected_variables(network) -> dict[tuple[str, ...], Any]:
    """Return {path: shape and dtype} of all variables, with scanned units as unit1, unit2, ..."""
    image = np.zeros((1, *network.usual_input), np.float32)

    def init():
        return unstack_units(network.init(jax.random.key(0), image, train=True))

    return flatten_dict(jax.eval_shape(init))


def is_stacked(network):
    """Return whether the equal units of a network are a scan."""
    return getattr(network, "scan", True)


def heads(network, expected) -> set[tuple[str, ...]]:
    """Return the paths, unit by unit, of the variables whose shape depends on the number of classes."""
    other = expected_variables(network.clone(num_classes=network.num_classes + 1))
    return {path for path, leaf in expected.items() if other[path].shape != leaf.shape}


def fit(network, variables, *, reset_head=False, key=None) -> Any:
    """Return a network's variables in the form that the network has, as NumPy arrays.

    The given variables may be of scanned or unrolled units, and with or without the head. reset_head and key are those
    of `from_torch`. Raise InputError, with both shapes, for variables of another network, and for other numbers than
    floating point. Values may be infinite or NaN.
    """
    with reading("the variables cannot be arranged in units", "they may be of another network"):
        leaves: Any = flatten_dict(unstack_units(jax.device_get(dict(variables))))
    whole = whole_network(network)
    expected = expected_variables(whole)
    if whole is not network and not set(expected) <= set(leaves):
        whole, expected = network, expected_variables(network)
    if reset_head:
        head = heads(whole, expected)
        leaves = {path: leaf for path, leaf in leaves.items() if path not in head} | _initial(whole, head, key)
    _check_shapes(whole, leaves, expected)
    leaves = {path: _as_float(leaf, "/".join(path), expected[path].dtype) for path, leaf in leaves.items()}
    return _arranged(network, leaves)


def _as_float(value, name, dtype):
    """Return a new array of a float type; what overflows it becomes infinite. Raise InputError for other numbers."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(f"weights {name} are {value.dtype}; they must be floating point numbers")
    with np.errstate(over="ignore"):
        return value.astype(dtype)


def _check_shapes(network, leaves, expected):
    for path in sorted(set(leaves) ^ set(expected)):
        name = f"{'/'.join(path)} {(expected | leaves)[path].shape}"
        raise InputError(
            f"the variables have {name}, which the network lacks" if path in leaves else f"the variables lack {name}"
        )
    for path, leaf in expected.items():
        if leaves[path].shape != leaf.shape:
            raise InputError(
                f"the variables {'/'.join(path)} have shape {leaves[path].shape}, but the network's have "
                f"{leaf.shape}{_remedy(network, path, expected)}"
            )


def _remedy(network, path, expected):
    """Return the remedy for a wrong shape: other classes need a new head."""
    classes = path in heads(network, expected)
    return "; for other classes, reset the head (reset_head=True, --reset-head)" if classes else ""


def _network(network):
    return zoo.create(network) if isinstance(network, str) else network


def whole_network(network):
    """Return the network with its head."""
    if network.return_logits and not network.features_only:
        return network
    return network.clone(return_logits=True, features_only=False)


def _arranged(network, leaves):
    """Return the tree of the variables, given unit by unit, in the form that the network has."""
    if whole_network(network) is not network:
        leaves = {path: leaves[path] for path in expected_variables(network)}
    return stack_units(unflatten_dict(leaves)) if is_stacked(network) else unflatten_dict(leaves)


def _initial(network, paths, key) -> dict[tuple[str, ...], np.ndarray]:
    """Return initial values of some of a network's variables. Under jit, the others are not computed."""
    if key is None:
        raise InputError("key: the layers that are initialized need a PRNG key, such as jax.random.key(0)")
    image = np.zeros((1, *network.usual_input), np.float32)

    @jax.jit
    def init(key):
        leaves = flatten_dict(unstack_units(network.init(key, image, train=True)))
        return {"/".join(path): leaves[path] for path in paths}

    return {tuple(name.split("/")): leaf for name, leaf in jax.device_get(init(key)).items()}


def _places(network, expected) -> dict[tuple[str, ...], tuple[str, tuple[int, int] | None]]:
    """Return {path of a variable: (PyTorch's name of it, height and width of the flattened maps that it takes)}."""
    names, places = network.torch_names(), {}
    for path in expected:
        layer = "/".join(path[1:-1])
        if layer not in names:
            raise InputError(
                f"{type(network).__name__}.torch_names lacks {layer}; torchvision has no such layer, so leave out the "
                f"option that adds it"
            )
        name = names[layer]
        theirs, spatial = (name, None) if isinstance(name, str) else name
        places[path] = f"{theirs}.{LEAVES[path[-1]]}", spatial if path[-1] == "kernel" else None
    return places


def _check_names(given, wanted, unneeded):
    """Raise InputError for tensors that are missing or superfluous. wanted: {PyTorch's name: shape}."""
    if missing := sorted(set(wanted) - set(given) - unneeded):
        named = [f"{name} {wanted[name]}" for name in missing]
        raise InputError(f"weights lack {_some(named)}; are they of another network?")
    if extra := sorted(set(given) - set(wanted)):
        named = [f"{name} {tuple(given[name].shape)}" for name in extra]
        raise InputError(f"weights have {_some(named)}, which the network lacks")


def _leaf(network, path, theirs, value, expected, spatial):
    """Return our array of a tensor. Raise InputError for a wrong shape, and the errors of `_as_float`."""
    wanted = expected[path]
    shape = _torch_shape(wanted.shape, spatial)
    if value.shape != shape:
        remedy = _remedy(network, path, expected)
        raise InputError(f"weights {theirs} have shape {value.shape}, but the network's have {shape}{remedy}")
    value = _as_float(value, theirs, wanted.dtype)  # a copy: PyTorch changes its tensors in place
    check_finite({theirs: value}, "weights")
    return _to_ours(value, spatial)


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
