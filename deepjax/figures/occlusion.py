"""Occlusion: the probability of the predicted class while a gray square hides a part of the image."""

import numpy as np

from deepjax import inside
from deepjax.figures import looking
from deepjax.figures.looking import claim, draw, table

TITLE = "Occlusion: how much a gray square at each position lowers the probability of the class"
SOURCE = "Deep learning: ZFNet; occlusion sensitivity (Zeiler and Fergus 2013, section 4.2)"
USES = looking.USES
__all__ = ["claim", "draw", "numbers", "table"]


def numbers(settings):
    """Return Numbers of 100 digits and a small network trained on them, or of one image and a given network.

    The square's side is a sixth of the image's, and it moves by a quarter of its side. A pixel's value is the mean
    fall of the probability over the squares that hide it. The seed draws the places of the digits, the noise, the
    initial weights, the order, and the random pixels.
    """

    def scores(subject, classes):
        window = max(1, min(subject.inputs.shape[1:3]) // 6)
        stride = max(1, window // 4)
        plan = {"window": window, "stride": stride, "fill": np.asarray(subject.inputs.mean((0, 1, 2)))}
        found = inside.occlusion(subject.model, subject.variables, subject.inputs, classes, **plan)
        return _per_pixel(1 - np.asarray(found), subject.inputs.shape[1:3], window, stride)

    return looking.numbers(settings, scores)


def _per_pixel(falls, size, window, stride):
    """Return for each pixel the mean of falls [N, rows, columns] over the squares that cover it, [N, *size]."""
    total, count = np.zeros((len(falls), *size)), np.zeros(size)
    for i in range(falls.shape[1]):
        for j in range(falls.shape[2]):
            square = (slice(i * stride, i * stride + window), slice(j * stride, j * stride + window))
            total[:, *square] += falls[:, i, j, None, None]
            count[square] += 1
    return total / count.clip(1)  # a pixel that no square covers, at the border, has 0
