"""How images become the input of torchvision's pretrained networks, where a weights file does not say."""

from dataclasses import replace

from deepjax import zoo
from deepjax.errors import InputError
from deepjax.weights import Preprocessing
from deepjax.weights.pretrained import PREPROCESSING
from deepjax.zoo.network import Network

# Of EfficientNet's weights IMAGENET1K_V1: pixels of the shorter side, and of the crop.
EFFICIENTNET = {
    "b0": (256, 224), "b1": (256, 240), "b2": (288, 288), "b3": (320, 300),
    "b4": (384, 380), "b5": (456, 456), "b6": (528, 528), "b7": (600, 600),
}  # fmt: skip
USUAL = PREPROCESSING["imagenet"]
RECIPES = {
    "googlenet": PREPROCESSING["googlenet"],
    "inception_v3": PREPROCESSING["inception"],
    "resnext101_64x4d": PREPROCESSING["imagenet_v2"],
    **{
        f"efficientnet_{size}": replace(USUAL, resize=resize, crop=crop, interpolation="bicubic")
        for size, (resize, crop) in EFFICIENTNET.items()
    },
}


def recipe(network) -> Preprocessing:
    """What torchvision's IMAGENET1K_V1 weights of a network expect; most expect the same.

    GoogLeNet and Inception v3 have colours in [-1, 1] here: torchvision's networks turn ImageNet's moments into these
    by themselves, ours leave images as they are.

    Raises InputError for a network that neither torchvision has, nor borrows layers from one of its.
    """
    made = zoo.create(network)
    if type(made).torch_names is Network.torch_names and not made.borrowed:
        raise InputError(
            f"weights of {network} do not say how images are prepared for them; export them from a run, or convert "
            f"them with --preprocessing"
        )
    return RECIPES.get(network, USUAL)
