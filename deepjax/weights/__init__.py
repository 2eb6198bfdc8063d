"""Weights in files: PyTorch's layout and ours, and the Hugging Face hub."""

from deepjax.weights.files import load_variables, save_variables
from deepjax.weights.hub import load_pretrained
from deepjax.weights.pretrained import Preprocessing, Pretrained, load_file, save_pretrained
from deepjax.weights.pytorch import from_torch, to_torch

__all__ = [
    "Preprocessing",
    "Pretrained",
    "from_torch",
    "load_file",
    "load_pretrained",
    "load_variables",
    "save_pretrained",
    "save_variables",
    "to_torch",
]
