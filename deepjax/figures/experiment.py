"""What all experiments have in common."""

from typing import Any, NamedTuple

import numpy as np


class Settings(NamedTuple):
    """What an experiment is computed from."""

    seed: int = 0
    full: bool = False  # the lecture's own size instead of one for two CPU cores
    data_dir: str = ""  # folder of the data set, for experiments on one that is not part of the package
    model: str = ""  # the network to look at: a name, a file of weights, or the folder of a run
    weights: str = ""  # file with its weights, if `model` is a name
    image: str = ""  # file of the image to look at


class Claim(NamedTuple):
    """What the numbers of an experiment are to show."""

    text: str  # with the measured values and the tolerance
    holds: bool


def plain(array) -> Any:
    """Return an array as nested tuples of Python numbers, for a dataclass of numbers."""
    return tuple(map(plain, array)) if np.ndim(array) > 1 else tuple(np.asarray(array).tolist())
