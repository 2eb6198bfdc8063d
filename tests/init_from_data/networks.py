"""Networks of Flax's own modules, on which initialization from data is tested."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(7)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(30, bias_init=nn.initializers.normal(0.1))(x))
        return nn.Dense(10)(x)


class Mixed(nn.Module):
    """Every kind of layer, in branches: strides, groups, transposed and depthwise convolutions, three and one axes."""

    @nn.compact
    def __call__(self, x):  # [batch, 8, 8, 6]
        a = nn.relu(nn.Conv(12, (3, 3), strides=2, padding="VALID")(x))
        a = nn.ConvTranspose(6, (2, 2), strides=(2, 2))(a)
        b = nn.relu(nn.Conv(12, (3, 3), feature_group_count=3, name="grouped")(x))
        b = nn.relu(nn.Conv(24, (3, 3), feature_group_count=12, name="depthwise")(b))  # two outputs of each input
        b = nn.avg_pool(b, (3, 3))
        c = nn.relu(nn.Conv(6, (2, 2, 2), name="volume")(x.reshape(len(x), 4, 4, 4, 6)))
        c = nn.Conv(7, (3,), padding=1, name="sequence")(c.reshape(len(x), 16, -1))
        joined = jnp.concatenate([a, b], -1).mean((1, 2))
        hidden = nn.DenseGeneral((3, 4))(nn.tanh(jnp.concatenate([joined, c.mean(1)], -1)))
        return {"maps": a, "logits": nn.Dense(5)(nn.relu(hidden.reshape(len(x), -1)))}


class PreactResNet(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3))(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        y = nn.Conv(8, (3, 3), use_bias=False)(y)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        x = x + nn.Conv(8, (3, 3), use_bias=False)(y)
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2))))


class Sharing(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(x.shape[-1])
        for _ in range(3):
            x = nn.relu(shared(x))
        return nn.Dense(2)(x)


class Unit(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(x.shape[-1])(x)), None


def scan(unit, depth, **options):
    lifted = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}} | options
    return nn.scan(unit, length=depth, **lifted)


class Scanned(nn.Module):
    depth: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x)
        x, _ = scan(nn.remat(Unit), self.depth)()(x, None)
        return nn.Dense(3)(x)


class Recurrent(nn.Module):
    """One layer for all the steps of a scan: its kernel cannot depend on what happens inside."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x)
        x, _ = scan(Unit, 5, variable_axes={}, variable_broadcast="params", split_rngs={"params": False})()(x, None)
        return nn.Dense(4)(x)


class Lanes(nn.Module):
    """A mapped layer: three kernels for one input, or one kernel for all examples."""

    shared: bool

    @nn.compact
    def __call__(self, x):  # [batch, features]
        dense = nn.vmap(
            nn.Dense,
            in_axes=0 if self.shared else None,
            variable_axes={"params": None} if self.shared else {"params": 0},
            split_rngs={"params": not self.shared},
            axis_size=None if self.shared else 3,
        )
        return dense(9)(x)


class Homemade(nn.Module):
    """A layer of a user's own, with its activation inside."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (x.shape[-1], 7))
        return nn.softplus(x @ kernel)


class Encoder(nn.Module):
    """A Transformer encoder of Flax's own modules."""

    @nn.compact
    def __call__(self, tokens, *, train):
        x = nn.Embed(50, 16)(tokens)
        x = x + nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, deterministic=not train)(nn.LayerNorm()(x))
        x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return nn.Dense(7)(x.mean(1))


def features(batch=64, size=12, seed=0):
    return 2 * np.random.default_rng(seed).standard_normal((batch, size), np.float32) + np.float32(0.3)


def spoiled():
    """Features of which one is not finite."""
    x = features()
    x[0, 0] = np.nan
    return x


def images(batch=16, channels=3, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 8, 8, channels), np.float32) - np.float32(0.5)


TOKENS = np.random.default_rng(3).integers(0, 50, (8, 10))
NETS = {
    "mixed": (Mixed(), images(channels=6), {}),
    "preact": (PreactResNet(), images(), {"train": True}),
    "sharing": (Sharing(), features(), {}),
    "scanned": (Scanned(), features(), {}),
    "encoder": (Encoder(), TOKENS, {"train": False}),
}
