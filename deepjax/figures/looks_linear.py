"""Networks of CReLUs that are linear at first learn at 198 layers, where other networks without skips do not."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import functional, init_from_data, initializers
from deepjax.figures.dense_units import DenseUnits
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.layers import Dense
from deepjax.runs.plots import new_figure
from deepjax.trace import call_arguments
from deepjax.units import stack

TITLE = "Test accuracy by depth, with looks-linear initialization and without"
SOURCE = "Going deeper: smart initialization, looks linear (Balduzzi et al. 2017, figure 6)"
USES = ("full",)
DEPTHS, FULL_DEPTHS = (6, 54, 198), (6, 14, 30, 54, 102, 198)
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
WIDTH, BATCH, MOMENTUM, STEPS, FULL_STEPS = 32, 50, 0.9, 120, 600
KINDS = ("CReLU with LL", "residual", "CReLU without LL", "ReLU", "linear")
ACTIVATIONS = {"CReLU": functional.crelu, "ReLU": functional.relu, "linear": lambda x: x}


@dataclass(frozen=True)
class Numbers:
    """{kind: one value for each depth}, at the rate at which the training loss ends lowest."""

    depths: tuple[int, ...]
    accuracies: dict[str, tuple[float, ...]]  # on the test set, at the end
    losses: dict[str, tuple[float, ...]]  # training loss, mean of the last tenth of the updates; NaN as infinity
    rates: dict[str, tuple[float, ...]]


class Layer(nn.Module):
    """Compute Dense(activation(x)), with as many features as x has."""

    activation: Any
    kernel_init: Any

    @nn.compact
    def __call__(self, x):
        """[batch, features] -> [batch, features]."""
        return Dense(x.shape[-1], kernel_init=self.kernel_init, name="dense")(self.activation(x))


class Deep(nn.Module):
    """`depth` dense layers without skips and normalization, with an activation between each two."""

    depth: int
    kind: str  # a name of ACTIVATIONS

    @nn.compact
    def __call__(self, x):
        """x [batch, ...] -> logits [batch, 10]."""
        activation = ACTIVATIONS[self.kind]
        # A CReLU has twice as many features as its input, so that He's rule keeps the size of the signal there too.
        kernel_init = nn.initializers.orthogonal() if self.kind == "linear" else initializers.he_normal()
        x = Dense(WIDTH, name="first")(x.reshape(len(x), -1))
        x = stack(Layer(activation, kernel_init), self.depth - 2, name="layers")(x, train=True)
        return Dense(10, name="head")(activation(x))


def numbers(settings):
    """Return Numbers: one network of each kind, depth and rate, 120 updates on digits; in full 600, and more depths.

    The seed draws initial weights and the order of examples. Linear layers start orthogonal, as those of LL; the
    others, and those of CReLU without LL, with He's weights. Residual networks have batch normalization.
    """
    depths, steps = (FULL_DEPTHS, FULL_STEPS) if settings.full else (DEPTHS, STEPS)
    examples, test = load("digits")
    first, order = jax.random.split(jax.random.key(settings.seed))
    found = np.array([_best(depth, first, order, examples, test, steps) for depth in depths])  # [depths, kinds, 3]
    accuracies, losses, rates = ({kind: plain(found[:, k, i]) for k, kind in enumerate(KINDS)} for i in range(3))
    return Numbers(depths, accuracies, losses, rates)


def _best(depth, first, order, examples, test, steps):
    """Return accuracy, last training loss and rate of each kind, at the rate whose loss ends lowest: [KINDS, 3]."""
    found = {}
    for network, kinds in _networks(depth):
        starts = [_start(network, kind, first, examples) for kind in kinds]
        accuracies, losses = _train(network, starts, examples, test, order, steps)
        for kind, accuracy, loss in zip(kinds, accuracies, losses):
            best = loss.argmin()
            found[kind] = accuracy[best], loss[best], RATES[best]
    return [found[kind] for kind in KINDS]


def _networks(depth):
    """Return pairs of a network and its kinds: kinds that differ only in their start share a program."""
    deep = [(Deep(depth, name), [kind for kind in KINDS if kind.split()[0] == name]) for name in ACTIVATIONS]
    return [(DenseUnits((depth - 2) // 2, width=WIDTH), ["residual"]), *deep]


def _start(network, kind, key, examples):
    """Return the variables before the first update."""
    if kind == "CReLU with LL":
        return init_from_data.looks_linear(network, key, examples.inputs[:BATCH])
    arguments = call_arguments(network, train=False)
    return jax.jit(lambda: network.init(key, examples.inputs[:1], **arguments))()


def _train(network, starts, examples, test, key, steps):
    """Return test accuracies and last training losses, float64 [starts, RATES]; a NaN loss is infinity."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)

    def run(pair):
        start, rate = pair
        plan = {"optimizer": optax.sgd(rate, MOMENTUM), "steps": steps, "batch_size": BATCH, "every": steps}
        variables = jax.tree.map(lambda leaf: leaf[start], stacked)
        curves = train(network, variables, examples, test, key, **plan)
        return 1 - curves.errors[-1], curves.losses[-(steps // 10) :].mean()

    pairs = np.repeat(np.arange(len(starts)), len(RATES)), np.tile(np.asarray(RATES, np.float32), len(starts))
    found = jax.jit(lambda pairs: jax.lax.map(run, pairs))(pairs)
    accuracies, losses = (np.asarray(each, float).reshape(len(starts), len(RATES)) for each in found)
    return accuracies, np.nan_to_num(losses, nan=np.inf)


def table(numbers):
    """Return accuracy and rate by depth."""
    header = ("network", *(f"{depth} layers" for depth in numbers.depths), "rates")
    return header, [
        (kind, *(f"{each:.1%}" for each in accuracies), ", ".join(f"{rate:g}" for rate in numbers.rates[kind]))
        for kind, accuracies in numbers.accuracies.items()
    ]


def claim(numbers):
    """Return whether all kinds learn in shallow networks, and CReLUs and ReLUs in deep ones with LL or skips only."""
    shallow = min(accuracies[0] for accuracies in numbers.accuracies.values())
    with_ll, residual, without, relu, linear = (numbers.accuracies[kind][-1] for kind in KINDS)
    text = (
        f"with {numbers.depths[0]} layers, all networks have a test accuracy of {shallow:.0%} or more (at least 80 %); "
        f"with {numbers.depths[-1]} layers that of CReLUs is {with_ll:.0%} with LL (at least 85 %) and {without:.0%} "
        f"without (at most 40 %), of ReLUs {relu:.0%} (at most 40 %), of a residual network {residual:.0%} (at least "
        f"70 %), of linear layers {linear:.0%} (any: a linear classifier nearly separates the digits)"
    )
    deep = with_ll >= 0.85 and residual >= 0.7 and max(without, relu) <= 0.4
    return Claim(text, bool(deep and shallow >= 0.8))


def draw(numbers):
    """Return the accuracy by depth, as in the lecture."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for (kind, accuracies), style in zip(numbers.accuracies.items(), ("o-", "s--", "^:", "D-.", "v-")):
        axes.plot(numbers.depths, 100 * np.asarray(accuracies), style, markersize=5, label=kind)
    axes.set(xlabel="layers", ylabel="test accuracy (%)", xscale="log", ylim=(0, 100))
    axes.set_xticks(numbers.depths, [str(depth) for depth in numbers.depths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
