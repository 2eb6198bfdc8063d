"""Within-layer normalization, and kernels learned from what enters a layer.

Kraehenbuehl, Doersch, Donahue & Darrell 2016, "Data-dependent initializations of convolutional neural networks" (arXiv
1511.06856), section 3.1.
"""

import warnings
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError
from deepjax.init_from_data import walk
from deepjax.init_from_data.walk import Change


def within_layer(model, key, x, *, report=None, **call):
    """Variables in which every output of every layer has mean 0 and variance 1 on x.

    Kernels begin as the model initializes them. Layer after layer, in one forward pass, each output's kernel is
    divided by the standard deviation of that output, and its bias set to take its mean away (algorithm 1 of the paper).
    Where a layer has no bias, the mean stays.

    Args:
      model: any Linen model, as for `lsuv`.
      key: for everything that `model.init` draws.
      x: the model's first argument, a batch of examples.
      report: called with {layer's path: variance of all its outputs together}; an array inside a scan.
      **call: the model's other arguments, such as train=True.

    Returns:
      The model's variables, as from `model.init`.

    Raises:
      InputError: no layer with a kernel; an output without variance, or parameters that the steps of a scan or the
        lanes of a vmap share: the layer is named.

    >>> import flax.linen as nn, jax
    >>> x = 3 + jax.random.normal(jax.random.key(0), (64, 10))
    >>> y = nn.Dense(4).apply(within_layer(nn.Dense(4), jax.random.key(1), x), x)
    >>> print(abs(y.mean(0)).round(3), y.var(0).round(3))
    [0. 0. 0. 0.] [1. 1. 1. 1.]
    """
    return _settle(model, key, x, call, report)


def pca_kernels(model, key, x, *, report=None, **call):
    """Variables in which each layer whitens what enters it.

    Kernel j is the j-th principal component of the layer's inputs (of a convolution, the patches under its window; of
    groups, each one's own), then scaled as `within_layer` does. Where there are more outputs than components with any
    variance, the rest are random rotations of the whitened components.

    Arguments, result and errors are those of `within_layer`; besides, every layer must be one of Flax's or deepjax's.

    >>> import flax.linen as nn, jax
    >>> x = jax.random.normal(jax.random.key(0), (64, 10)) * 3
    >>> y = nn.Dense(10).apply(pca_kernels(nn.Dense(10), jax.random.key(2), x), x)
    >>> bool(abs(jax.numpy.cov(y.T, bias=True) - jax.numpy.eye(10)).max() < 1e-3)
    True
    """
    return _settle(model, key, x, call, report, lambda *layer: _learned(_components, *layer))


def kmeans_kernels(model, key, x, *, report=None, **call):
    """Variables in which each layer's kernels are the centres of clusters of what enters it.

    As in Coates & Ng 2012, "Learning feature representations with k-means", the inputs (of a convolution, the patches)
    are whitened and brought to length one, and scikit-learn finds as many centres as the layer has outputs. Each is
    carried back through the whitening, then scaled as `within_layer` does.

    Arguments, result and errors are those of `pca_kernels`; besides, x must give every layer at least as many patches
    as it has outputs.

    >>> import flax.linen as nn, jax
    >>> x = jax.random.normal(jax.random.key(0), (64, 10))
    >>> y = nn.Dense(3).apply(kmeans_kernels(nn.Dense(3), jax.random.key(2), x), x)
    >>> print(y.var(0).round(3))
    [1. 1. 1.]
    """
    return _settle(model, key, x, call, report, lambda *layer: _learned(_centres, *layer))


def find_unshared(model, key, x, call):
    """`walk.find_layers`. Raises InputError where steps of a scan or lanes of a vmap share a layer's parameters."""
    found = walk.find_layers(model, key, x, call)
    shared = walk.find_shared(model, key, x, call, found)
    for layer in found:
        if layer.path in shared:
            raise InputError(
                f"layer {layer.name}: the steps of a scan, or lanes of a vmap, share its parameters, which then have "
                f"no single input to be set by; lsuv can set it"
            )
    return found


def _settle(model, key, x, call, report, start=None):
    found = find_unshared(model, key, x, call)
    run = walk.compiled(lambda key, x: walk.settle(model, None, key, x, call, found, _standardize, start=start))
    variables, notes = run(key, x)
    notes = jax.device_get(notes)
    for layer in found:
        walk.check_alive(layer, notes)
    if report is not None:
        report({layer.name: walk.squeezed(notes[layer.path]["reached"]) for layer in found})
    return variables


def _standardize(layer, z, bias):
    """Mean 0 and variance 1 of each output over all axes before the outputs' own."""
    axes = tuple(range(z.ndim - len(layer.outputs)))
    mean, var = z.mean(axes), z.var(axes)
    lively = var > 1e-10 * jnp.mean(jnp.square(z))
    scale = jnp.where(lively, jax.lax.rsqrt(jnp.where(lively, var, 1)), 1)
    varies = jnp.where(jnp.isfinite(var).all(), jnp.where(lively.all(), 1.0, 0.0), jnp.nan)
    return Change(scale, None if bias is None else -mean * scale, {"varies": varies})


def _learned(learn, layer, module, x):
    """The kernel that `learn` makes of a layer's inputs, group by group."""
    patches = _patches(layer, module, x)
    keys = jax.random.split(module.make_rng("params"), layer.groups)
    outputs = layer.features // layer.groups
    return layer.to_kernel(jnp.stack([learn(layer, keys[g], patches[:, g], outputs) for g in range(layer.groups)], 1))


def _patches(layer, module, x):
    """[patches, groups, fan_in]: the numbers that each output of a layer is a weighted sum of.

    The layer itself tells them: with the identity for its kernel, it puts out its inputs.
    """
    if not layer.affine or layer.outputs[-1] != len(layer.shape) - 1:
        raise InputError(
            f"layer {layer.name} ({type(module).__name__}): its inputs are not known; pca_kernels and kmeans_kernels "
            f"take the Dense, DenseGeneral, Conv and ConvTranspose (not transpose_kernel) of Flax and deepjax"
        )
    features = layer.fan_in * layer.groups
    kernel = jnp.tile(jnp.eye(layer.fan_in, dtype=layer.dtype), (1, layer.groups))
    inputs = [size for axis, size in enumerate(layer.shape) if axis not in layer.outputs]
    probe = module.clone(
        features=(features,) if isinstance(module, nn.DenseGeneral) else features,
        use_bias=False,
        parent=None,
        name=None,
    )
    y = probe.apply({"params": {"kernel": kernel.reshape(*inputs, features)}}, x)
    y = y.reshape(-1, layer.groups, layer.fan_in)
    if len(y) < 2:
        raise InputError(f"layer {layer.name}: x gives {len(y)} patch; give at least 2 examples")
    return y.astype(jnp.promote_types(y.dtype, jnp.float32))


def _whitening(rows):
    """(principal components in columns, liveliest first, each over its standard deviation; how many have any)."""
    centred = rows - rows.mean(0, keepdims=True)
    variances, vectors = jnp.linalg.eigh(centred.T @ centred / len(rows))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    lively = variances > 1e-6 * variances[:1]  # the others are float32's rounding
    return vectors * jnp.where(lively, jax.lax.rsqrt(jnp.where(lively, variances, 1)), 0)[None], lively.sum()


def _components(layer, key, rows, outputs):
    del layer
    whitening, count = _whitening(rows)
    rotations = whitening @ jax.random.normal(key, (len(whitening), outputs))
    components = jnp.pad(whitening, ((0, 0), (0, max(outputs - len(whitening), 0))))[:, :outputs]
    return jnp.where(jnp.arange(outputs)[None] < count, components, rotations)


def _centres(layer, key, rows, outputs):
    if len(rows) < outputs:
        raise InputError(
            f"layer {layer.name}: x gives {len(rows)} patches, too few for {outputs} clusters; give more examples"
        )
    whitening, _ = _whitening(rows)
    white = (rows - rows.mean(0, keepdims=True)) @ whitening
    white = white / jnp.maximum(jnp.linalg.norm(white, axis=1, keepdims=True), 1e-6)
    shape = jax.ShapeDtypeStruct((outputs, rows.shape[1]), np.float32)
    centres = jax.pure_callback(
        partial(_cluster, outputs), shape, white, jax.random.bits(key), vmap_method="sequential"
    )
    return whitening @ centres.T.astype(whitening.dtype)


def _cluster(outputs, white, seed):
    from sklearn.cluster import MiniBatchKMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct patches than clusters: some centres repeat
        centres = MiniBatchKMeans(outputs, random_state=int(seed)).fit(np.asarray(white)).cluster_centers_
    return np.asarray(centres, np.float32)
