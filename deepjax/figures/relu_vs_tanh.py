"""A convolutional network of four layers learns CIFAR-10 in fewer steps with ReLUs than with tanh units."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import config, data, functional
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import Examples, cifar, train
from deepjax.layers import Conv, Dense
from deepjax.runs.plots import new_figure

TITLE = "Training error on CIFAR-10 over steps with ReLU and with tanh units, each at its best rate"
SOURCE = "Going deeper: rectifiers (Krizhevsky et al. 2012, figure 1)"
USES = ("full", "data_dir")
TARGET, MOMENTUM, DEVIATION, COUNTED = 0.25, 0.9, 0.01, 2000
RATES = {"relu": (0.0015, 0.003, 0.006), "tanh": (0.01, 0.02, 0.04)}


class Plan(NamedTuple):
    """Sizes of the trainings."""

    images: int | None  # None: all
    side: int  # pixels; images are averaged to it
    widths: tuple[int, int, int]
    windows: tuple[int, int, int]
    steps: dict[str, int]
    batch_size: int
    every: int  # updates between two training errors


USUAL = Plan(12000, 16, (16, 32, 64), (5, 3, 3), {"relu": 1600, "tanh": 3200}, 128, 50)
FULL = Plan(None, 32, (32, 32, 64), (5, 5, 5), {"relu": 15600, "tanh": 15600}, 128, 390)


@dataclass(frozen=True)
class Numbers:
    """Training errors of one network for each activation and rate."""

    images: int
    every: int
    errors: dict[str, dict[str, tuple[float, ...]]]  # {activation: {rate: error after each `every` updates}}


class FourLayers(nn.Module):
    """Three convolutions without biases, each with an activation and a 2x2 max pool, and a dense layer."""

    widths: tuple[int, ...]
    windows: tuple[int, ...]
    activation: Any

    @nn.compact
    def __call__(self, x):
        """x [batch, H, W, channels] -> logits [batch, 10]."""
        init = nn.initializers.normal(DEVIATION)
        for i, (width, window) in enumerate(zip(self.widths, self.windows), 1):
            x = Conv(width, (window, window), kernel_init=init, name=f"conv{i}")(x)
            x = functional.max_pool(self.activation(x), 2)
        return Dense(10, kernel_init=init, name="head")(x.reshape(len(x), -1))


def numbers(settings):
    """Return Numbers: 12,000 images of 16x16 pixels. It needs a data_dir with CIFAR-10.

    This takes 5 minutes of CPU time. As in the paper, the mean image is subtracted, pixels are not divided by
    anything, and weights are N(0, 0.01^2). `full` takes all images of 32x32 pixels, 5x5 windows and the figure's 40
    epochs: hours. The seed draws initial weights and the order of the images, the same for all activations and rates.
    """
    plan = FULL if settings.full else USUAL
    examples = _centered(settings.data_dir, plan)
    errors = {
        activation: dict(zip(map(str, rates), plain(_errors(activation, plan, examples, settings.seed))))
        for activation, rates in RATES.items()
    }
    return Numbers(len(examples.labels), plan.every, errors)


def _centered(data_dir, plan):
    """Return training images minus their mean, float32 in about -128..128, and labels. They depend on no seed."""
    found = data.load(config.Data(cifar(data_dir), placement="device"), data_dir, 0)
    chosen: Any = found.train.take(np.random.default_rng(0).permutation(len(found.train))[: plan.images])
    images = np.asarray(chosen.images, np.float32)
    images = images.reshape(len(images), plan.side, 32 // plan.side, plan.side, 32 // plan.side, 3).mean((2, 4))
    return Examples(jnp.asarray(images - images.mean(0)), jnp.asarray(chosen.labels))


def _errors(activation, plan, examples, seed):
    """Return training errors, float64 [rates, checks], on the first COUNTED images."""
    network = FourLayers(plan.widths, plan.windows, getattr(functional, activation))
    first, order = jax.random.split(jax.random.key(seed))
    counted = jax.tree.map(lambda each: each[:COUNTED], examples)
    sizes = {"steps": plan.steps[activation], "batch_size": plan.batch_size, "every": plan.every}

    def run(rate):
        variables = dict(network.init(first, examples.inputs[:1]))
        return train(network, variables, examples, counted, order, optimizer=optax.sgd(rate, MOMENTUM), **sizes).errors

    rates = jnp.asarray(RATES[activation])
    return np.asarray(jax.jit(lambda rates: jax.lax.map(run, rates))(rates), float)  # on CPU faster than vmap


def steps_to_target(errors, every):
    """Return the updates after which the training error is first at most TARGET, or None."""
    reached = np.asarray(errors) <= TARGET
    return every * (int(reached.argmax()) + 1) if reached.any() else None


def best_rate(numbers, activation):
    """Return the rate that reaches TARGET in the fewest steps; if none does, that with the lowest error at the end."""
    runs = numbers.errors[activation]

    def order(rate):
        return steps_to_target(runs[rate], numbers.every) or np.inf, runs[rate][-1]

    return min(runs, key=order)


def table(numbers):
    """Return steps to 25 % training error and the last error for each activation and rate."""
    header = ("activation", "rate", f"steps to {TARGET:.0%} training error", "last training error")
    rows = []
    for activation, runs in numbers.errors.items():
        for rate, errors in runs.items():
            steps = steps_to_target(errors, numbers.every)
            rows.append((activation, rate, "" if steps is None else f"{steps:,}", f"{errors[-1]:.1%}"))
    return header, rows


def claim(numbers):
    """Return whether ReLU reaches TARGET in at most half of tanh's steps, at rates inside of both sweeps."""
    rates = {activation: best_rate(numbers, activation) for activation in RATES}
    runs = {activation: numbers.errors[activation][rate] for activation, rate in rates.items()}
    relu, tanh = (steps_to_target(runs[activation], numbers.every) for activation in ("relu", "tanh"))
    least = tanh or numbers.every * len(runs["tanh"])  # a run that does not reach it would take longer
    ratio = least / relu if relu else 0.0
    inside = all(rate in list(numbers.errors[activation])[1:-1] for activation, rate in rates.items())
    text = (
        f"to a training error of {TARGET:.0%}, ReLU takes "
        f"{f'{relu:,} steps' if relu else 'more steps than computed'} (rate {rates['relu']}) and tanh "
        f"{'' if tanh else 'more than '}{least:,} (rate {rates['tanh']}), {'' if tanh else 'more than '}{ratio:.1f} "
        f"times as many (at least 2); the best rates are {'' if inside else 'not '}inside of the sweeps"
    )
    return Claim(text, bool(ratio >= 2 and inside))


def draw(numbers):
    """Return training error over steps: the best rate of each activation as a thick line, the others as thin ones."""
    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    for (activation, runs), style in zip(numbers.errors.items(), ("-", "--")):
        best = best_rate(numbers, activation)
        (line,) = axes.plot([], [], style, linewidth=2.5, label=f"{activation}, rate {best}")
        for rate, errors in runs.items():
            steps = numbers.every * np.arange(1, len(errors) + 1)
            width, alpha = (2.5, 1) if rate == best else (1, 0.4)
            axes.plot(steps, 100 * np.asarray(errors), style, color=line.get_color(), linewidth=width, alpha=alpha)
    axes.axhline(100 * TARGET, color="0.6", linewidth=1)
    axes.set(xlabel="steps", ylabel="training error (%)", title=f"{numbers.images:,} images, other rates as thin lines")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
