"""Files of weights, in our layout and in PyTorch's. Reading one never runs code that a pickle may contain.

Our files are .safetensors. Each variable is stored under its path, such as params/stem_conv/kernel. The file's metadata
holds the network's name, its options and its classes as JSON.
"""

import argparse
import json
import re
import warnings
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
from deepjax.foreign import reading
from deepjax.weights.state_dict import unwrap

TORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # PyTorch's pickles; .ckpt is Lightning's, .tar that of .pth.tar
SUFFIXES = (".safetensors", *TORCH)
MARK = "deepjax"  # the key of our JSON in a file's metadata
REFUSED = re.compile(r"GLOBAL ([\w.]+)|but got <class '([\w.]+)'>")  # what PyTorch's restricted reader refuses


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
    with reading(f"{path} has names that are not paths of variables", "write the file again"):
        return unflatten_dict(leaves, sep="/"), metadata


def is_ours(path):
    """Return whether `save_variables` wrote a file. Raise InputError for a file that cannot be read."""
    return Path(path).suffix == ".safetensors" and _read_safetensors(path, names_only=True)[1] is not None


def save_state_dict(path, state_dict):
    """Write {PyTorch's name: array} to a .safetensors file, or as a pickle to one of TORCH, which needs PyTorch.

    Raise InputError for another ending.
    """
    path = check_suffix(path, SUFFIXES)
    if path.suffix == ".safetensors":
        _save(path, state_dict, {"format": "pt"})
        return
    torch = _torch(path)
    with _replacing(path) as partial:
        torch.save({name: torch.tensor(value) for name, value in state_dict.items()}, partial)


def read_state_dict(path) -> dict[str, Any]:
    """Return {PyTorch's name: array} of a .safetensors file, or of a pickle with one of the endings TORCH.

    PyTorch's restricted reader loads only the tensors and plain containers of a pickle. The state dict is unwrapped,
    see `state_dict.unwrap`.

    Raises:
      InputError: no such file, another ending, a file that is damaged or holds something else, PyTorch is missing.
    """
    path = check_suffix(path, SUFFIXES)
    if path.suffix != ".safetensors":
        return unwrap(_read_pickle(path), path)
    leaves, metadata = _read_safetensors(path)
    if metadata is not None:
        raise InputError(f"{path} has deepjax's layout, not PyTorch's; read it with load_variables")
    return unwrap(leaves, path)


def check_suffix(path, suffixes):
    """Return the Path. Raise InputError unless it ends in one of the suffixes."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise InputError(f"weights file {path} must end in {', '.join(suffixes)}")
    return path


def _read_safetensors(path, names_only=False) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Return (arrays, our metadata). The metadata is None in a file that is not in our layout."""
    path = existing(path)
    damaged = reading(f"{path} is damaged, or not a .safetensors file", "fetch or write it again")
    with damaged, safe_open(path, framework="np") as file:
        metadata, names = (file.metadata() or {}).get(MARK), list(file.keys())
        metadata = None if metadata is None else dict(json.loads(metadata))
        arrays = {} if names_only else {name: _tensor(file, name, path) for name in names}
    return arrays, metadata


def _tensor(file, name, path):
    """Return one array of an opened .safetensors file. NumPy has no 8-bit floating point numbers."""
    form = file.get_slice(name).get_dtype()
    with reading(f"{path}: {name} of type {form} cannot be read", "store float32, float16 or bfloat16"):
        return file.get_tensor(name)


def _read_pickle(path):
    path = existing(path)
    torch = _torch(path)
    try:
        # PyTorch warns of tensors in beta. Training scripts store their options as a Namespace, which has no code.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes may raise anything
        raise InputError(
            f"{path} {_problem(error)}; only tensors and plain containers are loaded, because other objects may run "
            f"code; save model.state_dict() alone, preferably as .safetensors"
        ) from None


def _problem(error):
    """Return what a pickle has, of which PyTorch's restricted reader says much."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    if refused := REFUSED.search(text):
        return f"holds an object of {refused[1] or refused[2]}"
    return f"is damaged, or was not written by torch.save ({_line(ValueError(text))})"


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


def existing(path):
    """Return the Path of a file. Raise InputError if there is no such file."""
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
