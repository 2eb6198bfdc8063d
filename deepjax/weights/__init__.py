"""Files of weights, in PyTorch's layout and in ours, and the Hugging Face hub."""

from deepjax.weights.bundle import Pretrained, load_file, save_pretrained
from deepjax.weights.files import load_variables, save_variables
from deepjax.weights.hub import load_pretrained
from deepjax.weights.naming import is_path, kind_of
from deepjax.weights.pytorch import from_torch, to_torch
from deepjax.zoo.cards import Preprocessing

__all__ = [
    "Preprocessing",
    "Pretrained",
    "from_torch",
    "is_path",
    "kind_of",
    "load_file",
    "load_pretrained",
    "load_variables",
    "save_pretrained",
    "save_variables",
    "to_torch",
]
