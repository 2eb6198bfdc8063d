"""Whether a small network learns XOR depends on its first weights."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import initializers
from deepjax.figures.experiment import Claim, plain
from deepjax.functional import losses, sigmoid
from deepjax.runs.plots import new_figure

TITLE = "XOR from three kinds of first weights"
SOURCE = "Deep learning: the starting point is important: XOR; general strategy"
UNIFORM, NORMAL, CONSTANT = "uniform in (-10, 10)", "normal, variance 1 / fan in", "constant 1"
STARTS = {
    UNIFORM: initializers.uniform(10.0),
    NORMAL: initializers.lecun_normal(),
    CONSTANT: initializers.ones,
}
X, Y = jnp.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), jnp.array([0.0, 1, 1, 0])
HIDDEN, UPDATES, RATE, MOMENTUM = 4, 1000, 0.1, 0.99


@dataclass(frozen=True)
class Numbers:
    """Trainings of the lecture's 2-4-1 network, by kind of first weights."""

    losses: dict[str, tuple[tuple[float, ...], ...]]  # of the first trainings, after each tenth update
    fails: dict[str, int]  # trainings after which one of the four points or more is wrong
    spread: dict[str, float]  # largest difference between the hidden units' weights at the end, over all trainings
    runs: int


def numbers(settings):
    """Return Numbers. The seed draws the first weights; `full` trains 1,000 networks instead of 100."""
    runs = 1000 if settings.full else 100
    keys = jax.random.split(jax.random.key(settings.seed), runs)
    ends = {
        name: jax.jit(jax.vmap(lambda key, start=start: _train(key, start)))(keys) for name, start in STARTS.items()
    }
    return Numbers(
        {name: plain(np.asarray(curves)[:20, ::10]) for name, (curves, _, _) in ends.items()},
        {name: int(wrong.sum()) for name, (_, wrong, _) in ends.items()},
        {name: float(spread.max()) for name, (_, _, spread) in ends.items()},
        runs,
    )


def logits(params, x):
    """Return the logit of each example: a layer of sigmoid units, and a linear one. 17 parameters."""
    hidden = sigmoid(x @ params["hidden"] + params["hidden_bias"][None])
    return (hidden @ params["output"] + params["output_bias"][None])[:, 0]


def _train(key, start):
    """Return the loss before each update, whether a point is wrong at the end, and how far hidden units differ."""
    first, second = jax.random.split(key)
    params: Any = {
        "hidden": start(first, (2, HIDDEN), jnp.float32),
        "hidden_bias": jnp.zeros(HIDDEN),
        "output": start(second, (HIDDEN, 1), jnp.float32),
        "output_bias": jnp.zeros(1),
    }
    optimizer = optax.sgd(RATE, MOMENTUM)

    def update(carry, _):
        params, state = carry
        loss, gradients = jax.value_and_grad(lambda p: losses.binary_cross_entropy(logits(p, X), Y).mean())(params)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), curve = jax.lax.scan(update, (params, optimizer.init(params)), length=UPDATES)
    return curve, jnp.any((logits(params, X) > 0) != (Y > 0)), jnp.ptp(params["hidden"], axis=1).max()


def table(numbers):
    """Return the number of failed trainings and the spread of the hidden units."""
    header = ("first weights", f"failed of {numbers.runs}", "hidden weights differ by up to")
    return header, [(name, numbers.fails[name], f"{numbers.spread[name]:.3g}") for name in STARTS]


def claim(numbers):
    """Return whether wide uniform weights fail often, normal ones hardly ever, and constant ones always.

    From constant weights, all hidden units stay equal: the network is one of a single hidden unit, which has no
    solution of XOR.
    """
    shares = {name: fails / numbers.runs for name, fails in numbers.fails.items()}
    text = (
        f"of {numbers.runs} trainings, {shares[UNIFORM]:.0%} (at least 30 %) fail from U(-10, 10), "
        f"{shares[NORMAL]:.0%} (at most 8 %) from N(0, 1 / fan in), and {shares[CONSTANT]:.0%} (all) from a constant, "
        f"whose hidden units end {numbers.spread[CONSTANT]:.1g} apart (at most 1e-3)"
    )
    holds = shares[UNIFORM] >= 0.3 and shares[NORMAL] <= 0.08 and shares[CONSTANT] == 1
    return Claim(text, holds and numbers.spread[CONSTANT] <= 1e-3)


def draw(numbers):
    """Return the losses of the first twenty trainings of each kind."""
    figure = new_figure(12, 4)
    for axes, name in zip(figure.subplots(1, len(STARTS), sharey=True), STARTS):
        updates = 10 * np.arange(UPDATES // 10)
        axes.plot(updates, np.asarray(numbers.losses[name]).T, color="C0", linewidth=0.8, alpha=0.7)
        axes.set(xlabel="update", yscale="log", ylim=(1e-4, 10))
        axes.set_title(f"{name}: {numbers.fails[name]} of {numbers.runs} fail", fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("binary cross entropy")
    return figure
