"""The state dict in a checkpoint: found among other entries, without the prefixes of wrappers, as NumPy arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepjax.errors import InputError
from deepjax.foreign import reading

# Names under which training scripts store a state dict. As in timm, averaged weights come first: they are evaluated.
ENTRIES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model", "network", "net",
)  # fmt: skip
DEPTH = 5  # of entries inside entries
# Prefixes of DataParallel and AveragedModel, of torch.compile, and the usual ones in a LightningModule.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")
COMPILED = "_orig_mod."  # also inside a name, where a part of the network was compiled
AVERAGED = "n_averaged"  # the count that an AveragedModel adds to a state dict


def unwrap(found, what) -> dict[str, np.ndarray]:
    """Return the state dict in a checkpoint, as NumPy arrays, under the names of the network itself.

    The state dict may be the checkpoint, or one of its ENTRIES, or inside several of them. If there are averaged
    weights and others, the averaged ones are returned. The state dict may come from a network that DataParallel,
    AveragedModel, torch.compile or a LightningModule has wrapped, or several of them. A LightningModule may have
    other tensors beside its `model`, such as the weights of a loss; these are left out.

    Args:
      found: the checkpoint.
      what: its name, for errors.

    Raises:
      InputError: the checkpoint has no state dict, or a tensor in it is not a plain array.

    >>> sorted(unwrap({"n_averaged": np.zeros(()), "module._orig_mod.fc.bias": np.zeros(3)}, "checkpoint"))
    ['fc.bias']
    """
    if not isinstance(found, Mapping):
        raise InputError(f"{what} holds a {type(found).__name__}, not a state dict; save model.state_dict()")
    state_dict = _find(found, DEPTH)
    if state_dict is None:
        odd = [str(name)[:40] for name, value in found.items() if not _is_tensor(name, value)]
        raise InputError(
            f"{what} holds entries that are not tensors ({', '.join(odd[:3])}); give a state dict, or a dict whose "
            f"entry {', '.join(ENTRIES[:-1])} or {ENTRIES[-1]} is one"
        )
    arrays = {name: to_numpy(value, f"{what}: {name}") for name, value in state_dict.items()}
    return _without_wrappers(arrays, what)


def to_numpy(value, name) -> np.ndarray:
    """Return the NumPy array of an array or a PyTorch tensor. Float types that NumPy lacks become float32.

    Raise InputError, with `name`, for a tensor that is not a plain array: sparse, quantized, nested, or without data
    ("meta").
    """
    with reading(f"{name} is not a plain array", "store dense tensors of floating point numbers"):
        if not hasattr(value, "detach"):
            return np.asarray(value)
        value = value.detach().cpu()
        if value.is_floating_point() and value.dtype.itemsize < 4:
            value = value.float()
        return value.resolve_conj().resolve_neg().numpy()


def _is_tensor(name, value):
    return isinstance(name, str) and hasattr(value, "dtype")  # a nested tensor has no shape


def _find(found: Any, depth) -> Mapping[str, Any] | None:
    """Return the first state dict among a checkpoint and its ENTRIES. None: there is none, down to this depth."""
    if all(_is_tensor(name, value) for name, value in found.items()):
        return found
    entries = [found[entry] for entry in ENTRIES if isinstance(found.get(entry), Mapping) and found[entry]]
    inner = (_find(entry, depth - 1) for entry in entries if depth)
    return next((state_dict for state_dict in inner if state_dict is not None), None)


def _without_wrappers(arrays, what):
    while True:
        names = set(arrays) - {AVERAGED}
        prefix = next((p for p in WRAPPERS if _wraps(p, names)), None)
        if prefix is None:
            break
        arrays = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    renamed = {name.replace(COMPILED, ""): value for name, value in arrays.items()}
    if len(renamed) < len(arrays):
        raise InputError(f"{what} has several tensors of one name but for {COMPILED}; save one state dict")
    return renamed


def _wraps(prefix, names):
    """Return whether a prefix is a wrapper's: all names have it. Lightning's may be beside names of other tensors."""
    inside = {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    outside = {name.partition(".")[0] for name in names if not name.startswith(prefix)}
    return bool(inside) and (not outside or (prefix == "model." and not inside & outside))
