"""What can be done to a trained model's weights."""

from deepjax.weights.fold import Folded, Folding, fold_batch_norm

__all__ = ["Folded", "Folding", "fold_batch_norm"]
