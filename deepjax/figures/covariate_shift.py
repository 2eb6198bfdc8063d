"""Batch normalization keeps the distribution of a hidden unit the same during training."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import zoo
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.runs.plots import new_figure

TITLE = "Percentiles of the last hidden units during training, with and without batch normalization"
SOURCE = "Deep learning: internal covariate shift (Ioffe and Szegedy 2015, figure 1)"
USES = ("full", "data_dir")
PERCENTILES = (15.0, 50.0, 85.0)
HIDDEN, WIDTH, BATCH, RATE = 3, 100, 60, 0.5  # the paper's, but the rate, which it does not give
NORMS = {"without batch normalization": "none", "with batch normalization": "batch"}


@dataclass(frozen=True)
class Numbers:
    """One network of each kind, after each `every` updates."""

    data: str
    every: int
    errors: dict[str, tuple[float, ...]]  # on the test set
    unit: dict[str, tuple[tuple[float, ...], ...]]  # PERCENTILES over the test set of one last hidden unit
    ranges: dict[str, float]  # largest minus smallest value of a percentile, mean over PERCENTILES and the units


def numbers(settings):
    """Return Numbers of 3,000 updates on digits, with a data_dir on MNIST; in full 50,000 on MNIST, as in the paper.

    The seed draws the initial weights and the order of the examples.
    """
    mnist, checks, every = settings.full or settings.data_dir, 60, 830 if settings.full else 50
    name = "mnist" if mnist else "digits"
    examples, test = load(name, settings.data_dir)
    first, order = jax.random.split(jax.random.key(settings.seed))
    keys, errors, percentiles = jax.random.split(order, checks), {}, {}
    for kind, norm in NORMS.items():
        network = zoo.create(
            "mlp", depth=HIDDEN + 1, width=WIDTH, activation="sigmoid", init="xavier", norm=norm, num_classes=10
        )
        found = _training(network, first, keys, examples, test, every)
        errors[kind], percentiles[kind] = (np.asarray(each, float) for each in found)
    return Numbers(
        name,
        every,
        {kind: plain(each) for kind, each in errors.items()},
        {kind: plain(each[..., 0]) for kind, each in percentiles.items()},
        {kind: float(np.ptp(each, axis=0).mean()) for kind, each in percentiles.items()},
    )


def _training(network, first, keys, examples, test, every):
    """Return test errors [checks] and percentiles [checks, PERCENTILES, units] after each `every` updates."""
    hidden = network.clone(return_logits=False)

    def several(variables, key):
        plan = {"optimizer": optax.sgd(RATE), "steps": every, "batch_size": BATCH, "every": every}
        curves = train(network, variables, examples, test, key, **plan)
        units = hidden.apply(curves.variables, test.inputs, train=False)
        return curves.variables, (curves.errors[-1], jnp.percentile(units, jnp.asarray(PERCENTILES), axis=0))

    def run(first, keys):
        return jax.lax.scan(several, network.init(first, examples.inputs[:1], train=False), keys)[1]

    return jax.jit(run)(first, keys)


def table(numbers):
    """Return the error and how far the percentiles move."""
    header = ("network", "last error", "a percentile moves by", *(f"unit 1 at the end: {p:g} %" for p in PERCENTILES))
    return header, [
        (kind, f"{errors[-1]:.1%}", f"{numbers.ranges[kind]:.3f}", *(f"{each:.2f}" for each in numbers.unit[kind][-1]))
        for kind, errors in numbers.errors.items()
    ]


def claim(numbers):
    """Return whether batch normalization halves the movement of the percentiles."""
    without, normalized = numbers.ranges.values()
    text = (
        f"during training, the percentiles 15, 50 and 85 of the last hidden units move by {without:.3f} without and by "
        f"{normalized:.3f} with batch normalization, mean over the units (at most half of it); {numbers.data}"
    )
    return Claim(text, normalized <= without / 2)


def draw(numbers):
    """Return the test errors, and the percentiles of a unit of each network."""
    figure = new_figure(12, 3.8)
    left, *others = figure.subplots(1, 3)
    updates = numbers.every * np.arange(1, 1 + len(next(iter(numbers.errors.values()))))
    for (kind, errors), style in zip(numbers.errors.items(), ("--", "-")):
        left.plot(updates, 100 * np.asarray(errors), style, label=kind)
    left.set(xlabel="updates", ylabel="test error (%)", title=numbers.data)
    left.legend()
    for axes, (kind, percentiles) in zip(others, numbers.unit.items()):
        for values, percentile, style in zip(np.transpose(percentiles), PERCENTILES, ("--", "-", ":")):
            axes.plot(updates, values, style, label=f"{percentile:g} %")
        axes.set(xlabel="updates", ylabel="last hidden unit", ylim=(-0.2, 1), title=kind)
        axes.legend(title="percentile", ncols=3, loc="lower center")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure
