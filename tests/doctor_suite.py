"""Broken networks with the cause that each has, and their healthy twins, in plain Flax.

    python tests/doctor_suite.py [NAME ...]

examines all of them, and prints which cause was named first: the confusion table of docs/doctor.md.
"""

import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.doctor import examine

INIT = nn.initializers
CLASSES = 4


def data(n=256, features=16, seed=0, scale=1.0, offset=0.0):
    """Classes that a small network learns: signs of two random projections."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    sides = x @ rng.normal(size=(features, 2)) > 0
    return (x * scale + offset).astype(np.float32), (2 * sides[:, 0] + sides[:, 1]).astype(np.int32)


def images(n=128, size=8, seed=0):
    """Return pictures of four classes: one random pattern per class, and noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=n)
    x = rng.normal(size=(CLASSES, size, size, 3))[y] + rng.normal(size=(n, size, size, 3))
    return x.astype(np.float32), y.astype(np.int32)


def cross_entropy(p, t):
    return optax.softmax_cross_entropy_with_integer_labels(p, t).mean()


def likelihood(p, t):
    """Cross entropy of probabilities."""
    return -jnp.log(jnp.clip(jnp.take_along_axis(p, t[:, None], 1), 1e-7, 1)).mean()


class MLP(nn.Module):
    """Layers of one width, with everything that the causes need to change."""

    depth: int = 4
    width: int = 64
    act: Any = nn.relu
    kernel: Any = INIT.he_normal()
    bias: Any = INIT.zeros
    outputs: int = CLASSES
    final: Any = lambda x: x
    norm: str = ""  # "batch", "frozen", "always"
    dropout: float = 0.0
    use_bias: bool = True
    residual: float = 0.0
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train: bool = False):
        for i in range(self.depth):
            y = nn.Dense(self.width, kernel_init=self.kernel, bias_init=self.bias, use_bias=self.use_bias)(x)
            if self.dropout:
                y = nn.Dropout(self.dropout, deterministic=not train)(y)
            if self.norm:
                average = {"batch": not train, "frozen": True, "always": False}[self.norm]
                y = nn.BatchNorm(use_running_average=average, momentum=self.momentum)(y)
            y = self.act(y)
            x = x + self.residual * y if self.residual and i else y
        return self.final(nn.Dense(self.outputs, kernel_init=self.kernel)(x))


class Conv(nn.Module):
    """A small convolutional network."""

    final: Any = lambda x: x
    late_dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        for width in (16, 32):
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.Dense(CLASSES)(nn.relu(nn.Dense(32)(x.reshape(len(x), -1))))
        x = nn.Dropout(self.late_dropout, deterministic=not train)(x) if self.late_dropout else x
        return self.final(x)


class Deep(nn.Module):
    """A scan over layers with batch normalization, with a skip around each where `branch` is above 0."""

    depth: int
    branch: float

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(64)(x)
        split = {"params": True}
        layer = nn.scan(_Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs=split, length=self.depth)
        x, _ = layer(self.branch, train)(x, None)
        return nn.Dense(CLASSES)(x)


class _Layer(nn.Module):
    branch: float
    train: bool

    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(64, use_bias=False, kernel_init=INIT.he_normal())(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(y))
        return (x + self.branch * y if self.branch else y), None


class Disconnected(nn.Module):
    """A network with a branch that gets no gradient where `blocked`."""

    blocked: bool

    @nn.compact
    def __call__(self, x):
        side = nn.relu(nn.Dense(32)(x))
        side = jax.lax.stop_gradient(side) if self.blocked else side
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(32)(x)) + side)


class Logarithm(nn.Module):
    """A network that takes a logarithm of its inputs, of their positive part where `safe`."""

    safe: bool

    @nn.compact
    def __call__(self, x):
        x = jnp.log(jnp.maximum(x, 0) + 1.0) if self.safe else jnp.log(x)
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(32)(x)))


class Recurrent(nn.Module):
    """A GRU over words, where 0 is padding; the mean of its outputs over all steps, or over the real ones."""

    masked: bool

    @nn.compact
    def __call__(self, words):
        real = (words > 0)[..., None]
        lengths = real.sum((1, 2)) if self.masked else None
        y = nn.RNN(nn.GRUCell(16))(nn.Embed(20, 8)(words), seq_lengths=lengths)
        y = (y * real).sum(1) / real.sum(1) if self.masked else y.mean(1)
        return nn.Dense(2)(y)


def sentences(n=256, steps=24, seed=0):
    """Return sequences of 3 to `steps` words with padding of 0; the class is whether most words are above 10."""
    rng = np.random.default_rng(seed)
    lengths, y = rng.integers(3, steps + 1, size=n), rng.integers(2, size=n)
    words = rng.integers(1, 11, size=(n, steps)) + 9 * y[:, None] * (rng.random((n, steps)) < 0.7)
    words[np.arange(steps) >= lengths[:, None]] = 0
    return words.astype(np.int32), y.astype(np.int32)


def stale(momentum_moments):
    """Return variables of an MLP with batch norm whose running means are given."""
    model = MLP(norm="batch")
    variables = jax.jit(model.init)(jax.random.key(3), data()[0])
    means = {
        name: {**moments, "mean": moments["mean"] + momentum_moments}
        for name, moments in variables["batch_stats"].items()
    }
    return {"params": variables["params"], "batch_stats": means}


def frozen(everything):
    """Return Adam, for the first layer too where `everything`."""

    def label(path, _):
        return "on" if everything or path[0].key != "Dense_0" else "off"

    def labels(params):
        return jax.tree_util.tree_map_with_path(label, params)

    return optax.multi_transform({"on": optax.adam(1e-3), "off": optax.set_to_zero()}, labels)


SGD, ADAM = optax.sgd(0.1), optax.adam(3e-3)
DEEP = {"optimizer": optax.sgd(0.005, 0.9), "epochs": 60}
X, Y = data()


def _case(broken, healthy=None, **shared):
    """Return (arguments of the broken network, those of its twin); what both share is given once."""
    base = {"model": MLP(), "batch": (X, Y), "loss": cross_entropy, "optimizer": ADAM, "batch_size": 32, "epochs": 20}
    return {**base, **shared, **broken}, {**base, **shared, **(healthy or {})}


def _shuffled():
    return X, np.random.default_rng(1).permutation(Y)


def _products():
    return (X[:, 0] * X[:, 1] > 0).astype(np.int32)


def _binary(p, t):
    return optax.sigmoid_binary_cross_entropy(p[:, 0], t).mean()


CASES = {
    "exploding_activations": _case({"model": MLP(20, kernel=INIT.normal(1.0))}, {"model": MLP(20)}, **DEEP),
    "vanishing_activations": _case({"model": MLP(12, kernel=INIT.normal(0.02))}, {"model": MLP(12)}, **DEEP),
    "wrong_fan": _case({"model": MLP(30, kernel=INIT.glorot_normal())}, {"model": MLP(30)}, **DEEP),
    "vanishing_gradients": _case({"model": MLP(12, act=nn.sigmoid, kernel=INIT.glorot_normal())}, {"model": MLP(12)}),
    "residual_dominates": _case(
        {"model": MLP(16, residual=3.0)}, {"model": MLP(16, residual=0.25)}, optimizer=optax.sgd(0.05)
    ),
    "shattered_gradients": _case(
        {"model": Deep(50, 0.0)}, {"model": Deep(50, 0.15)}, optimizer=optax.sgd(0.05)
    ),
    "dead_relus": _case({"model": MLP(bias=INIT.constant(-20.0))}),
    "saturated_activations": _case(
        {"model": MLP(8, act=nn.tanh, kernel=INIT.normal(2.0))},
        {"model": MLP(8, act=nn.tanh, kernel=INIT.glorot_normal())},
        optimizer=SGD,
    ),
    "symmetric_initialization": _case({"model": MLP(kernel=INIT.constant(0.1))}),
    "collapsed_features": _case({"model": MLP(6, bias=INIT.constant(100.0))}, {"model": MLP(6)}, optimizer=SGD),
    "batch_norm_small_batch": _case({"batch_size": 2}, {"batch_size": 32}, model=MLP(norm="batch", use_bias=False)),
    "batch_norm_mode": _case(
        {"model": MLP(norm="frozen", use_bias=False)}, {"model": MLP(norm="batch", use_bias=False)}
    ),
    "batch_norm_mode (always)": _case(
        {"model": MLP(norm="always", use_bias=False)}, {"model": MLP(norm="batch", use_bias=False)}
    ),
    "stale_moments": _case({"variables": stale(20.0)}, {"variables": stale(0.0)}, model=MLP(norm="batch")),
    "batch_norm_momentum": _case(
        {"model": MLP(norm="batch", use_bias=False, momentum=0.9999)},
        {"model": MLP(norm="batch", use_bias=False)},
        batch=data(scale=5.0, offset=10.0),
    ),
    "bias_before_norm": _case({"model": MLP(norm="batch")}, {"model": MLP(norm="batch", use_bias=False)}),
    "dropout_before_norm": _case(
        {"model": MLP(norm="batch", use_bias=False, dropout=0.3)}, {"model": MLP(norm="batch", use_bias=False)}
    ),
    "learning_rate_too_high": _case({"optimizer": optax.sgd(30.0)}, {"optimizer": SGD}),
    "learning_rate_too_high (adam)": _case({"optimizer": optax.adam(1.0)}),
    "learning_rate_too_low": _case({"optimizer": optax.sgd(1e-6)}, {"optimizer": SGD}),
    "too_few_steps": _case({"epochs": 1, "batch_size": 128}, {"epochs": 30}, optimizer=optax.adam(1e-3)),
    "inputs_not_scaled": _case(
        {"batch": data(scale=80.0, offset=120.0)}, {"batch": data()}, model=MLP(2), optimizer=SGD
    ),
    "shuffled_labels": _case({"batch": _shuffled()}),
    "constant_labels": _case({"batch": (X, np.zeros_like(Y))}),
    "wrong_label_encoding": _case({"batch": (X, Y + 1)}),
    "wrong_output_activation": _case({"model": MLP(final=nn.softmax)}, epochs=10),
    "wrong_output_activation (conv)": _case(
        {"model": Conv(nn.softmax)}, {"model": Conv()}, batch=images(), epochs=10
    ),
    "missing_output_activation": _case({"loss": likelihood}, {"loss": likelihood, "model": MLP(final=nn.softmax)}),
    "dropout_misplaced": _case({"model": Conv(late_dropout=0.5)}, {"model": Conv()}, batch=images(), epochs=10),
    "loss_reduction": _case({"loss": lambda p, t: 64 * cross_entropy(p, t) * (len(p) / 64)}, optimizer=SGD),
    "weight_decay_on_norm": _case(
        {"optimizer": optax.adamw(3e-3, weight_decay=1e-3)}, model=MLP(norm="batch", use_bias=False)
    ),
    "regularization_too_strong": _case({"optimizer": optax.adamw(3e-3, weight_decay=10.0)}),
    "padding_leakage": _case({"model": Recurrent(False)}, {"model": Recurrent(True)}, batch=sentences()),
    "no_gradient": _case({"model": Disconnected(True)}, {"model": Disconnected(False)}),
    "non_finite": _case({"model": Logarithm(False)}, {"model": Logarithm(True)}),
    "frozen_layers": _case({"optimizer": frozen(False)}, {"optimizer": frozen(True)}, epochs=40),
    "accumulation_sums": _case(
        {"optimizer": optax.MultiSteps(optax.sgd(0.1), 8, use_grad_mean=False)},
        {"optimizer": optax.MultiSteps(optax.sgd(0.5), 4)},
        epochs=100,
    ),
    "missing_hidden_activation": _case({"model": MLP(act=lambda x: x)}, batch=(X, _products()), epochs=60),
    "wrong_loss": _case(
        {"loss": lambda p, t: jnp.mean((p - t) ** 2)},
        {"loss": lambda p, t: jnp.mean((p[:, 0] - t) ** 2)},
        model=MLP(outputs=1),
        batch=(X, X[:, 0] * 2 + X[:, 1]),
        epochs=40,
    ),
    "wrong_output_units": _case({"model": MLP(outputs=1, final=nn.sigmoid), "loss": _binary}),
}  # fmt: skip


def examined(arguments, key=0, budget=8.0):
    """Return the report on one network."""
    arguments = dict(arguments)
    model, batch, loss = (arguments.pop(name) for name in ("model", "batch", "loss"))
    return examine(model, batch, loss, key=jax.random.key(key), budget=budget, **arguments)


def main(names):
    """Print which cause is named first for every network, and every finding on a healthy twin."""
    right = alarms = learns = 0
    chosen = {name: case for name, case in CASES.items() if not names or name.partition(" ")[0] in names}
    for name, case in chosen.items():
        broken, healthy = (examined(each) for each in case)
        code = name.partition(" ")[0]
        first = broken.findings[0].code if broken.findings else "nothing"
        right, alarms = right + (first == code), alarms + healthy.serious
        cured = broken.cure is not None and broken.cure.learns
        learns += cured
        others = ", ".join(f"{f.code} ({f.severity})" for f in healthy.findings) or "nothing"
        named = ", ".join(f"{f.code} ({f.severity[0]})" for f in broken.findings)
        mark = "right" if first == code else "WRONG"
        twin = f"twin ({healthy.planned.quality_before:.2f}): {others}"
        print(f"{name}: {mark}: {named}; {'learns' if cured else 'no cure'}; {twin}", flush=True)
        jax.clear_caches()
    print(f"first cause right: {right} of {len(chosen)}; alarms on twins: {alarms}; learns with the remedies: {learns}")


if __name__ == "__main__":
    main(sys.argv[1:])
