"""Batch normalization trains in fewer steps, with higher rates, and with sigmoids (Ioffe & Szegedy 2015, 4.2.2)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import functional, zoo
from deepjax.figures.experiment import Claim
from deepjax.figures.small_runs import SmallCNN, cifar, load, train
from deepjax.runs.plots import new_figure
from deepjax.zoo.network import INITS

TITLE = "Steps with batch normalization to the best accuracy without it"
SOURCE = "Going deeper: batch normalization, results (Ioffe and Szegedy 2015)"
USES = ("full", "data_dir")


class Variant(NamedTuple):
    """A network and its learning rate, as a multiple of the baseline's."""

    norm: str
    activation: str
    factor: float


VARIANTS = {
    "baseline": Variant("none", "relu", 1),
    "BN": Variant("batch", "relu", 1),
    "BN x5": Variant("batch", "relu", 5),
    "BN x30": Variant("batch", "relu", 30),
    "BN x5 sigmoid": Variant("batch", "sigmoid", 5),
    "sigmoid": Variant("none", "sigmoid", 1),
}


class Plan(NamedTuple):
    """Sizes of a training."""

    widths: tuple[int, ...]  # of the stages of a convolutional network; none: a dense one
    rate: float  # of the baseline
    steps: int
    batch_size: int
    every: int  # updates between two test errors
    tested: int | None  # test images of which errors are counted; None: all
    nets: int  # of which the test error is the mean


DIGITS = Plan((), 0.03, 600, 32, 20, None, 8)
CIFAR = Plan((16, 32, 64), 0.02, 4000, 32, 100, 2000, 1)
FULL = Plan((32, 64, 128), 0.02, 20000, 128, 250, None, 1)


@dataclass(frozen=True)
class Numbers:
    """Test accuracy over steps; the first step at which it is the baseline's best; and the best accuracy."""

    every: int
    accuracies: dict[str, tuple[float, ...]]
    steps: dict[str, int | None]
    best: dict[str, float]


def numbers(settings):
    """Return Numbers: means of 8 dense networks of 8 layers on digits, or one convolutional network on CIFAR-10.

    With a data_dir, a network of 6 convolutions is trained on CIFAR-10 for 4,000 steps. In full, it is twice as wide
    and trained for 20,000 steps, which takes hours. The seed draws the first weights and the order of examples, which
    are the same for all variants.
    """
    plan = FULL if settings.full else CIFAR if settings.data_dir else DIGITS
    examples, test = load(cifar(settings.data_dir) if plan.widths else "digits", settings.data_dir)
    test = jax.tree.map(lambda each: each[: plan.tested], test)
    accuracies = {}
    for norm, activation in dict.fromkeys(each[:2] for each in VARIANTS.values()):
        names = [name for name, each in VARIANTS.items() if each[:2] == (norm, activation)]
        rates = plan.rate * np.asarray([VARIANTS[name].factor for name in names])
        errors = _train(_network(norm, activation, plan.widths), examples, test, plan, rates, settings.seed)
        accuracies |= dict(zip(names, 1 - errors))
    accuracies = {name: accuracies[name] for name in VARIANTS}
    best = {name: float(each.max()) for name, each in accuracies.items()}
    reached = {name: each >= best["baseline"] - 1e-9 for name, each in accuracies.items()}
    return Numbers(
        plan.every,
        {name: tuple(each.tolist()) for name, each in accuracies.items()},
        {name: plan.every * (int(each.argmax()) + 1) if each.any() else None for name, each in reached.items()},
        best,
    )


def _network(norm, activation, widths):
    if widths:
        function = getattr(functional, activation)
        return SmallCNN(widths, function, norm=norm, num_classes=10, kernel_init=INITS["he_fan_in"])
    options = {"depth": 8, "width": 48, "norm": norm, "activation": activation, "init": "xavier"}
    return zoo.create("mlp", options, num_classes=10)


def _train(network, examples, test, plan, rates, seed):
    """Return the mean test errors of the nets, float64 [rates, checks]."""

    def run(rate, key):
        first, order = jax.random.split(key)
        variables = network.init(first, examples.inputs[:1], train=False)
        plans = {"steps": plan.steps, "batch_size": plan.batch_size, "every": plan.every}
        return train(network, variables, examples, test, order, optimizer=optax.sgd(rate), **plans).errors

    keys = jax.random.split(jax.random.key(seed), plan.nets)
    pairs = jnp.repeat(jnp.asarray(rates, jnp.float32), plan.nets), jnp.tile(keys, len(rates))
    several = (lambda *pairs: jax.lax.map(lambda pair: run(*pair), pairs)) if plan.widths else jax.vmap(run)
    errors = np.asarray(jax.jit(several)(*pairs), float)
    return errors.reshape(len(rates), plan.nets, -1).mean(1)


def table(numbers):
    """Return steps and best accuracy, as in the lecture."""
    header = ("network", f"steps to {numbers.best['baseline']:.1%}", "best accuracy")
    shown = {name: "" if steps is None else f"{steps:,}" for name, steps in numbers.steps.items()}
    return header, [(name, shown[name], f"{numbers.best[name]:.1%}") for name in VARIANTS]


def claim(numbers):
    """Return whether batch normalization is faster, fastest at x5, survives x30, and trains sigmoids."""
    first, *others = (numbers.steps[name] or np.inf for name in ("baseline", "BN", "BN x5", "BN x30"))
    bn, x5, x30 = (each / first for each in others)
    with_norm, without = numbers.best["BN x5 sigmoid"], numbers.best["sigmoid"]
    text = (
        f"in units of the baseline's steps to its best accuracy, batch norm takes {bn:.2f} (at most 0.8), with rates "
        f"x5 {x5:.2f} (at most 0.5, and below that of x1) and x30 {x30:.2f} (below 1); with sigmoids the best "
        f"accuracy is {with_norm:.0%} (at least 40 %) with it and {without:.0%} (at most 30 %) without"
    )
    return Claim(text, bn <= 0.8 and x5 <= 0.5 and x5 < bn and x30 < 1 and with_norm >= 0.4 and without <= 0.3)


def draw(numbers):
    """Return the accuracies over steps."""
    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    styles = ("k--", "C0-", "C1-", "C2-", "C3-.", "k:")
    for (name, accuracies), style in zip(numbers.accuracies.items(), styles):
        steps = numbers.every * np.arange(1, len(accuracies) + 1)
        axes.plot(steps, 100 * np.asarray(accuracies), style, label=name)
    axes.axhline(100 * numbers.best["baseline"], color="0.6", linewidth=1, label="best of the baseline")
    axes.set(xlabel="steps", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
