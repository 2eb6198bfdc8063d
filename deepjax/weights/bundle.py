"""A network with its weights and what is needed to use them, in one file."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.foreign import check_finite, reading
from deepjax.weights.files import existing, is_ours, load_variables, read_state_dict, save_variables
from deepjax.weights.pytorch import fit, from_torch
from deepjax.zoo.cards import Preprocessing

LARGEST = 100_000  # pixels of a side, or classes; more is damage, and would not fit in memory


@dataclass(frozen=True)
class Pretrained:
    """A network with trained weights, to be applied as `network.apply(variables, x, train=False)`."""

    network: Any  # zoo.network.Network
    variables: Any
    preprocessing: Preprocessing | None  # None: unknown
    classes: tuple[str, ...] | None  # names of the logits, in order; None: unknown
    source: dict[str, Any]  # network and its options; file; from the hub also repository, revision (a commit), sha256


def load_file(path, network=None, *, num_classes=None, reset_head=False, key=None, **options) -> Pretrained:
    """Load a network and its weights from a file, in our layout or in PyTorch's.

    Args:
      path: a .safetensors file, or a pickle of PyTorch (.pth, .pt, .bin, .ckpt, .tar), see `files.read_state_dict`.
      network: the network's name. None: the name that the file records; only files in our layout record it.
      num_classes: number of logits. None: as many as the file has, or the network's usual number.
      reset_head: as in `load_pretrained`.
      key: as in `from_torch`.
      **options: options of the network. They override those that the file records.

    Raises:
      InputError: a file that cannot be read, or is of another network.
    """
    if is_ours(path):
        return _load_ours(path, network, num_classes, reset_head, key, options)
    existing(path)
    if network is None:
        raise InputError(
            f"{path}: the network is unknown, because files in PyTorch's layout do not record it; name the network, as "
            f"in deepjax predict resnet18 IMAGE --weights {path}"
        )
    state_dict = read_state_dict(path)
    if num_classes is None and not reset_head:
        num_classes = logits_of(network, state_dict)
    made = zoo.create(network, options, num_classes=num_classes)
    variables = from_torch(made, state_dict, reset_head=reset_head, key=key)
    return Pretrained(made, variables, None, None, {"network": network, "options": options, "file": str(path)})


def _load_ours(path, network, num_classes, reset_head, key, options) -> Pretrained:
    """Load a file in our layout. Args and errors as `load_file`."""
    variables, metadata = load_variables(path)
    _check_metadata(path, metadata)
    name, logits = metadata.get("network"), metadata.get("num_classes")
    if name not in zoo.MODELS or network not in (None, name):
        raise InputError(
            f"{path} is of the network {name!r}, {'which is unknown' if network is None else f'not {network!r}'}"
        )
    options = (metadata.get("options") or {}) | options
    recorded = f"{path} records {name} with options {_short(options)} and input {metadata.get('input')}"
    with reading(f"{recorded}, which cannot be made", "write the file again"):  # Flax raises anything for odd values
        made = zoo.create(name, options, num_classes=num_classes or logits)
        if metadata.get("input"):  # a stem of gray images and a head of flattened maps depend on it
            made = made.clone(usual_input=tuple(metadata["input"]))
        fitted = fit(made, variables, reset_head=reset_head, key=key)
    check_finite(flatten_dict(fitted, sep="/"), f"{path}:")
    preprocessing = _preprocessing(path, metadata.get("preprocessing"), made.usual_input[-1])
    classes = metadata.get("classes")
    if classes and logits and len(classes) != logits:
        raise InputError(f"{path} records {len(classes)} names of classes for {logits} logits; write the file again")
    source = {"network": name, "options": options, "file": str(path)}
    return Pretrained(made, fitted, preprocessing, tuple(classes) if classes and not reset_head else None, source)


def save_pretrained(path, pretrained):
    """Write a file in our layout, from which `load_pretrained` and `load_file` restore all of it.

    Raise InputError for a path that does not end in .safetensors, or options that JSON cannot hold.
    """
    preprocessing, classes = pretrained.preprocessing, pretrained.classes
    metadata = {
        "network": pretrained.source["network"],
        "options": pretrained.source["options"],
        "num_classes": pretrained.network.num_classes,
        "input": list(pretrained.network.usual_input),
        "preprocessing": asdict(preprocessing) if preprocessing else None,
        "classes": list(classes) if classes else None,
    }
    save_variables(path, pretrained.variables, metadata)


def logits_of(network, state_dict) -> int:
    """Return the number of logits in a PyTorch state dict of a network. Raise InputError for another network's."""
    head = zoo.create(network).torch_names()["head"]
    layer = head if isinstance(head, str) else head[0]
    shape = np.shape(state_dict.get(f"{layer}.weight"))
    if not shape or not shape[0]:
        raise InputError(f"weights lack {layer}.weight, the last layer of {network}; are they of another network?")
    return shape[0]


def _check_metadata(path, metadata):
    """Raise InputError for metadata that `save_pretrained` does not write."""
    kinds = {"network": str, "options": dict, "num_classes": int, "input": list, "classes": list, "preprocessing": dict}
    for name, kind in kinds.items():
        if not isinstance(metadata.get(name), kind | None):
            raise InputError(
                f"{path} records {name} {_short(metadata[name])}, which is not of type {kind.__name__}; write the file "
                f"again"
            )
    counts = [*(metadata.get("input") or []), metadata.get("num_classes") or 1]
    names = metadata.get("classes") or []
    if not all(type(count) is int and 0 < count <= LARGEST for count in counts) or metadata.get("num_classes") == 0:
        raise InputError(
            f"{path} records num_classes {metadata.get('num_classes')} and input {_short(metadata.get('input'))}; "
            f"these must be whole numbers from 1 to {LARGEST:,}; write the file again"
        )
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} records classes {_short(names)}, which are not all names; write the file again")


def _preprocessing(path, recorded: Any, channels) -> Preprocessing | None:
    """Return the Preprocessing in a file's metadata. Raise InputError unless it is one for images of these channels."""
    if not recorded:
        return None
    like = asdict(Preprocessing(256, 224))
    with reading(f"{path} records the preprocessing {_short(recorded)}", f"it must be like {like}"):
        fields: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()}
        found = Preprocessing(**fields)
        if not all(type(size) is int and 0 < size <= LARGEST for size in (found.resize, found.crop)):
            raise ValueError("sizes must be whole numbers of pixels")
        if found.resize < found.crop or found.interpolation not in ("bilinear", "bicubic"):
            raise ValueError("resize must not be below crop, and interpolation bilinear or bicubic")
        with np.errstate(over="ignore"):  # refused below
            mean, std = np.asarray(found.mean, np.float32), np.asarray(found.std, np.float32)
        if not (mean.shape == std.shape == (channels,) and np.isfinite(mean).all() and np.isfinite(std).all()):
            raise ValueError(f"mean and std must be {channels} finite numbers each")
        if std.min() <= 0:
            raise ValueError("std must be above 0")
    return found


def _short(recorded):
    """Return what a file records, in at most 100 characters."""
    text = repr(recorded)
    return text if len(text) <= 100 else f"{text[:97]}..."
