"""Which part of an image a class depends on: its probability while a square hides a part (Zeiler & Fergus 2013)."""

import jax
import jax.numpy as jnp
import numpy as np

from deepjax.errors import InputError
from deepjax.inside.gradients import check_classes
from deepjax.trace import call_arguments, input_errors

ROWS = 128  # images that are computed together


def occlusion(model, variables, image, label, *, window, stride=1, fill=0.0):
    """Return the probability of a class with a square at each position (Zeiler & Fergus 2013, section 4.2).

    Args:
      model: a Linen module that maps images to logits [B, classes], in inference.
      variables: its variables.
      image: float [H, W, channels], as the model takes it.
      label: the class, an int.
      window: side of the square in pixels, at least 1 and at most the smaller side of the image.
      stride: pixels between two positions, at least 1.
      fill: value of the square's pixels: a number, or one for each channel. 0 is the mean of standardized images.

    Returns:
      float32 [(H - window) // stride + 1, (W - window) // stride + 1]. The square of entry i, j begins at pixel
      i * stride, j * stride.

    Raises:
      InputError: a window or stride out of its range, no such class, or the model does not take the image.
    """
    image = jnp.asarray(image)
    height, width = image.shape[:2]
    if not 1 <= window <= min(height, width):
        raise InputError(f"window {window} must be from 1 to the smaller side of the image, {min(height, width)}")
    if stride < 1:
        raise InputError(f"stride {stride} must be at least 1")
    rows, columns = np.arange(0, height - window + 1, stride), np.arange(0, width - window + 1, stride)
    call = call_arguments(model, train=False)
    with input_errors((1, *image.shape)):
        logits = jax.eval_shape(lambda: model.apply(variables, image[None], **call))
    check_classes([label], logits.shape)

    square = np.broadcast_to(np.asarray(fill, image.dtype), (window, window, image.shape[-1]))

    @jax.jit
    def run(variables, corners):
        def probability(corner):
            hidden = jax.lax.dynamic_update_slice(image, square, (*corner, 0))
            return jax.nn.softmax(model.apply(variables, hidden[None], **call)[0].astype(jnp.float32))[label]

        return jax.lax.map(probability, corners, batch_size=ROWS)

    corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return run(variables, corners).reshape(len(rows), len(columns))
