"""Normalization that does not depend on the batch: of each example, of a kernel, of the features of a pixel.

Sums are taken in at least float32, and the result has the dtype of the input. Batch norm and its variants are in
`batch_normalization`.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32, per_feature


def layer_norm(x, scale=None, bias=None, *, axes=1, epsilon=1e-5):
    """Normalize each example over its last axes (Ba et al. 2016, eq. 3):

        y = scale (x - mean) / sqrt(variance + epsilon) + bias.

    Args:
      x: [..., *normalized], with any number of axes before the normalized ones.
      scale, bias: [*normalized], or None to omit that step.
      axes: number of last axes that are normalized together; 1 means the features alone. PyTorch's `normalized_shape`
        is `x.shape[-axes:]`.
      epsilon: number added to the biased variance.

    Returns:
      y like x.

    Raises:
      InputError: axes below 1 or more than x has, a scale or bias of another shape, or x that is not floating point.

    >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
    >>> print(layer_norm(x, epsilon=0.0))
    [[-1.  1.]
     [-1.  1.]]
    """
    x = floating("layer_norm", x)
    if not isinstance(axes, int) or not 1 <= axes <= x.ndim:
        raise InputError(f"layer_norm: axes {axes!r} must be an int from 1 to the {x.ndim} axes of x {x.shape}")
    check_epsilon("layer_norm", epsilon)
    check_shapes("layer_norm", x, x.shape[-axes:], scale=scale, bias=bias)
    y = _standardize(at_least_float32(x), tuple(range(-axes, 0)), epsilon)
    return affine(y, scale, bias).astype(x.dtype)


def group_norm(x, scale=None, bias=None, *, groups, epsilon=1e-5):
    """Normalize each example over all pixels of each group of features (Wu & He 2018, eq. 7).

    The equation is that of `layer_norm`, with a mean and a variance per example and group, and a scale and a bias per
    feature. With `groups=1` it is the layer norm of convolutional networks.

    Args:
      x: [batch, *spatial, features], with any number of spatial axes. Use `jax.vmap` for more leading axes.
      scale, bias: [features], or None to omit that step.
      groups: number of equal groups of adjacent features.
      epsilon: number added to the biased variance.

    Returns:
      y like x.

    Raises:
      InputError: groups that do not divide the features, a scale or bias of another shape, or x that has no batch axis
        or is not floating point.

    >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
    >>> print(group_norm(x, groups=2, epsilon=0.0))
    [[-1.  1. -1.  1.]]
    """
    return _group_norm("group_norm", x, scale, bias, groups, epsilon)


def instance_norm(x, scale=None, bias=None, *, epsilon=1e-5):
    """Normalize each feature of each example over its pixels (Ulyanov et al. 2016, eq. 5).

    The equation is that of `layer_norm`, with a mean and a variance per example and feature.

    Args:
      x: [batch, *spatial, features], with at least two pixels.
      scale, bias: [features], or None to omit that step.
      epsilon: number added to the biased variance.

    Returns:
      y like x.

    Raises:
      InputError: fewer than two pixels, a scale or bias of another shape, or x that is not floating point.

    >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])  # one example of two pixels with two features
    >>> print(instance_norm(x, epsilon=0.0))
    [[[-1. -1.]
      [ 1.  1.]]]
    """
    if math.prod(jnp.shape(x)[1:-1]) < 2:
        raise InputError(
            f"instance_norm: x {jnp.shape(x)} must be [batch, *spatial, features] with at least two pixels; "
            "a single pixel is always normalized to 0"
        )
    return _group_norm("instance_norm", x, scale, bias, jnp.shape(x)[-1], epsilon)


def weight_norm(v, g):
    """Return w = g v / |v|, a kernel given by its direction v and its length g (Salimans & Kingma 2016, eq. 2).

    The gradients follow from that of w (eq. 3): dg = dw . v / |v| and dv = g / |v| dw - g dg / |v|^2 v, so dv is
    orthogonal to v.

    Args:
      v: kernel [..., features]. |v| is a norm over all axes but the last; where it is 0, w is NaN, as in PyTorch.
      g: [features].

    Returns:
      w like v.

    Raises:
      InputError: g that is not [features], or v that is not floating point.

    >>> print(weight_norm(jnp.array([[3.0], [4.0]]), jnp.array([10.0])))
    [[6.]
     [8.]]
    """
    v = floating("weight_norm", v, "v")
    if jnp.shape(g) != v.shape[-1:]:
        raise InputError(f"weight_norm: g has shape {jnp.shape(g)}; for v {v.shape} it must be {v.shape[-1:]}")
    return (at_least_float32(v) * per_feature(g / kernel_length(v), v.ndim)).astype(v.dtype)


def kernel_length(v):
    """Return the Euclidean norm of each output feature's kernel, in at least float32.

    Args:
      v: [..., features].

    Returns:
      [features].

    >>> print(kernel_length(jnp.array([[3.0], [4.0]])))
    [5.]
    """
    return jnp.linalg.norm(at_least_float32(v).reshape(-1, v.shape[-1]), axis=0)


def local_response_norm(x, size, *, alpha=1e-4, beta=0.75, k=1.0):
    """Divide each feature by a power of the squares of its neighbors (Krizhevsky et al. 2012, section 3.3):

        y[i] = x[i] / (k + alpha / size * sum over j of x[j]^2) ** beta,

    where j runs from i - size // 2 to i + (size - 1) // 2, and features outside of x count as 0. This is PyTorch's
    convention. The paper does not divide by size: its n = 5, alpha = 1e-4, beta = 0.75, k = 2 is
    `size=5, alpha=5e-4, k=2.0`.

    Args:
      x: [..., features].
      size: number of features in the window.
      alpha, beta, k: numbers, as in the equation.

    Returns:
      y like x.

    Raises:
      InputError: a size that is not an int of at least 1, or x that is not floating point.

    >>> x = jnp.array([2.0, 2.0, 0.0])  # sums of two squares: 4, 8, 4
    >>> print(local_response_norm(x, 2, alpha=2.0, beta=1.0, k=0.0).round(2))
    [0.5  0.25 0.  ]
    """
    x = floating("local_response_norm", x)
    if not isinstance(size, int) or size < 1:
        raise InputError(f"local_response_norm: size {size!r} must be an int of at least 1")
    wide = at_least_float32(x)
    others = x.ndim - 1
    window, pads = (*[1] * others, size), (*[(0, 0)] * others, (size // 2, (size - 1) // 2))
    total = lax.reduce_window(wide * wide, np.zeros((), wide.dtype), lax.add, window, (1,) * x.ndim, pads)
    return (wide / (k + alpha * total / size) ** beta).astype(x.dtype)


def _group_norm(name, x, scale, bias, groups, epsilon):
    x = floating(name, x)
    features = x.shape[-1]
    if x.ndim < 2:
        raise InputError(f"{name}: x {x.shape} must be [batch, *spatial, features]")
    if not isinstance(groups, int) or groups < 1 or features % groups:
        fit = ", ".join(str(g) for g in range(1, features + 1) if features % g == 0)
        raise InputError(f"{name}: groups {groups!r} must divide the {features} features of x {x.shape}: one of {fit}")
    check_epsilon(name, epsilon)
    check_shapes(name, x, (features,), scale=scale, bias=bias)
    parts = at_least_float32(x).reshape(*x.shape[:-1], groups, features // groups)
    y = _standardize(parts, (*range(1, x.ndim - 1), x.ndim), epsilon).reshape(x.shape)
    return affine(y, scale, bias).astype(x.dtype)


def _standardize(x, axes, epsilon):
    """Give each slice along the axes mean 0 and variance 1."""
    centered = x - x.mean(axes, keepdims=True)  # the mean of x^2 minus the squared mean would lose digits
    return centered * lax.rsqrt(jnp.square(centered).mean(axes, keepdims=True) + epsilon)


# Shared with batch norm


def affine(x, scale, bias):
    """Return scale x + bias. Both have the shape of x's last axes, or are None to omit that step."""
    x = x if scale is None else x * per_feature(scale, x.ndim)
    return x if bias is None else x + per_feature(bias, x.ndim)


def floating(name, x, argument="x"):
    """Return x as an array. Raise InputError if it has no features or is not floating point."""
    x = jnp.asarray(x)
    if x.shape[-1:] in ((), (0,)) or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"{name}: {argument} {x.dtype}{x.shape} must be floating point with features last; cast it")
    return x


def check_shapes(name, x, shape, **arrays):
    """Raise InputError for an array that is neither None nor of this shape, which x requires."""
    for argument, array in arrays.items():
        if array is not None and jnp.shape(array) != shape:
            raise InputError(f"{name}: {argument} has shape {jnp.shape(array)}; for x {x.shape} it must be {shape}")


def check_epsilon(name, epsilon):
    """Raise InputError for an epsilon below 0. A traced epsilon is not checked."""
    if isinstance(epsilon, (int, float)) and not epsilon >= 0:
        raise InputError(f"{name}: epsilon {epsilon} must be at least 0")
