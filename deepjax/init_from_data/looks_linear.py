"""Looks-linear initialization: Balduzzi et al. 2017, "The shattered gradients problem" (arXiv 1702.08591), sec. 4."""

import jax
import jax.numpy as jnp

from deepjax.init_from_data import walk
from deepjax.init_from_data.walk import Change
from deepjax.init_from_data.within_layer import find_unshared


def looks_linear(model, key, x, **call):
    """Variables that make a network of CReLUs a linear function, with orthonormal maps between them.

    A layer that follows a `functional.crelu` sees each feature's positive and negative part side by side. Its kernel
    gets a row w for the one and -w for the other, so that it sees what went into the CReLU, times an orthonormal
    matrix (of a convolution, one that acts on the centre of its window alone). The first layer, and those whose input
    has negative numbers, get the matrix itself. All biases become zero.

    A layer follows a CReLU if its input has no negative number on x and an even number of features; pooling by means
    and flattening may stand between. A network with other activations does not become linear.

    Args:
      model: any Linen model, as for `lsuv`.
      key: for everything that `model.init` draws.
      x: the model's first argument, a batch of examples.
      **call: the model's other arguments, such as train=False.

    Returns:
      The variables.

    Raises:
      InputError: what `within_layer` refuses.

    >>> import flax.linen as nn, jax
    >>> from deepjax.functional import crelu
    >>> model = nn.Sequential([nn.Dense(8), crelu, nn.Dense(8), crelu, nn.Dense(8)])
    >>> x = jax.random.normal(jax.random.key(0), (5, 8))
    >>> variables = looks_linear(model, jax.random.key(1), x)
    >>> y = lambda x: model.apply(variables, x)
    >>> bool(abs(y(-3 * x) + 3 * y(x)).max() < 1e-5), bool(abs((y(x) ** 2).sum() / (x**2).sum() - 1) < 1e-5)
    (True, True)
    """
    found = find_unshared(model, key, x, call)
    first = found[0].path

    def start(layer, module, x):
        plain = at_centre(layer, module.make_rng("params"), 1)
        if layer.path == first or layer.inputs % 2:
            return plain
        mirrored = at_centre(layer, module.make_rng("params"), 2)
        return jnp.where(jnp.all(x >= 0), mirrored, plain)

    def without_bias(layer, z, bias):
        return Change(bias=None if bias is None else jnp.zeros_like(bias))

    run = walk.compiled(lambda key, x: walk.settle(model, None, key, x, call, found, without_bias, start=start)[0])
    return run(key, x)


def mirrored(layer, module, x, *, is_last):
    """A kernel to start with, for `walk.settle`, by which activations that bend cancel: a network looks linear.

    Outputs come in pairs u, -u, but for the last layer. Then what an activation f makes of them is a pair of opposite
    signs, from which the next layer takes f(u) - f(-u): u itself, of a ReLU, GELU or SiLU; (1 + slope) u of a leaky
    ReLU. Whether its input is made of such pairs, a layer sees from the signs.
    """
    outputs = 1 if is_last or (layer.features // layer.groups) % 2 else 2
    plain = at_centre(layer, module.make_rng("params"), 1, outputs)
    if layer.inputs % 2 or x.shape[-1] != layer.inputs * layer.groups:
        return plain
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    opposite = jnp.all(pairs[..., 0] * pairs[..., 1] <= 0)
    return jnp.where(opposite, at_centre(layer, module.make_rng("params"), 2, outputs), plain)


def at_centre(layer, key, parts, copies=1):
    """A kernel with an orthonormal matrix of each group at its window's centre: delta-orthogonal (Xiao et al. 2018).

    With parts=2 its inputs come in pairs w, -w, with copies=2 its outputs do.
    """
    window, inputs = layer.window, layer.inputs
    shape = inputs // parts, layer.features // layer.groups // copies
    draw = jax.nn.initializers.orthogonal()
    matrices = jax.vmap(lambda key: draw(key, shape))(jax.random.split(key, layer.groups))
    if parts == 2:
        matrices = jnp.stack([matrices, -matrices], 2).reshape(layer.groups, inputs, shape[1])
    if copies == 2:
        matrices = jnp.stack([matrices, -matrices], 3).reshape(layer.groups, inputs, 2 * shape[1])
    centre = jnp.zeros((*window, inputs, layer.features)).at[tuple((w - 1) // 2 for w in window)]
    return layer.to_kernel(centre.set(jnp.moveaxis(matrices, 0, 1).reshape(inputs, layer.features)))
