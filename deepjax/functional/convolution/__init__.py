"""Convolutions of x [*batch, *spatial, features], fast inside a scan on every platform.

`functions.py` and `composed.py` hold the public functions, `form.py` their checks, and `maps.py` the one door through
which all of them go, with the table of implementations behind it: `backend.py`, `canonical.py` and `taps.py`.
"""

from deepjax.functional.convolution.composed import depthwise_conv, factorized_conv, separable_conv
from deepjax.functional.convolution.functions import conv, conv_transpose

__all__ = ["conv", "conv_transpose", "depthwise_conv", "factorized_conv", "separable_conv"]
