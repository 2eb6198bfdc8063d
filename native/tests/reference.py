"""The three maps in float64 NumPy: a sum over the taps of the window, for any number of spatial axes and groups."""

import itertools
from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """What deepjax_native reads of a spatial axis."""

    size: int
    window: int
    stride: int
    low: int
    high: int
    dilation: int

    @property
    def out(self):
        """The size of y."""
        return (self.low + self.size + self.high - (self.window - 1) * self.dilation - 1) // self.stride + 1


class Form(NamedTuple):
    """What deepjax_native reads of a convolution."""

    axes: tuple[Axis, ...]
    groups: int


def _taps(form):
    """Yield the index of each tap in the kernel and the slices that it reads from the padded x."""
    for tap in itertools.product(*(range(a.window) for a in form.axes)):
        slices = [
            slice(t * a.dilation, t * a.dilation + (a.out - 1) * a.stride + 1, a.stride) for t, a in zip(tap, form.axes)
        ]
        yield tap, (slice(None), *slices)


def _padded(x, form):
    return np.pad(x.astype(np.float64), ((0, 0), *((a.low, a.high) for a in form.axes), (0, 0)))


def _grouped(a, form):
    return a.astype(np.float64).reshape(*a.shape[:-1], form.groups, -1)


def forward(x, kernel, form):
    """Compute y from x and the kernel."""
    padded, kernel = _grouped(_padded(x, form), form), _grouped(kernel, form)
    y = 0
    for tap, pixels in _taps(form):
        y = y + np.einsum("...gi,igo->...go", padded[pixels], kernel[tap])
    return y.reshape(*y.shape[:-2], -1)


def input_gradient(dy, kernel, form):
    """Compute the gradient in x: each tap adds to the pixels that it read."""
    dy, kernel = _grouped(dy, form), _grouped(kernel, form)
    size = [a.low + a.size + a.high for a in form.axes]
    dx = np.zeros((len(dy), *size, form.groups, kernel.shape[-3]))
    for tap, pixels in _taps(form):
        dx[pixels] += np.einsum("...go,igo->...gi", dy, kernel[tap])
    inner = tuple(slice(a.low, a.low + a.size) for a in form.axes)
    dx = dx[(slice(None), *inner)]
    return dx.reshape(*dx.shape[:-2], -1)


def kernel_gradient(x, dy, form):
    """Compute the gradient in the kernel: a tap's is the product of what it read and the gradient in what it made."""
    padded, dy = _grouped(_padded(x, form), form), _grouped(dy, form)
    dkernel = np.zeros((*(a.window for a in form.axes), padded.shape[-1], *dy.shape[-2:]))
    dy = dy.reshape(-1, *dy.shape[-2:])
    for tap, pixels in _taps(form):
        dkernel[tap] = np.einsum("ngi,ngo->igo", padded[pixels].reshape(-1, *padded.shape[-2:]), dy)
    return dkernel.reshape(*dkernel.shape[:-2], -1)
