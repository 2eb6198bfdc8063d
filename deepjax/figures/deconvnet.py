"""Deconvnet: the gradient with rectifiers that rectify it instead."""

from deepjax import inside
from deepjax.figures import looking
from deepjax.figures.looking import claim, draw, table

TITLE = "Deconvnet: the gradient with rectifiers that rectify it instead"
SOURCE = "Deep learning: ZFNet, deconvnet (Zeiler and Fergus 2013)"
USES = looking.USES
__all__ = ["claim", "draw", "numbers", "table"]


def numbers(settings):
    """Return Numbers of 100 digits and a small network trained on them, or of one image and a given network.

    The seed draws the places of the digits, the noise, the initial weights, the order, and the random pixels.
    """
    return looking.numbers_of_gradient(settings, inside.deconvnet)
