"""Transformations of a trained network: fold its batch norms, compare it with another."""

from deepjax.transforms.compare import Comparison, compare, compare_with_torch
from deepjax.transforms.fold import Folded, Folding, fold_batch_norm

__all__ = ["Comparison", "Folded", "Folding", "compare", "compare_with_torch", "fold_batch_norm"]
