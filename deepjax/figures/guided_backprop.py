"""Guided backpropagation: the gradient, of which each rectifier passes only what is positive."""

from deepjax import inside
from deepjax.figures import looking
from deepjax.figures.looking import claim, draw, table

TITLE = "Guided backpropagation: the gradient, of which each rectifier passes only what is positive"
SOURCE = "Deep learning: striving for simplicity, guided backpropagation (Springenberg et al. 2014)"
USES = looking.USES
__all__ = ["claim", "draw", "numbers", "table"]


def numbers(settings):
    """Return Numbers of 100 digits and a small network trained on them, or of one image and a given network.

    The seed draws the places of the digits, the noise, the initial weights, the order, and the random pixels.
    """
    return looking.numbers_of_gradient(settings, inside.guided_backprop)
