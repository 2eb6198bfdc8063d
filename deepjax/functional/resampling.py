"""Affine resampling of images with gradients: Jaderberg et al. 2015, "Spatial transformer networks"."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from deepjax.errors import InputError


def affine_grid(theta, size):
    """Return the points of the input at which an affine map samples each pixel of the output (equation 1).

    A pixel of the output at (x, y), in coordinates that run from -1 to 1 over the image, takes its value from the input
    at theta @ (x, y, 1). As in PyTorch with align_corners=False, -1 and 1 are the outer edges of the outer pixels.

    Args:
      theta: [batch, 2, 3].
      size: (height, width) of the output, in pixels.

    Returns:
      [batch, height, width, 2]: x and y in the input's coordinates.

    Raises:
      InputError: theta is not [batch, 2, 3].

    >>> affine_grid(jnp.array([[[1.0, 0, 0], [0, 1, 0]]]), (1, 2)).tolist()
    [[[[-0.5, 0.0], [0.5, 0.0]]]]
    """
    theta = jnp.asarray(theta)
    if theta.ndim != 3 or theta.shape[1:] != (2, 3):
        raise InputError(f"affine_grid: theta must be [batch, 2, 3]; it has shape {theta.shape}")
    y, x = (2 * (jnp.arange(side) + 0.5) / side - 1 for side in size)
    points = jnp.stack([*jnp.meshgrid(x, y), jnp.ones(tuple(size))], -1)
    return jnp.einsum("hwp,bcp->bhwc", points, theta)


def grid_sample(x, grid):
    """Return images sampled at the points of a grid by bilinear interpolation (equation 5). Outside of x there is 0.

    The same as PyTorch's grid_sample with padding_mode "zeros" and align_corners=False, for features as the last axis.

    Args:
      x: [batch, H, W, features].
      grid: [batch, height, width, 2] of `affine_grid`: x and y, from -1 to 1 over the image.

    Returns:
      [batch, height, width, features].

    Raises:
      InputError: shapes that do not match.
    """
    x, grid = jnp.asarray(x), jnp.asarray(grid)
    if x.ndim != 4 or grid.ndim != 4 or grid.shape[-1] != 2 or grid.shape[0] != x.shape[0]:
        raise InputError(
            f"grid_sample: x must be [batch, H, W, features] and grid [batch, height, width, 2]; they have shapes "
            f"{x.shape} and {grid.shape}"
        )
    rows, columns = (((grid[..., i] + 1) * x.shape[axis] - 1) / 2 for i, axis in ((1, 1), (0, 2)))

    def sample(image, row, column):
        return map_coordinates(image, [row, column], order=1, mode="constant")

    each_feature = jax.vmap(sample, in_axes=(-1, None, None), out_axes=-1)
    return jax.vmap(each_feature)(x, rows, columns)
