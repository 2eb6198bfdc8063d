"""Within-layer normalization, and kernels learned from what enters a layer.

Kraehenbuehl, Doersch, Donahue & Darrell 2016, "Data-dependent initializations of convolutional neural networks" (arXiv
1511.06856), section 3.1.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax.errors import InputError
from deepjax.functional.arrays import at_least_float32
from deepjax.init_from_data.calibrate import (
    MIN_VARIATION,
    Change,
    Rules,
    calibrate,
    check_outputs,
    settable_layers,
    squeezed,
)
from deepjax.linear import kmeans
from deepjax.trace import find_shared
from deepjax.trace.layers import output_of
from deepjax.trace.observe import jit_once


def within_layer(model, key, x, *, report=None, **call):
    """Initialize a model so that every output feature of every layer has mean 0 and variance 1 on x.

    Kernels start as the model initializes them. Layer after layer, in one forward pass, the kernel of each feature is
    divided by the standard deviation of that feature, and its bias is set to minus the feature's mean (algorithm 1 of
    the paper). The mean stays if the layer has no bias.

    Args:
      model: any Linen model, as for `lsuv`.
      key: PRNG key, for everything that `model.init` draws.
      x: the model's first argument, a batch of examples.
      report: function called with {layer's path: variance of all its outputs together}. The value is an array [units]
        inside a scan.
      **call: the model's keyword arguments, such as train=True.

    Returns:
      The model's variables, with the structure of `model.init`'s.

    Raises:
      InputError: the model has no layer with a kernel; or the output of a layer does not vary or is not finite, or the
        steps of a scan or the lanes of a vmap share its parameters. The layer is named.

    >>> import flax.linen as nn, jax
    >>> x = 3 + jax.random.normal(jax.random.key(0), (64, 10))
    >>> y = nn.Dense(4).apply(within_layer(nn.Dense(4), jax.random.key(1), x), x)
    >>> print(abs(y.mean(0)).round(3), y.var(0).round(3))
    [0. 0. 0. 0.] [1. 1. 1. 1.]
    """
    return _standardized(model, key, x, call, report)


def pca_kernels(model, key, x, *, report=None, **call):
    """Initialize a model so that each layer whitens its input.

    Kernel j is the j-th principal component of the layer's inputs, scaled as `within_layer` does. The inputs of a
    convolution are the patches under its window; each group has its own. If there are more outputs than components with
    nonzero variance, the remaining kernels are random rotations of the whitened components.

    Arguments, result and errors are those of `within_layer`. In addition, every layer must be one of Flax's or
    deepjax's.

    >>> import flax.linen as nn, jax
    >>> x = jax.random.normal(jax.random.key(0), (64, 10)) * 3
    >>> y = nn.Dense(10).apply(pca_kernels(nn.Dense(10), jax.random.key(2), x), x)
    >>> bool(abs(jax.numpy.cov(y.T, bias=True) - jax.numpy.eye(10)).max() < 1e-3)
    True
    """
    return _standardized(model, key, x, call, report, partial(_learned, _components))


def kmeans_kernels(model, key, x, *, report=None, **call):
    """Initialize a model so that each layer's kernels are the centers of clusters of its inputs.

    As in Coates & Ng 2012, "Learning feature representations with k-means", the inputs (of a convolution, its patches)
    are whitened and normalized to length 1, and `linear.kmeans` finds as many clusters as the layer has outputs.
    Each center is mapped back through the whitening, then scaled as `within_layer` does.

    Arguments, result and errors are those of `pca_kernels`. In addition, x must give every layer at least as many
    patches as the layer has outputs.

    >>> import flax.linen as nn, jax
    >>> x = jax.random.normal(jax.random.key(0), (64, 10))
    >>> y = nn.Dense(3).apply(kmeans_kernels(nn.Dense(3), jax.random.key(2), x), x)
    >>> print(y.var(0).round(3))
    [1. 1. 1.]
    """
    return _standardized(model, key, x, call, report, partial(_learned, _centers))


def unshared_layers(model, key, x, call):
    """Return `settable_layers`. Raise InputError if the steps of a scan or the lanes of a vmap share a layer."""
    layers = settable_layers(model, key, x, call)
    shared = find_shared(model, key, x, call, layers)
    for layer in layers:
        if layer.path in shared:
            raise InputError(
                f"layer {layer.name}: the steps of a scan, or the lanes of a vmap, share its parameters, so it has no "
                f"single input to be set from; use lsuv"
            )
    return layers


def _standardized(model, key, x, call, report, draw=None):
    """Return variables with standardized outputs, from kernels that `draw` returns or that the model draws."""
    layers = unshared_layers(model, key, x, call)
    rules = Rules(_standardize, draw)
    variables, notes = jit_once(lambda key, x: calibrate(model, None, key, x, call, layers, rules)[:2])(key, x)
    notes = jax.device_get(notes)
    for layer in layers:
        check_outputs(layer, notes)
    if report is not None:
        report({layer.name: squeezed(notes[layer.path]["variance"]) for layer in layers})
    return variables


def _standardize(layer, z, bias):
    """Return the Change to mean 0 and variance 1 of each output feature, over all axes before the features' own."""
    axes = tuple(range(z.ndim - len(layer.outputs)))
    mean, var = z.mean(axes), z.var(axes)
    varying = var > MIN_VARIATION * jnp.mean(jnp.square(z))
    scale = jnp.where(varying, jax.lax.rsqrt(jnp.where(varying, var, 1)), 1)
    variation = jnp.where(jnp.isfinite(var).all(), jnp.where(varying.all(), 1.0, 0.0), jnp.nan)
    return Change(scale, None if bias is None else -mean * scale, {"variation": variation})


def _learned(learn, layer, module, x):
    """Return the kernel that `learn` computes from a layer's inputs, group by group."""
    keys = jax.random.split(module.make_rng("params"), layer.groups)
    outputs = layer.features // layer.groups
    of_group = jax.vmap(lambda key, rows: learn(layer, key, rows, outputs), in_axes=(0, 1), out_axes=1)
    return layer.to_kernel(of_group(keys, _patches(layer, module, x)))


def _patches(layer, module, x):
    """Return [patches, groups, fan_in]: the numbers that each output of a layer is a weighted sum of.

    They are the outputs of the same layer with the identity as its kernel.
    """
    special = getattr(module, "transpose_kernel", False) or getattr(module, "mask", None) is not None
    if not layer.affine or isinstance(module, nn.Einsum) or special:
        raise InputError(
            f"layer {layer.name} ({type(module).__name__}): its inputs cannot be computed; pca_kernels and "
            f"kmeans_kernels accept Dense, DenseGeneral, Conv, ConvLocal and ConvTranspose of Flax and deepjax (not "
            f"with transpose_kernel or mask)"
        )
    features = layer.fan_in * (1 if layer.positions else layer.groups)
    kernel = jnp.tile(jnp.eye(layer.fan_in, dtype=layer.dtype), (1, features // layer.fan_in))
    inputs = [size for axis, size in enumerate(layer.shape) if axis not in layer.outputs]
    kernel = jnp.broadcast_to(kernel.reshape(*inputs, features), (*layer.positions, *inputs, features))
    probe = module.clone(
        features=(features,) if isinstance(module, nn.DenseGeneral) else features,
        use_bias=False,
        parent=None,
        name=None,
    )
    result = probe.apply({"params": {"kernel": kernel}}, x)
    y: Any = output_of(probe, (x,), result)
    y = y.reshape(-1, layer.groups, layer.fan_in)
    if len(y) < 2:
        raise InputError(f"layer {layer.name}: x gives {len(y)} patch; give at least 2 examples")
    return at_least_float32(y)


def _whitening(rows):
    """Return (components / their standard deviations, in columns by falling variance; the number with variance)."""
    centered = rows - rows.mean(0, keepdims=True)
    variances, vectors = jnp.linalg.eigh(centered.T @ centered / len(rows))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    varying = variances > 1e-6 * variances[:1]  # the others are rounding errors of float32
    return vectors * jnp.where(varying, jax.lax.rsqrt(jnp.where(varying, variances, 1)), 0)[None], varying.sum()


def _components(layer, key, rows, outputs):
    del layer
    whitening, count = _whitening(rows)
    rotations = whitening @ jax.random.normal(key, (len(whitening), outputs))
    components = jnp.pad(whitening, ((0, 0), (0, max(outputs - len(whitening), 0))))[:, :outputs]
    return jnp.where(jnp.arange(outputs)[None] < count, components, rotations)


def _centers(layer, key, rows, outputs):
    if len(rows) < outputs:
        raise InputError(
            f"layer {layer.name}: x gives {len(rows)} patches, too few for {outputs} clusters; give more examples"
        )
    whitening, _ = _whitening(rows)
    white = (rows - rows.mean(0, keepdims=True)) @ whitening
    white = white / jnp.maximum(jnp.linalg.norm(white, axis=1, keepdims=True), 1e-6)
    centers, _ = kmeans(key, white, outputs)
    return whitening @ centers.T
