"""`deepjax convert`."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from deepjax.cli.terminal import parse
from deepjax.config import Options
from deepjax.errors import InputError
from deepjax.fields import option


@dataclass(frozen=True)
class Convert:
    """Options of `deepjax convert`."""

    network: tyro.conf.Positional[str]
    """A name that `deepjax models` lists, of a network that torchvision has too."""
    source: tyro.conf.Positional[Path]
    """The file: .safetensors (in either layout), or a pickle of PyTorch: .pth, .pt, .bin, .ckpt, .tar. If it is a
    checkpoint of training, its state dict is read: averaged weights first, without the names of wrappers."""
    destination: tyro.conf.Positional[Path]
    """The file to write: .safetensors; in PyTorch's layout also a pickle, such as .pth."""
    layout: Literal["other", "deepjax", "torch"] = "other"
    """Layout of the destination. other: the one that the source does not have."""
    options: Options = option({})
    """Options of the network: --options norm=batch."""
    num_classes: int | None = option(None, at_least=1)
    """Number of logits. Unset: the network's usual number."""
    reset_head: bool = False
    """Initialize the layers whose size is the number of classes from scratch. Needed if the number of classes differs
    from the source's."""
    seed: int = option(0, at_least=0, below=2**32)
    """Seed of the layers that are initialized from scratch."""
    preprocessing: str = ""
    """Preprocessing of images to record: that of a network (its IMAGENET1K_V1 weights in torchvision) or of weights,
    such as resnet50.tv2_in1k. Empty: what the source records, if anything."""


def convert(arguments):
    """Convert a file of weights from PyTorch's layout to deepjax's, or back."""
    options = parse(Convert, arguments, "deepjax convert", convert.__doc__)
    import jax

    from deepjax.weights import bundle, files, hub, pytorch

    layout = options.layout
    if layout == "other":
        layout = "torch" if files.is_ours(options.source) else "deepjax"
    files.check_suffix(options.destination, (".safetensors", *(files.TORCH if layout == "torch" else ())))
    if options.preprocessing and layout == "torch":
        raise InputError("--preprocessing: files in PyTorch's layout cannot store it; leave out this option")
    preprocessing = hub.preprocessing(options.preprocessing) if options.preprocessing else None
    found = bundle.load_file(
        options.source,
        options.network,
        num_classes=options.num_classes,
        reset_head=options.reset_head,
        key=jax.random.key(options.seed),
        **network_options(options.options),
    )
    if layout == "torch":
        files.save_state_dict(options.destination, pytorch.to_torch(found.network, found.variables))
    else:
        found = replace(found, preprocessing=preprocessing or found.preprocessing)
        bundle.save_pretrained(options.destination, found)
    print(f"{options.destination}: {options.network}, {found.network.num_classes} classes, {layout}'s layout")
    return 0


def network_options(options):
    """Return the options of a network that --options gives.

    Raise InputError for a name that is a parameter of the functions that load weights.
    """
    from deepjax import weights

    for function in (weights.load_file, weights.load_pretrained):
        for name in inspect.signature(function).parameters.keys() & options.keys():
            raise InputError(f"--options {name}={options[name]}: {name} is not an option of a network; leave it out")
    return options
