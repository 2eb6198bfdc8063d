"""A sheet of images with a caption above each one."""

import math
from collections.abc import Sequence

import numpy as np

from deepjax.runs.plots import drawn, new_figure

MOST = 64  # images on one sheet


def gallery(images: Sequence[np.ndarray], captions: Sequence[str], title: str = ""):
    """Draw up to MOST images.

    Args:
      images: each uint8 [H, W, C] or float [H, W, C] in [0, 1], with 1 or 3 channels.
      captions: the text above each image.
      title: title of the figure.

    Returns:
      A matplotlib Figure.
    """
    count = min(len(images), MOST)
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = max(1, math.ceil(count / columns))
    figure = new_figure(1.9 * columns, 2.2 * rows + 0.4)
    # A dollar sign in the name of a class is not mathematics.
    figure.suptitle(drawn(title), parse_math=False)
    for axes in figure.subplots(rows, columns, squeeze=False).ravel():
        axes.axis("off")
    for axes, image, caption in zip(figure.axes, images, captions):
        white = 255 if image.dtype == np.uint8 else 1
        if image.shape[-1] == 1:
            axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=white)
        else:
            axes.imshow(image)
        axes.set_title(drawn(caption), fontsize=8, parse_math=False)
    return figure
