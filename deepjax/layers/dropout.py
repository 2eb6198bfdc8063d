"""The dropout family as Linen modules: each draws from the stream `dropout`, and only where it needs a key."""

import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from deepjax import functional, initializers
from deepjax.errors import InputError


class Dropout(nn.Module):
    """Sets entries to zero with probability `rate`; see `functional.dropout`.

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
    """Drops whole feature maps with probability `rate`; see `functional.spatial_dropout`."""

    rate: float
    scaling: str = "inverted"
    spatial: int | None = None

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x [batch, *spatial, features] -> the same shape and dtype."""
        key = self.make_rng("dropout") if train and _may_drop(self.rate) else None
        return functional.spatial_dropout(key, x, self.rate, train=train, scaling=self.scaling, spatial=self.spatial)


class AlphaDropout(nn.Module):
    """Dropout for SELU networks, which keeps mean 0 and variance 1; see `functional.alpha_dropout`."""

    rate: float

    @nn.compact
    def __call__(self, x, *, train: bool):
        """x of any shape -> the same shape and dtype."""
        key = self.make_rng("dropout") if train and _may_drop(self.rate) else None
        return functional.alpha_dropout(key, x, self.rate, train=train)


class DropPath(nn.Module):
    """Drops a residual branch with probability 1 - `survival`; see `functional.drop_path`.

    Units of a scan share one module, so a survival of their own is an argument of the call:

    >>> x, survival = jnp.ones((4, 2)), functional.linear_survival(jnp.arange(1, 4), 3)
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, *, train):
    ...         body = lambda drop, x, survival: (x + drop(x, train=train, survival=survival), None)
    ...         return nn.scan(body, split_rngs={"dropout": True})(DropPath(), x, survival)[0]
    >>> Net().apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}).shape
    (4, 2)
    """

    survival: float | None = None
    scaling: str = "inverted"
    per: str = "example"

    @nn.compact
    def __call__(self, branch, *, train: bool, survival: float | jax.Array | None = None):
        """Branch [batch, ...] -> the same shape and dtype. `survival` goes before the module's own."""
        survival = self.survival if survival is None else survival
        if survival is None:
            raise InputError("DropPath: survival is None; give it to the module or to the call")
        key = self.make_rng("dropout") if train and _may_drop(1 - survival) else None
        return functional.drop_path(key, branch, survival, train=train, scaling=self.scaling, per=self.per)


class ShakeShake(nn.Module):
    """Mixes two residual branches by random shares; see `functional.shake_shake`."""

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
    """A dense layer that drops connections with probability `rate`; see `functional.drop_connect`.

    Its samples at test come from the stream `dropout` where one is given. Where none is, as in evaluation, they come
    from `seed` and the layer's name, the same for every example: a prediction depends on its example alone, neither on
    the batch around it nor on the run.

    >>> layer, x = DropConnectDense(4), jnp.ones((2, 3))
    >>> variables = layer.init(jax.random.key(0), x, train=False)
    >>> y = layer.apply(variables, x, train=False)
    >>> y.shape, bool((y == layer.apply(variables, x, train=False)).all())
    ((2, 4), True)
    """

    features: int
    rate: float = 0.5
    activation: Callable | None = functional.relu
    samples: int = 100
    inference: str = "moments"
    seed: int = 0
    use_bias: bool = True
    kernel_init: Callable = initializers.he_normal()
    bias_init: Callable = initializers.zeros
    dtype: jnp.dtype | None = None  # of the computation; None: as the input's and the parameters'

    @nn.compact
    def __call__(self, x, *, train: bool):
        """[batch, ..., features_in] -> [batch, ..., features], after the activation."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
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


def _may_drop(rate):
    """Whether a key is needed; of an array nobody may know, as it may be traced."""
    return isinstance(rate, jax.Array) or rate > 0
