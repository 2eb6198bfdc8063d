"""Linen modules around the pure functions: they own names, shapes and state, and no formula.

`train` says whether statistics are taken from the batch, and whether dropout drops. `mask` (bool [batch], or None)
marks the rows that are examples: a batch padded to keep its shape must not let the padding into its statistics.
"""

from deepjax.layers.activations import Maxout, PReLU
from deepjax.layers.convolution import Conv, ConvTranspose
from deepjax.layers.dropout import AlphaDropout, DropConnectDense, Dropout, DropPath, ShakeShake, SpatialDropout
from deepjax.layers.normalization import (
    BatchNorm,
    BatchRenorm,
    GhostBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalResponseNorm,
    MovingAverageBatchNorm,
    WeightNorm,
)

__all__ = [
    "AlphaDropout",
    "BatchNorm",
    "BatchRenorm",
    "Conv",
    "ConvTranspose",
    "DropConnectDense",
    "DropPath",
    "Dropout",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LocalResponseNorm",
    "Maxout",
    "MovingAverageBatchNorm",
    "PReLU",
    "ShakeShake",
    "SpatialDropout",
    "WeightNorm",
]
