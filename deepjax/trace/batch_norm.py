"""Batch normalization, recognized in one place: deepjax's kinds and Flax's."""

from typing import Any

import flax.linen as nn

from deepjax.layers.normalization import BatchNormBase


def is_batch_norm(module: Any) -> bool:
    """Return whether a module is a batch normalization: one of `deepjax.layers`, Flax's, or a subclass of these.

    >>> from deepjax import layers
    >>> is_batch_norm(layers.GhostBatchNorm()), is_batch_norm(nn.BatchNorm()), is_batch_norm(nn.LayerNorm())
    (True, True, False)
    """
    return isinstance(module, BatchNormBase | nn.BatchNorm)
