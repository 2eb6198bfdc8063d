"""Convolutions of x [*batch, *spatial, features], fast inside a scan on every platform.

`functions.py` and `composed.py` hold the public functions, and `form.py` their checks. All functions call `maps.py`,
which has the table of the implementations in `backend.py`, `canonical.py`, `grouped.py` and `taps.py`.
"""

from deepjax.functional.convolution.composed import depthwise_conv, factorized_conv, separable_conv
from deepjax.functional.convolution.functions import conv, conv_transpose

__all__ = ["conv", "conv_transpose", "depthwise_conv", "factorized_conv", "separable_conv"]
