"""Weights in files: ours, and PyTorch's without running what may hide in a pickle.

Ours are .safetensors files: each variable under its path, such as params/stem_conv/kernel, and what else one has to
know (which network, with which options, for which classes) as JSON in the file's metadata.
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
ENTRIES = ("state_dict", "model")  # where a checkpoint of a training script often has its state dict


def save_variables(path, variables, metadata: Mapping[str, Any] | None = None):
    """Write a network's variables and what belongs to them; whole, or not at all.

    Args:
      path: ends in .safetensors.
      variables: {"params": ..., "batch_stats": ...}, any tree of arrays.
      metadata: what JSON can hold; `save_pretrained` writes what `load_pretrained` needs.

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
    """(variables, metadata) of a file of `save_variables`. Raises InputError for any other file."""
    leaves, metadata = _read_safetensors(path)
    if metadata is None:
        raise InputError(f"{path} is not in deepjax's layout; if it has PyTorch's names, use from_torch or convert it")
    return unflatten_dict(leaves, sep="/"), metadata


def is_ours(path):
    """Whether a file is one of `save_variables`. Raises InputError for one that cannot be read."""
    return Path(path).suffix == ".safetensors" and _read_safetensors(path, names_only=True)[1] is not None


def save_state_dict(path, state_dict):
    """Write arrays under PyTorch's names. Raises InputError for endings other than .safetensors, .pth and .pt.

    The latter two need PyTorch.
    """
    path = check_suffix(path, (".safetensors", *TORCH))
    if path.suffix == ".safetensors":
        _save(path, state_dict, {"format": "pt"})
        return
    torch = _torch(path)
    with _replacing(path) as partial:
        torch.save({name: torch.tensor(value) for name, value in state_dict.items()}, partial)


def read_state_dict(path) -> dict[str, Any]:
    """{PyTorch's name: array or tensor} of a .safetensors, .pth or .pt file.

    Checkpoints that hold a state dict in an entry `state_dict` or `model` are unwrapped. Of a .pth or .pt file, which
    is a pickle, only tensors and plain containers are read, by PyTorch's own restricted reader.

    Raises:
      InputError: no such file, another ending, a file that is damaged or holds something else; PyTorch is missing.
    """
    path = check_suffix(path, (".safetensors", *TORCH))
    if path.suffix != ".safetensors":
        return unwrap(_read_pickle(path), path)
    leaves, metadata = _read_safetensors(path)
    if metadata is not None:
        raise InputError(f"{path} has deepjax's layout, not PyTorch's; read it with load_variables")
    return unwrap(leaves, path)


def unwrap(found, what) -> dict[str, Any]:
    """The state dict in what a checkpoint holds, without DataParallel's `module.`. InputError where there is none."""
    for entry in ENTRIES:
        if isinstance(found, Mapping) and isinstance(found.get(entry), Mapping):
            found = found[entry]
    if not isinstance(found, Mapping):
        raise InputError(f"{what} holds a {type(found).__name__}, not a state dict; save model.state_dict()")
    odd = [str(name) for name, value in found.items() if not (isinstance(name, str) and hasattr(value, "shape"))]
    if odd:
        raise InputError(
            f"{what} holds entries that are no tensors ({', '.join(odd[:3])}); a state dict is needed, or a dict that "
            f"has one as its entry {' or '.join(ENTRIES)}"
        )
    prefix = "module." if found and all(name.startswith("module.") for name in found) else ""
    return {name.removeprefix(prefix): value for name, value in found.items()}


def check_suffix(path, suffixes):
    """The Path. Raises InputError unless it ends in one of the suffixes."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise InputError(f"weights file {path} must end in {', '.join(suffixes)}")
    return path


def _read_safetensors(path, names_only=False) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """(arrays, our metadata or None)."""
    path = _existing(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = (file.metadata() or {}).get(MARK)
            arrays = {} if names_only else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, None if metadata is None else dict(json.loads(metadata))
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged, or no .safetensors file: {_line(error)}") from None


def _read_pickle(path):
    path = _existing(path)
    torch = _torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes lead to
        raise InputError(
            f"{path} is damaged, or holds more than tensors, which is not run: {_line(error)}; save model.state_dict() "
            f"alone, best as .safetensors"
        ) from None


def _torch(path):
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: {', '.join(TORCH)} files need PyTorch; install torch, or convert to .safetensors where it is"
        ) from None
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 6):  # CVE-2025-32434: the restricted reader could be made to run code
        raise InputError(f"{path}: PyTorch {torch.__version__} does not read such files safely; install torch>=2.6")
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
    """The name of a file to write, which then takes the place of `path`; removed if writing fails."""
    if not path.parent.is_dir():
        raise InputError(f"weights file {path}: the folder {path.parent} does not exist; make it first")
    try:
        with replacing(path) as partial:
            yield partial
    except (SafetensorError, RuntimeError) as error:  # a full disk, a folder that may not be written to
        raise InputError(f"weights file {path} cannot be written: {_line(error)}") from None


def _line(error):
    """Return the first sentence of an error."""
    return first_line(error).partition(". ")[0].rstrip(".")
