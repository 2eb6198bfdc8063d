"""Guided backpropagation: the gradient, of which each rectifier passes only what is positive."""

import jax.numpy as jnp

from deepjax import inside
from deepjax.figures import looking
from deepjax.figures.looking import claim, draw, table

TITLE = "Guided backpropagation: the gradient, of which each rectifier passes only what is positive"
SOURCE = "Deep learning: striving for simplicity, guided backpropagation (Springenberg et al. 2014)"
USES = looking.USES
__all__ = ["claim", "draw", "numbers", "table"]


def numbers(settings):
    """Return Numbers of 100 digits and a small network trained on them, or of one image and a given network.

    The map has the largest absolute value over the channels of a pixel. The seed draws the places of the digits,
    the noise, the initial weights, the order, and the random pixels.
    """

    def scores(subject, classes):
        found = inside.guided_backprop(subject.model, subject.variables, subject.inputs, classes)
        return jnp.abs(found).max(-1)

    return looking.numbers(settings, scores)
