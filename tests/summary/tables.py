"""Tables of layers, and their sums."""

import functools

import jax
import jax.numpy as jnp

from deepjax import zoo
from deepjax.summary import summarize


@functools.cache
def summary_of(name, pixels=None, **options):
    """The rows of a network of the zoo, on its usual images or on squares of so many pixels; options of `summarize`."""
    return summarize(zoo.create(name), (pixels, pixels, 3) if pixels else zoo.usual_input(name), **options)


def rows(model, shape, **call):
    layers = summarize(model, shape, **call)
    by_path = {layer.path: layer for layer in layers}
    assert len(by_path) == len(layers)
    return by_path


def parameter_count(model, shape, **call):
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), **call))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def totals(model, shape, **call):
    layers = summarize(model, shape, **call)
    return sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers)


def sums(layers, *prefixes):
    chosen = [layer for layer in layers if layer.path.startswith(prefixes)]
    return sum(layer.parameters for layer in chosen), sum(layer.macs for layer in chosen)
