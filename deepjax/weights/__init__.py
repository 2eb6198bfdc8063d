"""What can be done to a trained model's weights."""

from deepjax.weights.compare import Comparison, compare, compare_with_torch
from deepjax.weights.files import load_variables, save_variables
from deepjax.weights.fold import Folded, Folding, fold_batch_norm
from deepjax.weights.hub import load_pretrained
from deepjax.weights.pretrained import Preprocessing, Pretrained, load_file, save_pretrained
from deepjax.weights.pytorch import from_torch, to_torch

__all__ = [
    "Comparison",
    "Folded",
    "Folding",
    "Preprocessing",
    "Pretrained",
    "compare",
    "compare_with_torch",
    "fold_batch_norm",
    "from_torch",
    "load_file",
    "load_pretrained",
    "load_variables",
    "save_pretrained",
    "save_variables",
    "to_torch",
]
