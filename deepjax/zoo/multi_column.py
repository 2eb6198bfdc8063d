"""Several networks side by side, whose predictions are averaged: Ciresan et al. 2012, "Multi-column deep neural
networks for image classification" (arXiv 1202.2745)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional
from deepjax.errors import InputError
from deepjax.layers import Conv, Dense
from deepjax.zoo.network import INITS, Network, check_at_least_one

WIDTHS = (0, 10, 12, 14, 16, 18, 20)  # pixels to which the columns' digits are normalized; 0: as they are
SIDE = 29


class Column(nn.Module):
    """The paper's network for digits: 20C4-MP2-40C5-MP3-150N, then the logits, with scaled tanh units."""

    num_classes: int
    kernel_init: Any
    dtype: jnp.dtype | None = None
    last: str = "head"  # what is returned: the logits, the layer "hidden", or the "maps" of both stages

    @nn.compact
    def __call__(self, x):
        """[batch, 29, 29, channels] -> [batch, features], or a tuple of maps [batch, H, W, features]."""
        common, maps = {"kernel_init": self.kernel_init, "dtype": self.dtype}, []
        for i, (features, window, pool) in enumerate(((20, 4, 2), (40, 5, 3)), 1):
            x = Conv(features, (window, window), 1, "VALID", use_bias=True, **common, name=f"conv{i}")(x)
            x = functional.max_pool(functional.lecun_tanh(x), pool)
            maps.append(x)
        if self.last == "maps":
            return tuple(maps)
        x = functional.lecun_tanh(Dense(150, **common, name="hidden")(x.reshape(x.shape[0], -1)))
        return x if self.last == "hidden" else Dense(self.num_classes, **common, name="head")(x)


def normalize_width(x, width):
    """Stretch what is drawn on each image to a width in pixels, in the middle of the image.

    What is drawn are the columns from the first to the last one with a pixel above the background, the image's lowest
    value, by more than a tenth of the image's range.

    Args:
      x: [batch, H, W, channels], light on dark.
      width: pixels; may be a traced number. 0: return x.
    """
    dark = x.min((1, 2, 3), keepdims=True)
    bright = x.max((1, 2, 3), keepdims=True)
    drawn = (x > dark + 0.1 * (bright - dark)).any((1, 3))
    side = x.shape[2]
    left, right = drawn.argmax(1), side - drawn[:, ::-1].argmax(1)
    stretch = jnp.where(width == 0, 1.0, (right - left) / jnp.maximum(width, 1))
    middle = jnp.where(width == 0, 0.0, (left + right) / side - 1)
    zero, one = jnp.zeros_like(stretch), jnp.ones_like(stretch)
    theta = jnp.stack([jnp.stack([stretch, zero, middle], -1), jnp.stack([zero, one, zero], -1)], 1)
    grid = functional.affine_grid(theta, x.shape[1:3]).astype(x.dtype)
    return functional.grid_sample(x - dark, grid) + dark


class MultiColumn(Network):
    """Columns with separate parameters, stacked along a leading axis, each for digits of one width.

    In training the output is a tuple of the columns' logits, and each column learns from its own loss. Otherwise the
    output is the logarithm of the mean of their softmax probabilities, [batch, num_classes]. Maps and features are
    those of all columns, side by side.
    """

    columns: int

    auxiliary_weight = 1.0

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see the class. Raise InputError for images of more than 29x29 pixels."""
        self.check_images(x)
        if max(x.shape[1:3]) > SIDE:
            raise InputError(f"image size {x.shape[1]}x{x.shape[2]} is above this network's maximum of {SIDE}x{SIDE}")
        x = jnp.pad(x, ((0, 0), *((0, SIDE - side) for side in x.shape[1:3]), (0, 0)), mode="edge")
        widths = jnp.array([WIDTHS[i % len(WIDTHS)] for i in range(self.columns)], jnp.float32)
        views = jax.vmap(normalize_width, (None, 0))(x, widths)
        last = "maps" if self.features_only else "head" if self.return_logits else "hidden"
        each = nn.vmap(Column, variable_axes={"params": 0}, split_rngs={"params": True})
        logits: Any = each(self.num_classes, self.kernel_init, self.dtype, last, name="columns")(views)
        if self.features_only:
            return {f"stage{i}": _side_by_side(maps) for i, maps in enumerate(logits, 1)}
        if not self.return_logits:
            return _side_by_side(logits)
        if train:
            return tuple(logits)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits.astype(jnp.float32)), 0) - jnp.log(self.columns)


def _side_by_side(x):
    """[columns, batch, ..., features] -> [batch, ..., columns * features]."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)


def mcdnn(num_classes=10, *, columns=35, dtype=None):
    """Make the paper's multi-column network for MNIST.

    Its columns take turns with the seven widths of `WIDTHS`. Images are light on dark, and of at most 29x29 pixels, to
    which they are padded. A column has 76,040 parameters for gray images and 10 classes.

    Args:
      num_classes: number of logits.
      columns: number of networks side by side.
      dtype: dtype of the computation.

    Raises:
      InputError: fewer than one column. When called: images smaller than 12x12 or larger than 29x29 pixels.
    """
    check_at_least_one("mcdnn", columns=columns, num_classes=num_classes)
    return MultiColumn(
        columns,
        num_classes=num_classes,
        norm="none",
        kernel_init=INITS["lecun"],
        dtype=dtype,
        usual_input=(28, 28, 1),
        min_size=12,
    )


MODELS = {"mcdnn": mcdnn}
