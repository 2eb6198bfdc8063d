"""What a word means where weights are expected: one rule for predict, export, compare, eval and --pretrained."""

from pathlib import Path
from typing import Literal

from deepjax import zoo
from deepjax.errors import InputError, choices
from deepjax.weights.files import SUFFIXES
from deepjax.weights.hub import PRETRAINED


def is_network(word: str) -> bool:
    """Return whether a word is the name of a network of the zoo, or of weights on the hub."""
    return word in zoo.MODELS or word in PRETRAINED


def is_path(word: str) -> bool:
    """Return whether a word is a path, which need not exist: not a network's name, and not a misspelled one."""
    path = Path(word).expanduser()
    return word != "" and not is_network(word) and ("/" in word or path.suffix in SUFFIXES or path.exists())


def kind_of(word: str, argument: str = "") -> Literal["network", "file", "run"]:
    """Return what a word names: a network of the zoo or the hub, a file of weights, or the folder of a run.

    A network's name always means the network, also where a folder or a file has this name. Write ./resnet18 for those.

    Raise InputError for a word that is none of the three; its message begins with the name of the argument.
    """
    if is_network(word):
        return "network"
    path, argument = Path(word).expanduser(), argument and f"{argument} "
    if path.suffix in SUFFIXES and not path.is_dir():
        return "file"
    if path.is_dir():
        return "run"
    if "/" in word or path.exists():
        raise InputError(
            f"{argument}{word}: no folder of a run, and no file that ends in {', '.join(SUFFIXES)}; check the path"
        )
    hint = choices(word, [*zoo.MODELS, *PRETRAINED])
    raise InputError(f"{argument}{word} is no folder of a run, no file of weights and no network; {hint}")
