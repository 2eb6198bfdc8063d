"""Stochastic depth computes three quarters of the units in training; its test error on digits is about the same."""

import time
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
import optax

from deepjax import functional, zoo
from deepjax.errors import InputError
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import cifar, load, train
from deepjax.layers import Dense
from deepjax.runs.plots import new_figure
from deepjax.units import Branch, ConvNorm, Drop, Unit, stack

TITLE = "Training time and test error of a residual network, with stochastic depth and without"
SOURCE = "Optimization and deeper architectures: networks with stochastic depth (Huang et al. 2016)"
USES = ("full", "data_dir")
SURVIVALS = {"full network": 1.0, "stochastic depth": 0.5}  # of the last unit
UNITS, WIDTH, EXAMPLES, STEPS, BATCH, EVERY, NETS = 15, 12, 1000, 400, 32, 40, 1
FULL_DEPTH, FULL_STEPS, FULL_BATCH, FULL_EVERY = 110, 175500, 128, 3510  # 500 epochs of 45,000 images
DRAWS = 200  # training passes in which the computed units are counted


@dataclass(frozen=True)
class Numbers:
    """Both kinds of networks, by the names of SURVIVALS."""

    units: int
    computed: float  # units with stochastic depth, mean over DRAWS training passes
    expected: float  # of this mean
    deviation: float  # of this mean: its standard deviation
    every: int  # updates between two test errors
    seconds: dict[str, float]  # measured, of an update
    errors: dict[str, tuple[tuple[float, ...], ...]]  # [networks, checks]: on the test set


class OneStage(nn.Module):
    """A convolution, UNITS residual units of one shape, and the logits: the network of the usual size."""

    survival: float  # of the last unit

    @nn.compact
    def __call__(self, x, *, train: bool, mask: jax.Array | None = None):
        """x [batch, H, W, channels] -> logits [batch, 10]."""
        x = ConvNorm(WIDTH, name="stem")(x, train=train, mask=mask)
        branch = Branch((WIDTH, WIDTH), (3, 3), (1, 1), parent=None)
        unit = Unit(branch, Drop(scaling="original", per="batch", parent=None), activation=functional.relu)
        survivals = survivals_of(UNITS, self.survival)
        x = stack(unit, UNITS, remat="unit", per_unit={"survival": survivals}, name="units")(x, train=train, mask=mask)
        return Dense(10, name="head")(functional.global_avg_pool(x))


def survivals_of(units, last):
    """Return the probability of each unit to be computed, by the paper's linear decay."""
    return [functional.linear_survival(unit, units, last) for unit in range(1, units + 1)]


def numbers(settings):
    """Return Numbers: networks of 15 units on 1,000 digits.

    In full they have 110 layers and are trained on CIFAR-10 with the paper's batches, updates and learning rates,
    without its augmentation. The seed draws initial weights, the order of examples, and what is dropped. Times are
    measured.

    Raises:
      InputError: a data_dir without `full`.
    """
    if settings.data_dir and not settings.full:
        raise InputError(f"data_dir {settings.data_dir} is read with full only; add --full, or leave it out")
    full = settings.full
    examples, test = load(cifar(settings.data_dir), settings.data_dir) if full else load("digits", size=EXAMPLES)
    units = (FULL_DEPTH - 2) // 2 if full else UNITS
    survivals = np.array(survivals_of(units, SURVIVALS["stochastic depth"]))
    training, count = jax.random.split(jax.random.key(settings.seed))
    networks = {name: _network(survival, full) for name, survival in SURVIVALS.items()}
    found = {name: _train(network, training, examples, test, full) for name, network in networks.items()}
    return Numbers(
        units,
        float(np.mean(computed_units(networks["stochastic depth"], examples.inputs[:2], count))),
        float(survivals.sum()),
        float(np.sqrt((survivals * (1 - survivals)).sum() / DRAWS)),
        FULL_EVERY if full else EVERY,
        {name: seconds for name, (seconds, _) in found.items()},
        {name: errors for name, (_, errors) in found.items()},
    )


def _network(survival, full):
    if full:
        return zoo.create("stochastic_depth", depth=FULL_DEPTH, survival=survival, num_classes=10)
    return OneStage(survival)


def computed_units(network, x, key):
    """Return how many residual units each of DRAWS training passes computes, int [DRAWS].

    The running moments of a branch's batch norms change in a pass exactly if the branch is computed.
    """
    first, draws = jax.random.split(key)

    def moments(state):
        leaves = jax.tree_util.tree_leaves_with_path(state["batch_stats"])
        return [leaf for path, leaf in leaves if {"branch", "norm1", "mean"} <= {each.key for each in path}]

    def run(draws):
        variables = network.init(first, x, train=False)

        def one(key):
            _, new = network.apply(variables, x, train=True, mutable="batch_stats", rngs={"dropout": key})
            pairs = zip(moments(variables), moments(new))
            return sum((a != b).reshape(-1, a.shape[-1]).any(1).sum() for a, b in pairs)

        return jax.lax.map(one, draws)

    return jax.jit(run)(jax.random.split(draws, DRAWS))


def _train(network, key, examples, test, full):
    """Return the seconds of an update, and the test errors as tuples [networks, checks]."""
    steps, batch, every, nets = (FULL_STEPS, FULL_BATCH, FULL_EVERY, 1) if full else (STEPS, BATCH, EVERY, NETS)
    rate = optax.piecewise_constant_schedule(0.1, {steps // 2: 0.1, 3 * steps // 4: 0.1})
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, 0.9, nesterov=True))
    plan = {"optimizer": optimizer, "steps": steps, "batch_size": batch, "every": every}

    def run(key):
        first, order = jax.random.split(key)
        variables = network.init(first, examples.inputs[:1], train=False)
        return train(network, variables, examples, test, order, **plan).errors

    keys = jax.random.split(key, nets)
    program = jax.jit(lambda keys: jax.lax.map(run, keys)).lower(keys).compile()
    start = time.perf_counter()
    errors = jax.block_until_ready(program(keys))
    return (time.perf_counter() - start) / (steps * nets), plain(errors)


def _last(numbers, name):
    """Return the mean test error at the end."""
    return float(np.mean([errors[-1] for errors in numbers.errors[name]]))


def table(numbers):
    """Return computed units, measured time and test error of both networks."""
    header = ("network", f"computed units of {numbers.units}", "an update", "relative time", "test error")
    full = numbers.seconds["full network"]
    return header, [
        (name, f"{units:.2f}", f"{1000 * seconds:.1f} ms", f"{seconds / full:.2f}", f"{_last(numbers, name):.1%}")
        for (name, seconds), units in zip(numbers.seconds.items(), (numbers.units, numbers.computed))
    ]


def claim(numbers):
    """Return whether the number of computed units is the expected one, and the test error about the same."""
    away = abs(numbers.computed - numbers.expected)
    more = _last(numbers, "stochastic depth") - _last(numbers, "full network")
    text = (
        f"with stochastic depth, a training pass computes {numbers.computed:.2f} of {numbers.units} units, mean of "
        f"{DRAWS} passes, expected {numbers.expected:.2f} (within 4 standard deviations of {numbers.deviation:.2f}); "
        f"it changes the test error by {100 * more:+.1f} points (at most +3)"
    )
    return Claim(text, bool(away <= 4 * numbers.deviation and more <= 0.03))


def draw(numbers):
    """Return the test errors over updates and over the measured time."""
    figure = new_figure(10, 4)
    axes = figure.subplots(1, 2, sharey=True)
    for name, style in zip(SURVIVALS, ("--", "-")):
        errors = 100 * np.asarray(numbers.errors[name])
        updates = numbers.every * np.arange(1, 1 + errors.shape[1])
        for each, scale in zip(axes, (1, numbers.seconds[name])):
            each.plot(scale * updates, errors.mean(0), style, label=name)
    axes[0].set(xlabel="updates", ylabel="test error (%), mean", yscale="log")
    axes[1].set(xlabel="seconds of training, measured")
    for each in axes:
        each.grid(alpha=0.3, which="both")
        each.legend()
    return figure
