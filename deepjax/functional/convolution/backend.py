"""The three maps by the backend: `lax.conv_general_dilated`, and the gradients that JAX derives from it.

For the arguments see `maps.py`. Works for every number of groups, and in explicit sharding mode.
"""

import jax
import jax.numpy as jnp
from jax import lax


def channels_last(x, kernel, stride, padding, **options):
    """Convolve x [batch, *spatial, features] with a kernel [*window, in, out], for any number of spatial axes.

    This layout is the canonical one, for which XLA:CPU has a fast kernel in every context.
    """
    last = kernel.ndim - 1
    activations = (0, last, *range(1, last))
    layout = lax.ConvDimensionNumbers(activations, (last, last - 1, *range(last - 1)), activations)
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=layout, **options)


def forward(x, kernel, form):
    """Compute y from x and the kernel."""
    return channels_last(
        x,
        kernel,
        [a.stride for a in form.axes],
        [(a.low, a.high) for a in form.axes],
        rhs_dilation=[a.dilation for a in form.axes],
        feature_group_count=form.groups,
    )


def input_gradient(dy, kernel, form):
    """Compute the gradient of the loss in x."""
    shape = (len(dy), *(a.size for a in form.axes), kernel.shape[-2] * form.groups)
    # `linear_transpose` uses only the type of x. Made from dy, x is spread over the devices as dy is.
    x = lax.broadcast_in_dim(dy[(slice(None), *(0,) * (dy.ndim - 1))], shape, (0,))
    x, kernel = vary_alike(x, kernel)
    return jax.linear_transpose(lambda x: forward(x, kernel, form), x)(dy)[0]


def kernel_gradient(x, dy, form):
    """Compute the gradient of the loss in the kernel."""
    shape = (*(a.window for a in form.axes), x.shape[-1] // form.groups, dy.shape[-1])
    kernel = vary_alike(jnp.zeros(shape, x.dtype), x)[0]
    return jax.linear_transpose(lambda kernel: forward(x, kernel, form), kernel)(dy)[0]


def vary_alike(*arrays):
    """Mark all arrays as varying over the same mesh axes inside a `shard_map`.

    There, a replicated kernel meets a sharded x. The transpose of this cast sums the gradient over the devices.
    """
    varying = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    missing = [tuple(frozenset.union(*varying) - axes) for axes in varying]
    return [lax.pcast(a, m, to="varying") if m else a for a, m in zip(arrays, missing, strict=True)]
