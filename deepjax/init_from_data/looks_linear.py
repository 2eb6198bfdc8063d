"""Looks-linear initialization: Balduzzi et al. 2017, "The shattered gradients problem" (arXiv 1702.08591), sec. 4."""

import jax
import jax.numpy as jnp

from deepjax.init_from_data.calibrate import Change, Rules, calibrate
from deepjax.init_from_data.within_layer import unshared_layers
from deepjax.trace.observe import jit_once


def looks_linear(model, key, x, **call):
    """Initialize a network of CReLUs so that it is a linear function, with orthonormal maps between the CReLUs.

    The input of a layer after a `functional.crelu` holds each feature's positive and negative part. The layer's kernel
    has a row w for the positive part and the row -w for the negative part, so the layer computes w times the CReLU's
    own input. The rows w form an orthonormal matrix; in a convolution it acts on the center of the window alone. The
    first layer, and layers whose input has negative numbers, have the orthonormal matrix itself. All biases are zero.

    A layer counts as following a CReLU if its input has no negative number on x and an even number of features. Average
    pooling and flattening may stand between them. A network with other activations does not become linear.

    Args:
      model: any Linen model, as for `lsuv`.
      key: PRNG key, for everything that `model.init` draws.
      x: the model's first argument, a batch of examples.
      **call: the model's keyword arguments, such as train=False.

    Returns:
      The model's variables, with the structure of `model.init`'s.

    Raises:
      InputError: as for `within_layer`.

    >>> import flax.linen as nn, jax
    >>> from deepjax.functional import crelu
    >>> model = nn.Sequential([nn.Dense(8), crelu, nn.Dense(8), crelu, nn.Dense(8)])
    >>> x = jax.random.normal(jax.random.key(0), (5, 8))
    >>> variables = looks_linear(model, jax.random.key(1), x)
    >>> y = jax.jit(lambda x: model.apply(variables, x))
    >>> bool(abs(y(-3 * x) + 3 * y(x)).max() < 1e-5), bool(abs((y(x) ** 2).sum() / (x**2).sum() - 1) < 1e-5)
    (True, True)
    """
    layers = unshared_layers(model, key, x, call)
    first = layers[0].path

    def draw(layer, module, x):
        plain = at_center(layer, module.make_rng("params"), 1)
        if layer.path == first or layer.inputs % 2:
            return plain
        mirrored = at_center(layer, module.make_rng("params"), 2)
        return jnp.where(jnp.all(x >= 0), mirrored, plain)

    def without_bias(layer, z, bias):
        return Change(bias=None if bias is None else jnp.zeros_like(bias))

    run = jit_once(lambda key, x: calibrate(model, None, key, x, call, layers, Rules(without_bias, draw))[0])
    return run(key, x)


def mirrored(layer, module, x, *, is_last):
    """Draw a kernel for which ReLU-like activations cancel, so that the network is a linear function.

    The outputs come in pairs u, -u, except for the last layer. An activation f turns a pair into f(u), f(-u). The next
    layer computes f(u) - f(-u), which is u for ReLU, GELU and SiLU, and (1 + slope) u for a leaky ReLU. A layer's input
    consists of such pairs if the signs of all its pairs differ.
    """
    outputs = 1 if is_last or (layer.features // layer.groups) % 2 else 2
    plain = at_center(layer, module.make_rng("params"), 1, outputs)
    if layer.inputs % 2 or x.shape[-1] != layer.inputs * layer.groups:
        return plain
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    opposite = jnp.all(pairs[..., 0] * pairs[..., 1] <= 0)
    return jnp.where(opposite, at_center(layer, module.make_rng("params"), 2, outputs), plain)


def at_center(layer, key, parts, copies=1):
    """Draw a kernel with an orthonormal matrix per group at the center of its window.

    This is the delta-orthogonal initialization of Xiao et al. 2018 (arXiv 1806.05393). With parts=2 its rows
    come in pairs w, -w; with copies=2 its columns do.
    """
    window, inputs = layer.window, layer.inputs
    shape = inputs // parts, layer.features // layer.groups // copies
    draw = jax.nn.initializers.orthogonal()
    matrices = jax.vmap(lambda key: draw(key, shape))(jax.random.split(key, layer.groups))
    if parts == 2:
        matrices = jnp.stack([matrices, -matrices], 2).reshape(layer.groups, inputs, shape[1])
    if copies == 2:
        matrices = jnp.stack([matrices, -matrices], 3).reshape(layer.groups, inputs, 2 * shape[1])
    center = jnp.zeros((*window, inputs, layer.features)).at[tuple((w - 1) // 2 for w in window)]
    return layer.to_kernel(center.set(jnp.moveaxis(matrices, 0, 1).reshape(inputs, layer.features)))
