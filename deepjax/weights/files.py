"""Files of weights, in our layout and in PyTorch's. Reading one never runs code that a pickle may contain.

Our files are .safetensors. Each variable is stored under its path, such as params/stem_conv/kernel. The file's metadata
holds the network's name, its options and its classes as JSON.
"""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deepjax.errors import InputError, first_line
from deepjax.files import replacing

TORCH = (".pth", ".pt")
MARK = "deepjax"  # the key of our JSON in a file's metadata
ENTRIES = ("state_dict", "model")  # names under which training scripts often store a state dict in a checkpoint
WRAPPERS = ("module.", "_orig_mod.")  # name prefixes of DataParallel and AveragedModel, and of torch.compile
AVERAGED = "n_averaged"  # the count that an AveragedModel adds to a state dict


def save_variables(path, variables, metadata: Mapping[str, Any] | None = None):
    """Write a network's variables and metadata, completely or not at all.

    Args:
      path: a path that ends in .safetensors.
      variables: {"params": ..., "batch_stats": ...}, any tree of arrays.
      metadata: a mapping that JSON can hold. `save_pretrained` writes the metadata that `load_pretrained` needs.

    Raises:
      InputError: another ending, metadata that JSON cannot hold.
    """
    path = check_suffix(path, (".safetensors",))
    leaves: Any = flatten_dict(jax.device_get(dict(variables)), sep="/")
    try:
        text = json.dumps(dict(metadata or {}))
    except TypeError as error:
        raise InputError(f"metadata {dict(metadata or {})}: {error}; give names and numbers") from None
    _save(path, leaves, {MARK: text})


def load_variables(path) -> tuple[Any, dict[str, Any]]:
    """Return (variables, metadata) of a file that `save_variables` wrote. Raise InputError for any other file."""
    leaves, metadata = _read_safetensors(path)
    if metadata is None:
        raise InputError(f"{path} is not in deepjax's layout; if it has PyTorch's names, use from_torch or convert it")
    return unflatten_dict(leaves, sep="/"), metadata


def is_ours(path):
    """Return whether `save_variables` wrote a file. Raise InputError for a file that cannot be read."""
    return Path(path).suffix == ".safetensors" and _read_safetensors(path, names_only=True)[1] is not None


def save_state_dict(path, state_dict):
    """Write {PyTorch's name: array} to a .safetensors, .pth or .pt file. The latter two need PyTorch.

    Raise InputError for another ending.
    """
    path = check_suffix(path, (".safetensors", *TORCH))
    if path.suffix == ".safetensors":
        _save(path, state_dict, {"format": "pt"})
        return
    torch = _torch(path)
    with _replacing(path) as partial:
        torch.save({name: torch.tensor(value) for name, value in state_dict.items()}, partial)


def read_state_dict(path) -> dict[str, Any]:
    """Return {PyTorch's name: array or tensor} of a .safetensors, .pth or .pt file.

    A .pth or .pt file is a pickle. PyTorch's restricted reader loads only its tensors and plain containers. The state
    dict is unwrapped, see `unwrap`.

    Raises:
      InputError: no such file, another ending, a file that is damaged or holds something else, PyTorch is missing.
    """
    path = check_suffix(path, (".safetensors", *TORCH))
    if path.suffix != ".safetensors":
        return unwrap(_read_pickle(path), path)
    leaves, metadata = _read_safetensors(path)
    if metadata is not None:
        raise InputError(f"{path} has deepjax's layout, not PyTorch's; read it with load_variables")
    return unwrap(leaves, path)


def unwrap(found, what) -> dict[str, Any]:
    """Return the state dict in a checkpoint, under the names of the network itself.

    The state dict may be the checkpoint, or its entry `state_dict` or `model`. It may come from a network that
    DataParallel, AveragedModel or torch.compile has wrapped, or several of them.

    Args:
      found: the checkpoint.
      what: its name, for errors.

    Raises:
      InputError: the checkpoint has no state dict.

    >>> sorted(unwrap({"n_averaged": np.zeros(()), "module._orig_mod.fc.bias": np.zeros(3)}, "checkpoint"))
    ['fc.bias']
    """
    for entry in ENTRIES:
        if isinstance(found, Mapping) and isinstance(found.get(entry), Mapping):
            found = found[entry]
    if not isinstance(found, Mapping):
        raise InputError(f"{what} holds a {type(found).__name__}, not a state dict; save model.state_dict()")
    odd = [str(name) for name, value in found.items() if not (isinstance(name, str) and hasattr(value, "shape"))]
    if odd:
        raise InputError(
            f"{what} holds entries that are not tensors ({', '.join(odd[:3])}); give a state dict, or a dict whose "
            f"entry {' or '.join(ENTRIES)} is one"
        )
    return _without_wrappers(dict(found))


def _without_wrappers(state_dict):
    while True:
        names = set(state_dict) - {AVERAGED}
        prefix = next((p for p in WRAPPERS if names and all(name.startswith(p) for name in names)), None)
        if prefix is None:
            return state_dict
        state_dict = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name != AVERAGED}


def check_suffix(path, suffixes):
    """Return the Path. Raise InputError unless it ends in one of the suffixes."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise InputError(f"weights file {path} must end in {', '.join(suffixes)}")
    return path


def _read_safetensors(path, names_only=False) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Return (arrays, our metadata). The metadata is None in a file that is not in our layout."""
    path = _existing(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = (file.metadata() or {}).get(MARK)
            arrays = {} if names_only else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, None if metadata is None else dict(json.loads(metadata))
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged, or not a .safetensors file: {_line(error)}") from None


def _read_pickle(path):
    path = _existing(path)
    torch = _torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes may raise anything
        raise InputError(
            f"{path} is damaged, or holds objects other than tensors, which are not loaded because they may run code: "
            f"{_line(error)}; save model.state_dict() alone, preferably as .safetensors"
        ) from None


def _torch(path):
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: {', '.join(TORCH)} files need PyTorch; install torch, or a .safetensors file"
        ) from None
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 6):  # CVE-2025-32434: a file could make the restricted reader run code
        raise InputError(f"{path}: PyTorch {torch.__version__} cannot read such files safely; install torch>=2.6")
    return torch


def _existing(path):
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    return path


def _save(path, leaves, metadata):
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    with _replacing(path) as partial:
        save_file(arrays, partial, metadata)


@contextmanager
def _replacing(path):
    """Yield the name of a temporary file, which replaces `path` at the end, or is removed if writing fails."""
    if not path.parent.is_dir():
        raise InputError(f"weights file {path}: the folder {path.parent} does not exist; create it first")
    try:
        with replacing(path) as partial:
            yield partial
    except (SafetensorError, RuntimeError) as error:  # a full disk, a folder without write permission
        raise InputError(f"weights file {path} cannot be written: {_line(error)}") from None


def _line(error):
    """Return the first sentence of an error."""
    return first_line(error).partition(". ")[0].rstrip(".")
