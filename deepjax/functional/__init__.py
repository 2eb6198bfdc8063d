"""Layers and losses as pure functions of arrays. Features are last; state comes in and goes out."""

from deepjax.functional.activations import relu
from deepjax.functional.convolution import conv
from deepjax.functional.losses import cross_entropy, smooth_labels
from deepjax.functional.normalization import Moments, batch_norm
from deepjax.functional.pooling import avg_pool, global_avg_pool, max_pool

__all__ = [
    "Moments",
    "avg_pool",
    "batch_norm",
    "conv",
    "cross_entropy",
    "global_avg_pool",
    "max_pool",
    "relu",
    "smooth_labels",
]
