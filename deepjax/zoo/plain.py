"""Plain networks: residual networks without their skips (He et al. 2015, section 4), and multilayer perceptrons."""

from collections.abc import Callable
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from deepjax import functional, initializers
from deepjax.errors import InputError
from deepjax.layers import Conv, Dense, Dropout
from deepjax.units import Norm, Plain, norm_factory, normalize, stack
from deepjax.zoo.network import INITS, Network, check_at_least_one, check_option, check_order, check_rate
from deepjax.zoo.residual import imagenet

ACTIVATIONS = ("relu", "leaky_relu", "elu", "selu", "softplus", "sigmoid", "tanh", "lecun_tanh")
STARTS = ("he", "xavier", "lecun", "gaussian", "gaussian_all", "zeros")
SCALE = 0.01


class DenseUnit(nn.Module):
    """Compute dropout(activation(norm(Dense(x)))) with as many features as x has.

    With order "last" it is dropout(norm(activation(Dense(x)))).
    """

    activation: Callable = functional.relu
    kernel_init: Callable = initializers.he_normal()
    norm: Norm | None = None  # factory
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    order: str = "post"  # or "last"
    bias_init: Callable = initializers.zeros

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, features] -> [batch, features]."""
        x = dense(self, x.shape[-1], "dense")(x)
        x = finish(self, x, train=train, mask=mask, name="norm")
        return Dropout(self.dropout)(x, train=train)


def dense(owner, features, name):
    """Return the hidden layer that a `DenseUnit` or `MLP` owns. It has biases unless a norm follows directly."""
    return Dense(
        features,
        use_bias=owner.norm is None or owner.order == "last",
        kernel_init=owner.kernel_init,
        bias_init=owner.bias_init,
        dtype=owner.dtype,
        name=name,
    )


def finish(owner, x, **call):
    """Normalize and activate x in the order of a `DenseUnit` or `MLP`; `call`: as of `normalize`."""
    if owner.order == "last":
        return normalize(owner.activation(x), owner.norm, **call)
    return owner.activation(normalize(x, owner.norm, **call))


class MLP(Network):
    """Flatten, then `depth` dense layers, of which the last gives the logits."""

    depth: int
    width: int
    activation: Callable = functional.relu
    head_init: Callable = initializers.lecun_normal()
    bias_init: Callable = initializers.zeros
    order: str = "post"  # as of `DenseUnit`
    scan: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, ...] -> see `Network`; its maps are vectors, `first` and `hidden`."""
        x, maps = x.reshape(x.shape[0], -1), {}
        if self.depth > 1:
            x = finish(self, dense(self, self.width, "first")(x), train=train, mask=mask, name="first_norm")
            x = maps["first"] = Dropout(self.dropout)(x, train=train)
        if self.depth > 2:
            unit = DenseUnit(
                self.activation,
                self.kernel_init,
                self.norm,
                self.dropout,
                self.dtype,
                self.order,
                self.bias_init,
            )
            x = maps["hidden"] = stack(unit, self.depth - 2, scan=self.scan, remat=self.remat, name="hidden")(
                x, train=train, mask=mask
            )
        if self.features_only:
            return maps
        if not self.return_logits:
            return x
        head = Dense(
            self.num_classes, kernel_init=self.head_init, bias_init=self.bias_init, dtype=self.dtype, name="head"
        )
        return head(x)


def mlp(
    depth=3,
    num_classes=10,
    *,
    width=256,
    init="he",
    scale=SCALE,
    norm="none",
    order="post",
    activation="relu",
    dropout=0.0,
    scan=True,
    dtype=None,
):
    """Make a multilayer perceptron of `depth` dense layers, for inputs of any shape. Depth 1 is a linear classifier.

    Args:
      depth: dense layers, of which the last gives the logits.
      num_classes: number of logits.
      width: features of every layer except the last.
      init: normal distribution of the kernels: "he" (LeCun's for the last layer, which no ReLU follows), "xavier",
        "lecun", or "gaussian" with standard deviation `scale` at every width. "gaussian_all" draws every parameter with
        that deviation, also the biases, and the scales and shifts of norms. "zeros" is for depth 1.
      scale: standard deviation of init "gaussian" and "gaussian_all".
      norm: normalization of every layer except the last: a name in `units.NORMS`, or a module factory. With "none",
        these layers have biases.
      order: "post": the norm before the activation, where it makes biases useless; "last": after it.
      activation: after every layer except the last, one of `ACTIVATIONS`.
      dropout: probability that an activation is dropped, after every layer except the last.
      scan: run equal layers as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: a depth or width below 1, an unknown init, norm, order or activation, a dropout outside [0, 1], a
        scale that is not positive, or an option that would have no effect.
    """
    check_at_least_one("mlp", depth=depth, width=width, num_classes=num_classes)
    check_option("mlp", "init", init, STARTS)
    check_option("mlp", "activation", activation, ACTIVATIONS)
    check_rate("mlp", dropout=dropout)
    check_order("mlp", order, norm)
    if scale != SCALE and init not in ("gaussian", "gaussian_all"):
        raise InputError(f"mlp: scale {scale} is for init gaussian and gaussian_all, not {init}; leave it out")
    if init == "zeros" and depth > 1:
        raise InputError(f"mlp: init zeros of depth {depth} gives hidden layers no gradient; set depth 1 or init he")
    if depth == 1 and (norm_factory(norm), activation, dropout) != (None, "relu", 0):
        options = f"norm {norm}, activation {activation} and dropout {dropout}"
        raise InputError(f"mlp: depth 1 has no hidden layer for {options}; leave them out, or make depth at least 2")
    return MLP(
        depth,
        width,
        num_classes=num_classes,
        activation=getattr(functional, activation),
        kernel_init=_kernel_init(init, scale),
        head_init=_kernel_init("lecun" if init == "he" else init, scale),
        bias_init=_kernel_init(init, scale) if init == "gaussian_all" else initializers.zeros,
        order=order,
        norm=_drawn(norm_factory(norm), scale) if init == "gaussian_all" else norm,
        dropout=dropout,
        scan=scan,
        dtype=dtype,
        usual_input=(32, 32, 3),
    )


class ConvUnit(nn.Module):
    """Compute activation(Conv(x)) with as many features as x has."""

    activation: Callable
    kernel_init: Callable
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """[batch, H, W, features] -> the same shape."""
        init = self.kernel_init
        conv = Conv(x.shape[-1], (3, 3), use_bias=True, kernel_init=init, dtype=self.dtype, name="conv")
        return self.activation(conv(x))


class PlainCNN(Network):
    """A strided convolution, `depth` - 2 equal 3x3 convolutions, global average pool, linear head."""

    depth: int
    width: int
    stem_stride: int
    activation: Callable
    scan: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> see `Network`; its maps are `stem` and `hidden`."""
        self.check_images(x)
        options = {"use_bias": True, "dtype": self.dtype, "kernel_init": INITS["he_fan_in"], "name": "stem"}
        stem = Conv(self.width, (self.stem_stride + 1,) * 2, self.stem_stride, self.stem_stride // 2, **options)
        maps = {"stem": self.activation(stem(x))}
        unit = ConvUnit(self.activation, self.kernel_init, self.dtype)
        hidden = stack(unit, self.depth - 2, scan=self.scan, remat=self.remat, name="hidden")
        maps["hidden"] = hidden(maps["stem"], train=train, mask=mask)
        if self.features_only:
            return maps
        return self.classify(functional.global_avg_pool(maps["hidden"]), train=train)


def plain_cnn(
    depth=100, num_classes=10, *, width=16, stem_stride=4, activation="relu", init="he", scan=True, dtype=None
):
    """Make a plain convolutional network, which Xiao et al. 2018 train with 10,000 layers (arXiv 1806.05393).

    It has neither skips nor norms, so it trains only from suitable initial values. `init_from_data.auto`, or --init
    auto, finds them at any depth.

    Args:
      depth: layers: convolutions and the head; at least 3.
      num_classes: number of logits.
      width: features of every convolution.
      stem_stride: stride of the first convolution, in pixels. Its window is one pixel wider.
      activation: one of `ACTIVATIONS`, or "tailored_relu", whose slope `functional.tailored_slope` gives for the depth.
      init: initializer of the kernels of the equal convolutions, a key of `network.INITS`.
      scan: run equal convolutions as one scan; False unrolls them.
      dtype: dtype of the computation.

    Raises:
      InputError: a depth below 3, a width, stem_stride or num_classes below 1, an unknown activation or init.
    """
    check_at_least_one("plain_cnn", num_classes=num_classes, width=width, stem_stride=stem_stride)
    if depth < 3:
        raise InputError(f"plain_cnn: depth {depth} must be at least 3, for stem, one convolution and head")
    check_option("plain_cnn", "activation", activation, (*ACTIVATIONS, "tailored_relu"))
    check_option("plain_cnn", "init", init, INITS)
    return PlainCNN(
        depth,
        width,
        stem_stride,
        _tailored(depth) if activation == "tailored_relu" else getattr(functional, activation),
        scan,
        num_classes=num_classes,
        norm="none",
        kernel_init=INITS[init],
        dtype=dtype,
        usual_input=(28, 28, 1),
        min_size=stem_stride,
    )


@cache  # so that equal networks are equal
def _tailored(depth):
    return partial(functional.tailored_relu, slope=functional.tailored_slope(depth))


@cache  # so that equal networks are equal
def _kernel_init(init, scale):
    return {
        "he": initializers.he_normal,
        "xavier": initializers.xavier_normal,
        "lecun": initializers.lecun_normal,
        "gaussian": partial(initializers.gaussian, scale),
        "gaussian_all": partial(initializers.gaussian, scale),
        "zeros": lambda: initializers.zeros,
    }[init]()


@cache
def _drawn(norm, scale):
    """Return the factory of norms whose scales and shifts are drawn, too."""
    start = _kernel_init("gaussian", scale)
    return None if norm is None else partial(norm, scale_init=start, bias_init=start)


plain = partial(imagenet, join=Plain, branch_init="default", bottleneck=False, paper_stride=False, widen=1, groups=1)

MODELS = {
    "mlp": mlp,
    "plain_cnn": plain_cnn,
    "plain18": partial(plain, (2, 2, 2, 2)),
    "plain34": partial(plain, (3, 4, 6, 3)),
}
