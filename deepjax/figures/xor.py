"""XOR is easy for a small network of sigmoid units, unless its first weights are large."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import initializers
from deepjax.figures.experiment import Claim, plain
from deepjax.functional import binary_cross_entropy
from deepjax.runs.plots import new_figure

TITLE = "XOR by a 2-4-1 network of sigmoid units, from large, scaled and constant first weights"
SOURCE = "Deep learning: the starting point is important, XOR"
USES = ("full",)
FEW, MANY, STEPS, RATE, MOMENTUM = 20, 2000, 1000, 0.1, 0.99  # the lecture's, but MANY
INITS = {"U(-10, 10)": initializers.uniform(10.0), "N(0, 1/sqrt(fan_in))": initializers.lecun_normal()}
INITS["constant 1"] = initializers.ones
LECTURE = {"U(-10, 10)": "6", "N(0, 1/sqrt(fan_in))": "0", "constant 1": ""}
INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
TARGETS = np.array([0, 1, 1, 0], np.float32)
SHOWN = 10  # runs whose loss is kept at each step


@dataclass(frozen=True)
class Numbers:
    """Trainings from each kind of first weights. A run fails if one of the four answers is wrong at its end."""

    runs: int
    few: dict[str, int]  # failures in the first FEW runs
    many: dict[str, int]  # failures in all runs
    losses: dict[str, tuple[tuple[float, ...], ...]]  # of the first SHOWN runs, before each update
    wrong: dict[str, tuple[float, ...]]  # fraction of the runs with a wrong answer, before each update


def network(init):
    """Return the 2-4-1 network whose 12 weights are drawn by `init`; its 5 biases start at 0."""
    return nn.Sequential([nn.Dense(4, kernel_init=init), nn.sigmoid, nn.Dense(1, kernel_init=init)])


def numbers(settings):
    """Return Numbers. The seed draws the first weights."""
    runs = MANY * (10 if settings.full else 1)
    keys = jax.random.split(jax.random.key(settings.seed), runs)
    found = {name: jax.device_get(jax.jit(jax.vmap(_train(network(init))))(keys)) for name, init in INITS.items()}
    failed = {name: wrong[:, -1] > 0 for name, (_, wrong) in found.items()}
    return Numbers(
        runs,
        {name: int(each[:FEW].sum()) for name, each in failed.items()},
        {name: int(each.sum()) for name, each in failed.items()},
        {name: plain(losses[:SHOWN]) for name, (losses, _) in found.items()},
        {name: plain((wrong > 0).mean(0)) for name, (_, wrong) in found.items()},
    )


def _train(net):
    """Return a function key -> (loss [STEPS], wrong answers [STEPS + 1]) of one training on all four examples."""
    optimizer = optax.sgd(RATE, MOMENTUM)

    def loss_of(params):
        logits = net.apply(params, INPUTS)[:, 0]
        return binary_cross_entropy(logits, TARGETS).mean(), ((logits > 0) != (TARGETS > 0)).sum()

    def step(carry, _):
        params, state = carry
        found, gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), found

    def run(key):
        params = net.init(key, INPUTS)
        (params, _), (losses, wrong) = jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)
        return losses, jnp.append(wrong, loss_of(params)[1])

    return run


def table(numbers):
    """Return the failures of each kind of first weights."""
    header = ("first weights", f"failures in {FEW}", "the lecture's", f"failures in {numbers.runs:,}", "share")
    rows = [
        (name, str(numbers.few[name]), LECTURE[name], str(count), f"{count / numbers.runs:.1%}")
        for name, count in numbers.many.items()
    ]
    return header, rows


def claim(numbers):
    """Return whether large weights fail often, scaled ones seldom, and constant ones always."""
    large, scaled, constant = (count / numbers.runs for count in numbers.many.values())
    text = (
        f"of {numbers.runs:,} runs, {large:.1%} (at least 30 %) fail from weights of U(-10, 10), {scaled:.1%} (at most "
        f"6 %) from those of N(0, 1/sqrt(fan_in)), and {constant:.1%} (all) from equal ones"
    )
    return Claim(text, large >= 0.3 and scaled <= 0.06 and constant == 1)


def draw(numbers):
    """Return losses of some runs from random weights, and how many runs still have a wrong answer."""
    figure = new_figure(12, 4)
    *panels, last = figure.subplots(1, 3)
    for axes, (name, losses) in zip(panels, numbers.losses.items()):
        axes.plot(np.transpose(losses), linewidth=0.8)
        axes.set(title=name, xlabel="updates", ylabel=f"loss of {SHOWN} runs", yscale="log")
    for name, wrong in numbers.wrong.items():
        last.plot(100 * np.asarray(wrong), label=name)
    last.set(xlabel="updates", ylabel=f"% of {numbers.runs:,} runs with a wrong answer", ylim=0)
    last.legend()
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure
