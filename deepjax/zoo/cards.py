"""What is published about a network's trained weights. Each family's file lists its networks' cards in `CARDS`."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input. The input is (pixel / 255 - mean) / std, per channel."""

    resize: int  # pixels of the shorter side, before the crop
    crop: int  # height and width of the center crop, in pixels
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"  # or "bicubic"; with antialiasing, as Pillow does it


IMAGENET = Preprocessing(256, 224)  # of most weights that torchvision calls IMAGENET1K_V1
IMAGENET_V2 = Preprocessing(232, 224)  # of most weights that torchvision calls IMAGENET1K_V2
HALF = (0.5, 0.5, 0.5)  # colors in [-1, 1]; torchvision's GoogLeNet and Inception v3 convert to this range internally


@dataclass(frozen=True)
class HubFile:
    """A file of trained weights on the Hugging Face hub, under PyTorch's names."""

    repository: str
    preprocessing: Preprocessing = IMAGENET
    renamed: Mapping[str, str] = field(default_factory=dict)  # {prefix of a name in the file: torchvision's prefix}
    absent: tuple[str, ...] = ()  # prefixes of layers that the file may lack, because inference does not use them
    file: str = "model.safetensors"


@dataclass(frozen=True)
class Card:
    """The published weights of one network. A network without published weights has no card."""

    preprocessing: Preprocessing = IMAGENET  # of torchvision's IMAGENET1K_V1 weights
    hub: Mapping[str, HubFile] = field(default_factory=dict)  # {tag: file}; tags are timm's


def timm(network, *, v1=IMAGENET, v2=None, **fields) -> Card:
    """Return the card of a network whose torchvision weights timm's hub repositories hold.

    Args:
      network: timm's name, which is torchvision's.
      v1: preprocessing of IMAGENET1K_V1, which timm tags tv_in1k.
      v2: preprocessing of IMAGENET1K_V2, which timm tags tv2_in1k. None: timm does not have it.
      **fields: other fields of `HubFile`.

    >>> sorted(timm("resnet50", v2=IMAGENET_V2).hub)
    ['tv2_in1k', 'tv_in1k']
    """
    tags = {"tv_in1k": v1} | ({"tv2_in1k": v2} if v2 else {})
    return Card(v1, {tag: HubFile(f"timm/{network}.{tag}", steps, **fields) for tag, steps in tags.items()})
