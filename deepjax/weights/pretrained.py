"""A network with its weights, and what one has to know to use them, in one file."""

from dataclasses import asdict, dataclass
from typing import Any

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.weights.files import is_ours, load_variables, read_state_dict, save_variables
from deepjax.weights.pytorch import fit, from_torch


@dataclass(frozen=True)
class Preprocessing:
    """How images become what a network was trained on. Its input is (pixel / 255 - mean) / std, by channel."""

    resize: int  # pixels of the shorter side, before the crop
    crop: int  # pixels of the sides of the square from the middle
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"  # or "bicubic"; with antialiasing, as Pillow does it


@dataclass(frozen=True)
class Pretrained:
    """What `load_pretrained` gives: `network.apply(variables, x, train=False)`."""

    network: Any  # zoo.network.Network
    variables: Any
    preprocessing: Preprocessing | None  # None: unknown
    classes: tuple[str, ...] | None  # names of the logits, in order; None: unknown
    source: dict[str, Any]  # network and its options; file; of the hub also repository, revision (a commit), sha256


# torchvision's recipes of evaluation. Its GoogLeNet and Inception v3 turn ImageNet's moments into (0.5, 0.5) inside.
HALF = (0.5, 0.5, 0.5)
PREPROCESSING = {
    "imagenet": Preprocessing(256, 224),
    "imagenet_v2": Preprocessing(232, 224),  # of weights called IMAGENET1K_V2
    "googlenet": Preprocessing(256, 224, HALF, HALF),
    "inception": Preprocessing(342, 299, HALF, HALF),
}


def load_file(path, network=None, *, num_classes=None, reset_head=False, key=None, **options) -> Pretrained:
    """A network and its weights from a file, in our layout or in PyTorch's.

    Args:
      path: .safetensors, .pth or .pt, see `files.read_state_dict`.
      network: its name; None: what the file says, which only one in our layout does.
      num_classes: logits; None: as many as the file says, or the network usually has.
      reset_head: as of `load_pretrained`.
      key: as of `from_torch`.
      **options: of the network, over those that the file says.

    Raises:
      InputError: a file that cannot be read, or is of another network.
    """
    if not is_ours(path):
        if network is None:
            raise InputError(
                f"{path} does not say which network it is of, as PyTorch's layout never does; name the network"
            )
        state_dict = read_state_dict(path)
        if num_classes is None and not reset_head:
            num_classes = logits_of(network, state_dict)
        made = zoo.create(network, num_classes=num_classes, **options)
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
    made = zoo.create(name, num_classes=num_classes or metadata.get("num_classes"), **options)
    if metadata.get("input"):  # what a stem of grey images, or a head of flattened maps, depends on
        made = made.clone(usual_input=tuple(metadata["input"]))
    classes = metadata.get("classes")
    return Pretrained(
        made,
        fit(made, variables, reset_head=reset_head, key=key),
        _recipe(path, metadata.get("preprocessing")),
        tuple(classes) if classes and not reset_head else None,
        {"network": name, "options": options, "file": str(path)},
    )


def logits_of(network, state_dict) -> int:
    """How many logits a PyTorch state dict has for the network of that name. InputError if it is of another."""
    head = zoo.create(network).torch_names()["head"]
    layer = head if isinstance(head, str) else head[0]
    if f"{layer}.weight" not in state_dict:
        raise InputError(f"weights lack {layer}.weight, the last layer of {network}; are they of another network?")
    return len(state_dict[f"{layer}.weight"])


def _check_metadata(path, metadata):
    """Raises InputError for what `save_pretrained` would not have written."""
    kinds = {"network": str, "options": dict, "num_classes": int, "input": list, "classes": list, "preprocessing": dict}
    for name, kind in kinds.items():
        if not isinstance(metadata.get(name), kind | None):
            raise InputError(f"{path} says {name} {metadata[name]!r}, which is no {kind.__name__}; write it anew")


def _recipe(path, noted: Any) -> Preprocessing | None:
    """The Preprocessing in a file's metadata."""
    try:
        fields: Any = {
            name: tuple(value) if isinstance(value, list) else value for name, value in (noted or {}).items()
        }
        return Preprocessing(**fields) if fields else None
    except (TypeError, AttributeError):
        raise InputError(
            f"{path} has a preprocessing {noted!r}; it must be like {asdict(Preprocessing(256, 224))}"
        ) from None


def save_pretrained(path, pretrained):
    """Write a file in our layout from which `load_pretrained` and `load_file` make it all again.

    Raises InputError for a path that does not end in .safetensors, or options that JSON cannot hold.
    """
    recipe, classes = pretrained.preprocessing, pretrained.classes
    metadata = {
        "network": pretrained.source["network"],
        "options": pretrained.source["options"],
        "num_classes": pretrained.network.num_classes,
        "input": list(pretrained.network.usual_input),
        "preprocessing": asdict(recipe) if recipe else None,
        "classes": list(classes) if classes else None,
    }
    save_variables(path, pretrained.variables, metadata)
