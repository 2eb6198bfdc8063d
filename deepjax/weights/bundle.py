"""A network with its weights and what is needed to use them, in one file."""

from dataclasses import asdict, dataclass
from typing import Any

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.weights.files import is_ours, load_variables, read_state_dict, save_variables
from deepjax.weights.pytorch import fit, from_torch
from deepjax.zoo.cards import Preprocessing


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
      path: a .safetensors, .pth or .pt file, see `files.read_state_dict`.
      network: the network's name. None: the name that the file records; only files in our layout record it.
      num_classes: number of logits. None: as many as the file has, or the network's usual number.
      reset_head: as in `load_pretrained`.
      key: as in `from_torch`.
      **options: options of the network. They override those that the file records.

    Raises:
      InputError: a file that cannot be read, or is of another network.
    """
    if not is_ours(path):
        if network is None:
            raise InputError(
                f"{path}: the network is unknown, because files in PyTorch's layout do not record it; name the network"
            )
        state_dict = read_state_dict(path)
        if num_classes is None and not reset_head:
            num_classes = logits_of(network, state_dict)
        made = zoo.create(network, options, num_classes=num_classes)
        variables = from_torch(made, state_dict, reset_head=reset_head, key=key)
        return Pretrained(made, variables, None, None, {"network": network, "options": options, "file": str(path)})
    variables, metadata = load_variables(path)
    _check_metadata(path, metadata)
    name = metadata.get("network")
    if name not in zoo.MODELS or network not in (None, name):
        raise InputError(
            f"{path} is of the network {name!r}, {'which is unknown' if network is None else f'not {network!r}'}"
        )
    options = (metadata.get("options") or {}) | options
    made = zoo.create(name, options, num_classes=num_classes or metadata.get("num_classes"))
    if metadata.get("input"):  # a stem of gray images and a head of flattened maps depend on it
        made = made.clone(usual_input=tuple(metadata["input"]))
    classes = metadata.get("classes")
    return Pretrained(
        made,
        fit(made, variables, reset_head=reset_head, key=key),
        _preprocessing(path, metadata.get("preprocessing")),
        tuple(classes) if classes and not reset_head else None,
        {"network": name, "options": options, "file": str(path)},
    )


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
    if f"{layer}.weight" not in state_dict:
        raise InputError(f"weights lack {layer}.weight, the last layer of {network}; are they of another network?")
    return len(state_dict[f"{layer}.weight"])


def _check_metadata(path, metadata):
    """Raise InputError for metadata that `save_pretrained` does not write."""
    kinds = {"network": str, "options": dict, "num_classes": int, "input": list, "classes": list, "preprocessing": dict}
    for name, kind in kinds.items():
        if not isinstance(metadata.get(name), kind | None):
            raise InputError(
                f"{path} records {name} {metadata[name]!r}, which is not of type {kind.__name__}; write the file again"
            )


def _preprocessing(path, recorded: Any) -> Preprocessing | None:
    """Return the Preprocessing in a file's metadata."""
    try:
        fields: Any = {
            name: tuple(value) if isinstance(value, list) else value for name, value in (recorded or {}).items()
        }
        return Preprocessing(**fields) if fields else None
    except (TypeError, AttributeError):
        raise InputError(
            f"{path} records the preprocessing {recorded!r}; it must be like {asdict(Preprocessing(256, 224))}"
        ) from None
