"""Saliency: how much the logit of the predicted class changes with each pixel."""

from deepjax import inside
from deepjax.figures import looking
from deepjax.figures.looking import claim, draw, table

TITLE = "Saliency: the largest derivative of the class's logit over the channels of a pixel"
SOURCE = "Deep learning: VGG; saliency maps (Simonyan et al. 2013)"
USES = looking.USES
__all__ = ["claim", "draw", "numbers", "table"]


def numbers(settings):
    """Return Numbers of 100 digits and a small network trained on them, or of one image and a given network.

    The seed draws the places of the digits, the noise, the initial weights, the order, and the random pixels.
    """
    return looking.numbers_of_gradient(settings, inside.gradient)
