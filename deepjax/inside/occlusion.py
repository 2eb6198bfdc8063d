"""Which part of an image a class depends on: its probability while a square hides a part (Zeiler & Fergus 2013)."""

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError
from deepjax.inside.gradients import check_classes
from deepjax.trace import call_arguments, input_errors

ROWS = 128  # images that are computed together


def occlusion(model, variables, images, classes, *, window, stride=1, fill=0.0):
    """Return the probability of a class with a square at each position (Zeiler & Fergus 2013, section 4.2).

    Args:
      model: a Linen module that maps images to logits [B, classes], in inference.
      variables: its variables.
      images: float [B, H, W, channels], as the model takes them.
      classes: int [B], the class of each image.
      window: side of the square in pixels, at least 1 and at most the smaller side of the images.
      stride: pixels between two positions, at least 1.
      fill: value of the square's pixels: a number, or one for each channel. 0 is the mean of standardized images.

    Returns:
      float32 [B, (H - window) // stride + 1, (W - window) // stride + 1]. The square of entry i, j begins at pixel
      i * stride, j * stride.

    Raises:
      InputError: a window or stride out of its range, no such class, or the model does not take the images.
    """
    images, classes, call = jnp.asarray(images), np.asarray(classes), call_arguments(model, train=False)
    count, height, width, channels = images.shape
    if not 1 <= window <= min(height, width):
        raise InputError(f"window {window} must be from 1 to the smaller side of the images, {min(height, width)}")
    if stride < 1:
        raise InputError(f"stride {stride} must be at least 1")
    with input_errors(images.shape):
        check_classes(classes, jax.eval_shape(lambda x: model.apply(variables, x, **call), images).shape)
    rows, columns = np.arange(0, height - window + 1, stride), np.arange(0, width - window + 1, stride)
    square = np.broadcast_to(np.asarray(fill, images.dtype), (window, window, channels))

    @jax.jit
    def run(variables, images, classes, positions):
        def probability(position):
            which, row, column = position
            hidden = jax.lax.dynamic_update_slice(images[which], square, (row, column, 0))
            logits = model.apply(variables, hidden[None], **call)[0]
            return jax.nn.softmax(logits.astype(jnp.float32))[classes[which]]

        return jax.lax.map(probability, positions, batch_size=ROWS)

    positions = np.stack(np.meshgrid(np.arange(count), rows, columns, indexing="ij"), -1).reshape(-1, 3)
    return run(variables, images, classes, positions).reshape(count, len(rows), len(columns))
