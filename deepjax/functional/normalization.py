"""Normalization that needs no batch: of each example, of a kernel, of a pixel's features.

Sums are taken in at least float32; what comes out has the dtype of what came in. Batch norm and its variants are in
`batch_normalization`.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from deepjax.errors import InputError


def layer_norm(x, scale=None, bias=None, *, axes=1, epsilon=1e-5):
    """Normalize each example over its last axes (Ba et al. 2016, eq. 3): y = scale (x - mean) / std + bias.

    Args:
      x: [..., *normalized], with any number of axes before the normalized ones.
      scale, bias: [*normalized], or None to leave that step out.
      axes: how many of the last axes are normalized together; 1: the features alone. PyTorch's `normalized_shape`
        is `x.shape[-axes:]`.
      epsilon: added to the (biased) variance.

    Returns:
      y like x.

    Raises:
      InputError: axes below 1 or more than x has, a scale or bias of another shape, x that is not floating.

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
    """Normalize each example over all pixels of a group of features (Wu & He 2018, eq. 7).

    `groups=1` is the layer norm of convolutional nets, with a scale and bias per feature.

    Args:
      x: [batch, *spatial, features], with any number of spatial axes, or none. Other leading axes: `jax.vmap`.
      scale, bias: [features], or None to leave that step out.
      groups: the features are cut into this many equal groups of neighbours.
      epsilon: added to the (biased) variance.

    Returns:
      y like x.

    Raises:
      InputError: groups that do not divide the features, a scale or bias of another shape, x without a batch axis or
        not floating.

    >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
    >>> print(group_norm(x, groups=2, epsilon=0.0))
    [[-1.  1. -1.  1.]]
    """
    return _group_norm("group_norm", x, scale, bias, groups, epsilon)


def instance_norm(x, scale=None, bias=None, *, epsilon=1e-5):
    """Normalize each feature of each example over its pixels (Ulyanov et al. 2016, eq. 5).

    Args:
      x: [batch, *spatial, features], with at least two pixels.
      scale, bias: [features], or None to leave that step out.
      epsilon: added to the (biased) variance.

    Returns:
      y like x.

    Raises:
      InputError: fewer than two pixels, a scale or bias of another shape, x that is not floating.

    >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])  # one example of two pixels with two features
    >>> print(instance_norm(x, epsilon=0.0))
    [[[-1. -1.]
      [ 1.  1.]]]
    """
    if math.prod(jnp.shape(x)[1:-1]) < 2:
        raise InputError(
            f"instance_norm: x {jnp.shape(x)} has one pixel, which would always become 0; it must be "
            "[batch, *spatial, features] with at least two"
        )
    return _group_norm("instance_norm", x, scale, bias, jnp.shape(x)[-1], epsilon)


def weight_norm(v, g):
    """A kernel in terms of direction and length (Salimans & Kingma 2016, eq. 2): w = g v / |v|, feature by feature.

    The gradients follow from those of w (eq. 3): dg = dw . v / |v| and dv = g / |v| dw - g dg / |v|^2 v, so that dv
    stands at a right angle to v.

    Args:
      v: kernel [..., features]; |v| is taken over all axes but the last. Where it is 0, w is NaN, as in PyTorch.
      g: [features].

    Returns:
      w like v.

    Raises:
      InputError: g is not [features], or v is not floating.

    >>> print(weight_norm(jnp.array([[3.0], [4.0]]), jnp.array([10.0])))
    [[6.]
     [8.]]
    """
    v = floating("weight_norm", v)
    if jnp.shape(g) != v.shape[-1:]:
        raise InputError(f"weight_norm: g has shape {jnp.shape(g)}; for v {v.shape} it must be {v.shape[-1:]}")
    return (at_least_float32(v) * to_rank(g / kernel_length(v), v.ndim)).astype(v.dtype)


def kernel_length(v):
    """|v| of each output feature: [..., features] -> [features], in at least float32.

    >>> print(kernel_length(jnp.array([[3.0], [4.0]])))
    [5.]
    """
    return jnp.linalg.norm(at_least_float32(v).reshape(-1, v.shape[-1]), axis=0)


def local_response_norm(x, size, *, alpha=1e-4, beta=0.75, k=1.0):
    """Divide each feature by (k + alpha mean of squares over its `size` neighbouring features) ** beta.

    Krizhevsky et al. 2012, section 3.3, in PyTorch's convention, which takes the mean (over `size`, also where the
    window reaches over the edge) where the paper takes the sum: the paper's n = 5, alpha = 1e-4, beta = 0.75, k = 2
    is `size=5, alpha=5e-4, k=2.0`.

    Args:
      x: [..., features].
      size: features in the window, from `size // 2` below to `(size - 1) // 2` above.
      alpha, beta, k: as above.

    Returns:
      y like x.

    Raises:
      InputError: a size that is not an int of at least 1, or x that is not floating.

    >>> x = jnp.array([2.0, 2.0, 0.0])  # squares of the feature below and of the feature itself: 4, 8, 4
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
    """Of each slice along the axes, mean 0 and variance 1; the variance from distances, not from squares' mean."""
    centred = x - x.mean(axes, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + epsilon)


# Shared with batch norm


def affine(x, scale, bias):
    """scale x + bias, each of x's last axes' shape, or None."""
    x = x if scale is None else x * to_rank(scale, x.ndim)
    return x if bias is None else x + to_rank(bias, x.ndim)


def at_least_float32(x):
    """X in float32, or in float64 if it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def to_rank(last, rank):
    """An array of the last axes with axes of length 1 before them, up to `rank`."""
    return jnp.reshape(last, (1,) * (rank - jnp.ndim(last)) + jnp.shape(last))


def floating(name, x):
    """X as an array, or InputError where it has no features or no floating dtype."""
    x = jnp.asarray(x)
    if x.shape[-1:] in ((), (0,)) or not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"{name}: {x.dtype}{x.shape} must be a floating array with features last; use astype")
    return x


def check_shapes(name, x, shape, **arrays):
    """InputError for an array that is neither None nor of the shape that x asks for."""
    for argument, array in arrays.items():
        if array is not None and jnp.shape(array) != shape:
            raise InputError(f"{name}: {argument} has shape {jnp.shape(array)}; for x {x.shape} it must be {shape}")


def check_epsilon(name, epsilon):
    """InputError for an epsilon below 0, where its value is known."""
    if isinstance(epsilon, (int, float)) and not epsilon >= 0:
        raise InputError(f"{name}: epsilon {epsilon} must be at least 0")
