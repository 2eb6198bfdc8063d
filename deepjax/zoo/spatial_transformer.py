"""A network that first straightens its input: Jaderberg et al. 2015, "Spatial transformer networks"."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.layers import Conv, Dense
from deepjax.zoo.network import INITS, Network, check_at_least_one, check_rate


class SpatialTransformer(nn.Module):
    """Resample images by an affine map that two convolutions and a dense layer choose for each image.

    The last layer starts with zero kernels and the identity map as its bias, as in section 4.1 of the paper.
    """

    width: int
    kernel_init: Callable
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        """[batch, H, W, channels] -> the same shape."""
        common = {"kernel_init": self.kernel_init, "dtype": self.dtype}
        y = functional.max_pool(x, 2)
        for i in (1, 2):
            y = functional.relu(Conv(self.width, (5, 5), 1, 2, use_bias=True, **common, name=f"conv{i}")(y))
            y = functional.max_pool(y, 2) if i == 1 else y
        y = functional.relu(Dense(self.width, **common, name="hidden")(y.reshape(y.shape[0], -1)))
        identity = initializers.constant(jnp.array([1.0, 0, 0, 0, 1, 0]))
        theta = Dense(6, kernel_init=initializers.zeros, bias_init=identity, dtype=jnp.float32, name="theta")(y)
        grid = functional.affine_grid(theta.reshape(-1, 2, 3), x.shape[1:3])
        return functional.grid_sample(x, grid.astype(x.dtype))


class STCNN(Network):
    """A spatial transformer, two convolutions with pooling, a dense layer, the logits."""

    width: int
    transform: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; the stages are transformed, stage1 and stage2."""
        self.check_images(x)
        maps = {}
        if self.transform:
            x = SpatialTransformer(20, self.kernel_init, self.dtype, name="transformer")(x)
            maps["transformed"] = x
        for i, (window, features) in enumerate(((9, self.width), (7, 2 * self.width)), 1):
            common = {"use_bias": True, "kernel_init": self.kernel_init, "dtype": self.dtype}
            x = functional.relu(Conv(features, (window, window), 1, "VALID", **common, name=f"conv{i}")(x))
            x = maps[f"stage{i}"] = functional.max_pool(x, 2)
        if self.features_only:
            return maps
        hidden = Dense(128, kernel_init=self.kernel_init, dtype=self.dtype, name="hidden")
        return self.classify(functional.relu(hidden(x.reshape(x.shape[0], -1))), train=train)


def st_cnn(num_classes=10, *, width=32, transform=True, dropout=0.0, dtype=None):
    """Make a network for distorted digits: a spatial transformer, then convolutions of 9x9 and 7x7.

    With features_only, "transformed" is the image that the transformer chose.

    Args:
      num_classes: number of logits.
      width: features of the first convolution of the classifier; the second has twice as many.
      transform: False leaves out the transformer, for comparison.
      dropout: probability that an input of the logits is dropped.
      dtype: dtype of the computation.

    Raises:
      InputError: a width below 1, a dropout outside [0, 1]. When called: images smaller than 24x24 pixels.
    """
    check_at_least_one("st_cnn", width=width, num_classes=num_classes)
    check_rate("st_cnn", dropout=dropout)
    return STCNN(
        width,
        transform,
        num_classes=num_classes,
        norm="none",
        dropout=dropout,
        kernel_init=INITS["he_fan_in"],
        dtype=dtype,
        usual_input=(28, 28, 1),
        min_size=24,
    )


MODELS = {"st_cnn": st_cnn}
