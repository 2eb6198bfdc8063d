"""Normalization as Linen modules. Running moments are `mean` and `var` in the collection `batch_stats`, as in Flax."""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.functional.normalization import kernel_length


class _Affine(nn.Module, kw_only=True):
    """Scale and bias after a normalization."""

    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Callable = initializers.ones
    bias_init: Callable = initializers.zeros

    def _scale_and_bias(self, shape):
        scale = self.param("scale", self.scale_init, shape, jnp.float32) if self.use_scale else None
        bias = self.param("bias", self.bias_init, shape, jnp.float32) if self.use_bias else None
        return scale, bias


# Further variables of a batch normalization in `batch_stats`: the sums of the batch's moments over all calls, and the
# number of calls. They exist only where `trace.observed_batch_moments` creates them, and are updated only there.
SUMS = ("sum_mean", "sum_var", "calls")


class BatchNormBase(_Affine, kw_only=True):
    """Parameters and running moments of a batch normalization. A subclass gives the function, by `_normalize`."""

    momentum: float = 0.9  # share of the old running moments that is kept

    axis_name = None  # for subclasses without such a field
    unbiased = False

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ..., features] -> the same shape and dtype."""
        features = jnp.shape(x)[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        y, moments = self._normalize()(
            x,
            *self._scale_and_bias(features),
            functional.Moments(mean.value, var.value),
            train=train,
            mask=mask,
            momentum=self.momentum,
            epsilon=self.epsilon,
        )
        if train and not self.is_initializing():
            self._publish(x, mask, functional.Moments(mean.value, var.value))
            mean.value, var.value = moments
        return y

    def _publish(self, x, mask, running):
        """Add the moments of this batch to the sums, if the sums exist."""
        if not self.has_variable("batch_stats", SUMS[-1]):
            return
        batch = self._moments_of(x, mask, jax.tree.map(jnp.zeros_like, running))
        for name, value in zip(SUMS, (*batch, 1.0), strict=True):
            self.put_variable("batch_stats", name, self.get_variable("batch_stats", name) + value)

    def _moments_of(self, x, mask, zeros):
        """The moments of a batch, as the running ones are updated with them. `zeros`: Moments of the same shape."""
        how = {"train": True, "mask": mask, "momentum": 0.0, "unbiased": self.unbiased, "axis_name": self.axis_name}
        return functional.batch_norm(x, None, None, zeros, **how)[1]

    @abstractmethod
    def _normalize(self) -> Callable:
        """Return the function of x, scale, bias and moments, such as `functional.batch_norm`."""

    def _later(self, value) -> Any:
        """Return `value`, or None during `init`, where the mapped axis does not exist and one example must suffice."""
        return None if self.is_initializing() else value


class BatchNorm(BatchNormBase):
    """Apply `functional.batch_norm`: normalize each feature by the moments of the batch.

    >>> norm = BatchNorm(unbiased=True)  # running moments like PyTorch's
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, new = norm.apply(norm.init(jax.random.key(0), x, train=False), x, train=True, mutable="batch_stats")
    >>> print(y.round(2), new["batch_stats"]["var"].round(2))
    [[-1. -1.]
     [ 1.  1.]] [ 1.1 20.9]
    """

    axis_name: str | None = None  # of a mapped axis over which the moments are taken too
    unbiased: bool = False  # of the running variance

    def _normalize(self):
        return partial(
            functional.batch_norm, unbiased=self._later(self.unbiased), axis_name=self._later(self.axis_name)
        )


class BatchRenorm(BatchNormBase):
    """Apply `functional.batch_renorm`. For a schedule of r_max and d_max, clone the module with other numbers.

    >>> norm = BatchRenorm(r_max=1.0, d_max=0.0)  # batch norm
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> print(norm.init_with_output(jax.random.key(0), x, train=True)[0].round(2))
    [[-1. -1.]
     [ 1.  1.]]
    """

    r_max: float = 3.0
    d_max: float = 5.0
    axis_name: str | None = None
    unbiased: bool = False

    def _normalize(self):
        return partial(
            functional.batch_renorm,
            r_max=self.r_max,
            d_max=self.d_max,
            unbiased=self._later(self.unbiased),
            axis_name=self._later(self.axis_name),
        )


class MovingAverageBatchNorm(BatchNormBase):
    """Apply `functional.moving_average_batch_norm`: batch norm by moments averaged over recent batches.

    >>> norm = MovingAverageBatchNorm(momentum=0.5)
    >>> x = jnp.array([[1.0], [3.0]])
    >>> print(norm.init_with_output(jax.random.key(0), x, train=True)[0].round(2))
    [[0.]
     [2.]]
    """

    axis_name: str | None = None

    def _normalize(self):
        return partial(functional.moving_average_batch_norm, axis_name=self._later(self.axis_name))


class GhostBatchNorm(BatchNormBase):
    """Apply `functional.ghost_batch_norm`: batch norm over groups of a batch.

    >>> norm = GhostBatchNorm(group_size=2)
    >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
    >>> y, _ = jax.jit(partial(norm.init_with_output, train=True))(jax.random.key(0), x)
    >>> print(y.ravel().round(2))
    [-1.  1. -1.  1.]
    """

    group_size: int = 32
    unbiased: bool = False

    def _normalize(self):
        return partial(functional.ghost_batch_norm, group_size=self.group_size, unbiased=self._later(self.unbiased))

    def _moments_of(self, x, mask, zeros):
        """The mean of the groups' moments, without groups that are all padding."""
        mask = jnp.ones(len(x), bool) if mask is None else mask
        groups, mask = (rows.reshape(-1, self.group_size, *rows.shape[1:]) for rows in (x, mask))
        of_group = super()._moments_of
        moments = jax.vmap(lambda rows, mask: of_group(rows, mask, zeros))(groups, mask)
        real = mask.any(1)
        share = real / jnp.maximum(real.sum(), 1)
        return functional.Moments(*(share @ each for each in moments))


class LayerNorm(_Affine):
    """Apply `functional.layer_norm`: normalize over the last axes.

    >>> norm = LayerNorm()
    >>> x = jnp.array([[1.0, 3.0], [10.0, 30.0]])
    >>> print(norm.init_with_output(jax.random.key(0), x)[0].round(2))
    [[-1.  1.]
     [-1.  1.]]
    """

    axes: int = 1  # number of last axes that are normalized together

    @nn.compact
    def __call__(self, x):
        """x [..., *normalized] -> the same shape and dtype."""
        scale, bias = self._scale_and_bias(jnp.shape(x)[-self.axes :])
        return functional.layer_norm(x, scale, bias, axes=self.axes, epsilon=self.epsilon)


class GroupNorm(_Affine):
    """Apply `functional.group_norm`: normalize groups of features of each example.

    >>> norm = GroupNorm(groups=2)
    >>> print(norm.init_with_output(jax.random.key(0), jnp.array([[1.0, 3.0, 10.0, 30.0]]))[0].round(2))
    [[-1.  1. -1.  1.]]
    """

    groups: int = 32
    fit_groups: bool = False  # use the greatest common divisor of `groups` and the number of features

    @nn.compact
    def __call__(self, x):
        """x [batch, *spatial, features] -> the same shape and dtype."""
        scale, bias = self._scale_and_bias(jnp.shape(x)[-1:])
        groups = math.gcd(self.groups, jnp.shape(x)[-1]) if self.fit_groups else self.groups
        return functional.group_norm(x, scale, bias, groups=groups, epsilon=self.epsilon)


class InstanceNorm(_Affine):
    """Apply `functional.instance_norm`: normalize each feature of each example.

    >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
    >>> print(InstanceNorm().init_with_output(jax.random.key(0), x)[0].round(2))
    [[[-1. -1.]
      [ 1.  1.]]]
    """

    @nn.compact
    def __call__(self, x):
        """x [batch, *spatial, features] -> the same shape and dtype."""
        scale, bias = self._scale_and_bias(jnp.shape(x)[-1:])
        return functional.instance_norm(x, scale, bias, epsilon=self.epsilon)


class LocalResponseNorm(nn.Module):
    """Apply `functional.local_response_norm`, across features. It has no parameters.

    >>> norm = LocalResponseNorm(2, alpha=2.0, beta=1.0, k=0.0)
    >>> print(norm.apply({}, jnp.array([2.0, 2.0, 0.0])).round(2))
    [0.5  0.25 0.  ]
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    @nn.compact
    def __call__(self, x):
        """x [..., features] -> the same shape and dtype."""
        return functional.local_response_norm(x, self.size, alpha=self.alpha, beta=self.beta, k=self.k)


class WeightNorm(nn.Module):
    """Give a layer or network the kernels g v / |v| (`functional.weight_norm`): `WeightNorm(nn.Dense(5))(x)`.

    v is the layer's own `kernel`, and g is the `scale` of this module. Unlike in `flax.linen.WeightNorm`, g starts at
    |v|, as in PyTorch. So the output is at first that of the layer alone.

    >>> x = jnp.ones((1, 2))
    >>> variables = jax.eval_shape(WeightNorm(nn.Dense(5)).init, jax.random.key(0), x)
    >>> print(jax.tree.map(jnp.shape, variables["params"]))
    {'layer': {'bias': (5,), 'kernel': (2, 5)}, 'scale': (5,)}
    """

    layer: nn.Module

    @nn.compact
    def __call__(self, *args, **call):
        """Arguments and output of the layer."""

        def kernel(path, v):
            *where, name = (key.key for key in path)
            if name != "kernel":
                return v
            g = self.param("_".join([*where[1:], "scale"]), lambda _: kernel_length(v))
            return functional.weight_norm(v, g)

        run = nn.map_variables(
            lambda layer: layer(*args, **call),
            "params",
            trans_in_fn=lambda variables: jax.tree_util.tree_map_with_path(kernel, variables),
            init=self.is_initializing(),
        )
        return run(self.layer)
