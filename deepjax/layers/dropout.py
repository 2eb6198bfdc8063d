"""The dropout family as Linen modules. They use the PRNG stream `dropout`, and only if something is random."""

import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from deepjax import functional, initializers
from deepjax.errors import InputError


class Dropout(nn.Module):
    """Apply `functional.dropout`: set entries to zero with probability `rate`.

    >>> x = jnp.ones((2, 3))
    >>> Dropout(0.5).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}).shape
    (2, 3)
    """

    rate: float
    scaling: str = "inverted"

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x of any shape -> the same shape and dtype."""
        key = self.make_rng("dropout") if train and _may_drop(self.rate) else None
        return functional.dropout(key, x, self.rate, train=train, scaling=self.scaling)


class SpatialDropout(nn.Module):
    """Apply `functional.spatial_dropout`: set whole feature maps to zero with probability `rate`.

    >>> x = jnp.ones((2, 4, 4, 3))
    >>> y = SpatialDropout(0.5).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    >>> bool((y == y[:, :1, :1]).all())
    True
    """

    rate: float
    scaling: str = "inverted"
    spatial: int | None = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x [batch, *spatial, features] -> the same shape and dtype."""
        key = self.make_rng("dropout") if train and _may_drop(self.rate) else None
        return functional.spatial_dropout(key, x, self.rate, train=train, scaling=self.scaling, spatial=self.spatial)


class AlphaDropout(nn.Module):
    """Apply `functional.alpha_dropout`, which preserves mean 0 and variance 1, for SELU networks.

    >>> AlphaDropout(0.5).apply({}, jnp.ones((2, 3)), train=True, rngs={"dropout": jax.random.key(0)}).shape
    (2, 3)
    """

    rate: float

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x of any shape -> the same shape and dtype."""
        key = self.make_rng("dropout") if train and _may_drop(self.rate) else None
        return functional.alpha_dropout(key, x, self.rate, train=train)


class DropPath(nn.Module):
    """Apply `functional.drop_path`: drop a residual branch with probability 1 - `survival`.

    The units of a scan share one module. Pass a survival per unit as an argument of the call:

    >>> x, survival = jnp.ones((4, 2)), functional.linear_survival(jnp.arange(1, 4), 3)
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, *, train):
    ...         body = lambda drop, x, survival: (x + drop(x, train=train, survival=survival), None)
    ...         return nn.scan(body, split_rngs={"dropout": True})(DropPath(), x, survival)[0]
    >>> jax.eval_shape(lambda: Net().apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})).shape
    (4, 2)
    """

    survival: float | None = None
    scaling: str = "inverted"
    per: str = "example"

    @nn.compact
    def __call__(self, branch, *, train: bool, survival: float | jax.Array | None = None):
        """Branch [batch, ...] -> the same shape and dtype. `survival` overrides the module's."""
        survival = self.survival if survival is None else survival
        if survival is None:
            raise InputError("DropPath: survival None must be a number; pass it to the module or to the call")
        key = self.make_rng("dropout") if train and _may_drop(1 - survival) else None
        return functional.drop_path(key, branch, survival, train=train, scaling=self.scaling, per=self.per)


class ShakeShake(nn.Module):
    """Apply `functional.shake_shake`: mix two residual branches in a random ratio.

    >>> a, b = jnp.ones((4, 2)), jnp.zeros((4, 2))
    >>> print(ShakeShake().apply({}, a, b, train=False)[0])
    [0.5 0.5]
    """

    forward: str = "shake"
    backward: str = "shake"
    per: str = "image"

    @nn.compact
    def __call__(self, a, b, *, train: bool):
        """Two branches [batch, ...] -> one of the same shape and dtype."""
        draws = train and "shake" in (self.forward, self.backward)
        return functional.shake_shake(
            self.make_rng("dropout") if draws else None,
            a,
            b,
            train=train,
            forward=self.forward,
            backward=self.backward,
            per=self.per,
        )


class DropConnectDense(nn.Module):
    """Apply `functional.drop_connect`: a dense layer that drops connections with probability `rate`.

    Parameters: `kernel` [features_in, features] and `bias` [features]. In evaluation the layer draws its samples from
    the PRNG stream `dropout` if there is one. Otherwise it draws them from `seed` and its path in the model, the same
    for every example, so that a prediction depends only on its example and not on the rest of the batch or on the run.

    >>> layer, x = DropConnectDense(4), jnp.ones((2, 3))
    >>> variables = jax.jit(lambda key: layer.init(key, x, train=False))(jax.random.key(0))
    >>> predict = jax.jit(lambda: layer.apply(variables, x, train=False))
    >>> predict().shape, bool((predict() == predict()).all())
    ((2, 4), True)
    """

    features: int
    rate: float = 0.5
    activation: Callable | None = functional.relu
    samples: int = 100
    inference: str = "moments"
    seed: int = 0
    use_bias: bool = True
    kernel_init: Callable | None = None  # None: normal, variance 2 / (features_in * (1 - rate))
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: the dtype that x and the parameters promote to

    @nn.compact
    def __call__(self, x, *, train: bool):
        """[batch, ..., features_in] -> [batch, ..., features], after the activation."""
        kernel = self.param("kernel", self.kernel_init or self._he_normal, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)

        def layer(key, x):
            return functional.drop_connect(
                key,
                x,
                kernel,
                bias,
                self.rate,
                train=train,
                activation=self.activation,
                inference=self.inference,
                samples=self.samples,
            )

        if not _may_drop(self.rate) or (self.inference == "mean" and not train):
            return layer(None, x)
        if train or self.has_rng("dropout"):
            return layer(self.make_rng("dropout"), x)
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32("/".join(self.path).encode()))
        return jnp.vectorize(lambda x: layer(key, x), signature="(i)->(o)")(x)

    def _he_normal(self, key, shape, dtype):
        """Draw as `he_normal`, for the connections that are kept: a sum over all of them would vary less."""
        keep = jnp.where(self.rate < 1, 1 - self.rate, 1)
        return initializers.he_normal()(key, shape, dtype) / jnp.sqrt(keep).astype(dtype)


def _may_drop(rate):
    """Return whether a PRNG key may be needed. An array may be traced, so its value is not read."""
    return isinstance(rate, jax.Array) or rate > 0
