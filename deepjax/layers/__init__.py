"""Linen modules around the functions of `deepjax.functional`. They hold names, shapes and state, and no mathematics.

`train` is an argument of the call without a default. True computes batch statistics and applies dropout. `mask` (bool
[batch], or None) is False for the rows of a batch that are padding, which must not enter the batch statistics.
"""

from deepjax.layers.activations import Maxout, PReLU
from deepjax.layers.convolution import Conv, ConvTranspose
from deepjax.layers.dense import Dense
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
from deepjax.layers.radial_basis import RadialBasis
from deepjax.layers.recurrent import LSTM

__all__ = [
    "LSTM",
    "AlphaDropout",
    "BatchNorm",
    "BatchRenorm",
    "Conv",
    "ConvTranspose",
    "Dense",
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
    "RadialBasis",
    "ShakeShake",
    "SpatialDropout",
    "WeightNorm",
]
