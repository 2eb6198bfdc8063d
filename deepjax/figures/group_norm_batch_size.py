"""Small batches harm networks with batch normalization, and not those with group normalization (Wu & He 2018)."""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import optax

from deepjax import layers, zoo
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.runs.plots import new_figure

TITLE = "Test error by batch size, with batch and with group normalization"
SOURCE = "Optimization and deeper architectures: group normalization (Wu and He 2018, figure 1)"
USES = ("full",)
BATCH_SIZES = (32, 16, 8, 4, 2)
NORMS = {"batch normalization": "batch", "group normalization": partial(layers.GroupNorm, groups=4)}
DEPTH, WIDTH, EPOCHS, RATE = 5, 64, 10, 0.1  # the rate is that of 32 examples


@dataclass(frozen=True)
class Numbers:
    """Test errors as fractions."""

    errors: dict[str, tuple[tuple[float, ...], ...]]  # normalization -> batch size -> network


def numbers(settings):
    """Return Numbers: 3 dense networks (20 in full) for each norm and batch size, 10 epochs on digits.

    As in the paper, the learning rate is proportional to the batch size. The paper's network is ResNet-50 on ImageNet.
    The seed draws initial weights and the order of examples.
    """
    nets = 20 if settings.full else 3
    first, order = jax.random.split(jax.random.key(settings.seed), (2, nets))
    examples, test = load("digits", size=1280)  # a multiple of every batch size
    errors = {}
    for name, norm in NORMS.items():
        network = zoo.create("mlp", depth=DEPTH, width=WIDTH, norm=norm, num_classes=10)
        variables = jax.jit(jax.vmap(partial(network.init, train=False), (0, None)))(first, examples.inputs[:1])
        errors[name] = tuple(plain(_errors(network, variables, size, examples, test, order)) for size in BATCH_SIZES)
    return Numbers(errors)


def _errors(network, variables, batch_size, examples, test, keys):
    """Return the test error of each network."""
    steps = EPOCHS * (len(examples.labels) // batch_size)
    optimizer = optax.sgd(optax.cosine_decay_schedule(RATE * batch_size / max(BATCH_SIZES), steps))
    plan = {"optimizer": optimizer, "steps": steps, "batch_size": batch_size, "every": steps}

    def run(pair):
        return train(network, pair[0], examples, test, pair[1], **plan).errors[-1]

    return np.asarray(jax.jit(lambda pairs: jax.lax.map(run, pairs))((variables, keys)), float)


def table(numbers):
    """Return the mean test errors of each batch size."""
    header = ("batch size", *numbers.errors)
    columns = zip(BATCH_SIZES, *numbers.errors.values())
    return header, [(f"{size}", *(f"{np.mean(errors):.1%}" for errors in each)) for size, *each in columns]


def claim(numbers):
    """Return whether the error grows in small batches with batch normalization only."""
    batch, group = (np.mean(each, axis=1) for each in numbers.errors.values())
    text = (
        f"from batches of {BATCH_SIZES[0]} to batches of {BATCH_SIZES[-1]} the test error grows by "
        f"{100 * (batch[-1] - batch[0]):.1f} points with batch normalization (at least 3) and by "
        f"{100 * (group[-1] - group[0]):.1f} points with group normalization (at most 1.5)"
    )
    return Claim(text, bool(batch[-1] - batch[0] >= 0.03 and group[-1] - group[0] <= 0.015))


def draw(numbers):
    """Return test error over batch size: the mean as a line, networks as points."""
    figure = new_figure(6.5, 4.5)
    axes = figure.subplots()
    for (name, errors), style in zip(numbers.errors.items(), ("o-", "s--")):
        (line,) = axes.plot(BATCH_SIZES, 100 * np.mean(errors, axis=1), style, label=name)
        axes.plot(BATCH_SIZES, 100 * np.asarray(errors), ".", color=line.get_color(), alpha=0.4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
    axes.invert_xaxis()
    axes.set(xlabel="batch size", ylabel="test error (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
