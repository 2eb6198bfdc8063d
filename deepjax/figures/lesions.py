"""A residual network without one of its units hardly changes; a plain network without one fails."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax.figures.dense_units import DenseUnits
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.runs.plots import new_figure

TITLE = "Test error of residual and plain networks from which units are deleted, or in which they are shuffled"
SOURCE = "Optimization and deeper architectures: residual networks as ensembles (Veit et al. 2016, figures 3 to 5)"
USES = ("full",)
UNITS, FULL_UNITS, STEPS, BATCH, DRAWS = 8, 24, 300, 100, 10
NAMES = {"residual": True, "plain": False}


@dataclass(frozen=True)
class Numbers:
    """Test errors of one trained network of each kind."""

    whole: dict[str, float]
    one: dict[str, tuple[float, ...]]  # without each of the units
    many: dict[str, tuple[float, ...]]  # without 0 to all of them, chosen at random: means over draws
    shuffled: dict[str, tuple[float, ...]]  # after 1 to as many random swaps of two units: means over draws


def numbers(settings):
    """Return Numbers. The seed draws first weights, the order of the examples, and what is deleted."""
    units = FULL_UNITS if settings.full else UNITS
    examples, test = load("digits", size=1000)
    optimizer = optax.sgd(0.05, 0.9)
    keys = jax.random.split(jax.random.key(settings.seed), 4)

    def measure(network):
        variables = jax.jit(lambda: network.init(keys[0], examples.inputs[:1], train=False))()
        options = {"optimizer": optimizer, "steps": STEPS, "batch_size": BATCH, "every": STEPS}
        variables = jax.jit(lambda: train(network, variables, examples, test, keys[1], **options).variables)()
        return jax.jit(lambda: lesions(network, variables, test, keys[2], keys[3]))()

    found = {name: measure(DenseUnits(units, residual=residual)) for name, residual in NAMES.items()}
    one, many, shuffled = ({name: plain(each[i]) for name, each in found.items()} for i in range(3))
    return Numbers({name: errors[0] for name, errors in many.items()}, one, many, shuffled)


def lesions(network, variables, test, deleted_key, swapped_key):
    """Return three arrays of test errors of a `DenseUnits`: see `Numbers`."""
    units = network.units

    def error(gates, order):
        stacks = {name: each | {"stack": _reordered(each["stack"], order)} for name, each in variables.items()}
        logits = network.apply(stacks, test.inputs, train=False, gates=gates)
        return (jnp.argmax(logits, -1) != test.labels).mean()

    everything, same = jnp.ones(units), jnp.arange(units)
    one = jax.lax.map(lambda unit: error(everything.at[unit].set(0.0), same), same)

    def without(count):
        def draw(key):
            return error(jnp.where(jax.random.permutation(key, units) < count, 0.0, 1.0), same)

        return jax.lax.map(draw, jax.random.split(jax.random.fold_in(deleted_key, count), DRAWS)).mean()

    def after(swaps):
        def draw(key):
            return error(everything, swapped(key, units, swaps))

        return jax.lax.map(draw, jax.random.split(jax.random.fold_in(swapped_key, swaps), DRAWS)).mean()

    return one, jax.lax.map(without, jnp.arange(units + 1)), jax.lax.map(after, 1 + same)


def _reordered(stack, order):
    return jax.tree.map(lambda leaf: leaf[order], stack)


def swapped(key, units, swaps):
    """Return the numbers from 0 to units - 1 after that many swaps of two of them, drawn at random."""

    def swap(i, order):
        pair = jax.random.choice(jax.random.fold_in(key, i), units, (2,), replace=False)
        return order.at[pair].set(order[pair[::-1]])

    return jax.lax.fori_loop(0, swaps, swap, jnp.arange(units))


def table(numbers):
    """Return the errors of whole networks and after each kind of lesion."""
    half = len(next(iter(numbers.one.values()))) // 2
    header = ("network", "whole", "one deleted: mean", "worst", f"{half} deleted", "one swap", f"{2 * half} swaps")
    rows = [
        (
            name,
            f"{numbers.whole[name]:.1%}",
            f"{np.mean(numbers.one[name]):.1%}",
            f"{max(numbers.one[name]):.1%}",
            f"{numbers.many[name][half]:.1%}",
            f"{numbers.shuffled[name][0]:.1%}",
            f"{numbers.shuffled[name][-1]:.1%}",
        )
        for name in NAMES
    ]
    return header, rows


def claim(numbers):
    """Return whether the loss of one unit costs the residual network little, and the plain one its answers."""
    more = {name: float(np.mean(numbers.one[name])) - numbers.whole[name] for name in NAMES}
    text = (
        f"without one unit, the mean test error of the residual network is {100 * more['residual']:.1f} points higher "
        f"(at most 20), that of the plain network {100 * more['plain']:.1f} points (at least 40)"
    )
    return Claim(text, more["residual"] <= 0.2 and more["plain"] >= 0.4)


def draw(numbers):
    """Return the errors after each kind of lesion."""
    figure = new_figure(12, 3.8)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for name, style in zip(NAMES, ("o-", "s--")):
        units = len(numbers.one[name])
        left.plot(range(1, units + 1), 100 * np.asarray(numbers.one[name]), style, label=name)
        middle.plot(range(units + 1), 100 * np.asarray(numbers.many[name]), style, label=name)
        right.plot(range(1, units + 1), 100 * np.asarray(numbers.shuffled[name]), style, label=name)
    left.set(xlabel="deleted unit", ylabel="test error (%)", ylim=(0, 100))
    middle.set(xlabel="number of deleted units")
    right.set(xlabel="swaps of two units")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
