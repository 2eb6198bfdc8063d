"""What a word means where weights are expected: one rule for predict, export, compare, eval and --pretrained."""

from pathlib import Path
from typing import Literal

from deepjax import zoo
from deepjax.errors import InputError, choices
from deepjax.weights.files import TORCH
from deepjax.weights.hub import PRETRAINED

SUFFIXES = (".safetensors", *TORCH)


def is_network(word: str) -> bool:
    """Return whether a word is the name of a network of the zoo, or of weights on the hub."""
    return word in zoo.MODELS or word in PRETRAINED


def kind_of(word: str) -> Literal["network", "file", "run"]:
    """Return what a word names: a network of the zoo or the hub, a file of weights, or the folder of a run.

    A network's name always means the network, also where a folder or a file has this name. Write ./resnet18 for those.

    Raise InputError for a word that is none of the three.
    """
    if is_network(word):
        return "network"
    path = Path(word).expanduser()
    if path.suffix in SUFFIXES and not path.is_dir():
        return "file"
    if path.is_dir():
        return "run"
    if "/" in word or path.exists():
        raise InputError(f"{word}: no folder of a run, and no file that ends in {', '.join(SUFFIXES)}; check the path")
    hint = choices(word, [*zoo.MODELS, *PRETRAINED])
    raise InputError(f"{word} is no folder of a run, no file of weights and no network; {hint}")
