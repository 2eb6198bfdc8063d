"""Dropout lowers the test error of networks of several depths and widths (Srivastava et al. 2014, figure 4)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepjax import zoo
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.runs.plots import new_figure

TITLE = "Test error with and without dropout, by depth and width"
SOURCE = "Deep learning: dropout (Srivastava et al. 2014, figure 4)"
USES = ("full", "data_dir")
DROPOUTS = {"without dropout": 0.0, "with dropout": 0.5}
BATCH, RATE, MOMENTUM = 50, 0.01, 0.9


@dataclass(frozen=True)
class Numbers:
    """Test errors as fractions."""

    data: str
    errors: dict[str, dict[str, tuple[float, ...]]]  # architecture -> with or without dropout -> network


def numbers(settings):
    """Return Numbers: 2 to 4 hidden layers of 128 ReLU units on 150 digits; with a data_dir, on 1,000 MNIST images.

    `full` has the lecture's 1,024 and 2,048 units on all of MNIST: days on two CPU cores. Hidden units are dropped with
    probability 0.5; the paper also drops inputs. The seed draws initial weights, order of examples and what is dropped.
    """
    mnist = settings.full or settings.data_dir
    name, size = ("mnist", None if settings.full else 1000) if mnist else ("digits", 150)
    widths, steps, nets = ((1024, 2048), 100_000, 1) if settings.full else ((128,), 1500, 16)
    data = load(name, settings.data_dir, size)
    keys = jax.random.split(jax.random.key(settings.seed), nets)
    errors = {
        f"{hidden} x {width}": dict(zip(DROPOUTS, plain(_errors(hidden, width, *data, keys, steps))))
        for hidden in (2, 3, 4)
        for width in widths
    }
    return Numbers(f"{len(data[0].labels)} images of {name}", errors)


def _errors(hidden, width, examples, test, keys, steps):
    """Return the test errors, float64 [DROPOUTS, keys]."""
    network = zoo.create("mlp", depth=hidden + 1, width=width, num_classes=10)
    optimizer = optax.sgd(optax.cosine_decay_schedule(RATE, steps), MOMENTUM)

    def run(pair):
        rate, key = pair
        first, order = jax.random.split(key)
        variables = network.init(first, examples.inputs[:1], train=False)
        plan = {"optimizer": optimizer, "steps": steps, "batch_size": BATCH, "every": steps}
        return train(network.clone(dropout=rate), variables, examples, test, order, **plan).errors[-1]

    pairs = jnp.repeat(jnp.asarray([*DROPOUTS.values()]), len(keys)), jnp.tile(keys, len(DROPOUTS))
    errors = jax.jit(lambda pairs: jax.lax.map(run, pairs))(pairs)
    return np.asarray(errors, float).reshape(len(DROPOUTS), len(keys))


def table(numbers):
    """Return the mean test errors of each architecture."""
    header = ("hidden layers x units", *DROPOUTS)
    return header, [
        (name, *(f"{np.mean(each[kind]):.1%}" for kind in DROPOUTS)) for name, each in numbers.errors.items()
    ]


def claim(numbers):
    """Return whether dropout lowers the test error in the mean over architectures."""
    gains = [np.subtract(*(np.mean(each[kind]) for kind in DROPOUTS)) for each in numbers.errors.values()]
    text = (
        f"dropout lowers the test error by {100 * np.mean(gains):.1f} points in the mean over {len(gains)} "
        f"architectures (at least 0.5), by {100 * min(gains):.1f} to {100 * max(gains):.1f} in each; {numbers.data}"
    )
    return Claim(text, bool(np.mean(gains) >= 0.005))


def draw(numbers):
    """Return test error by architecture: the means as bars, networks as points."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for i, kind in enumerate(DROPOUTS):
        place = np.arange(len(numbers.errors)) + 0.4 * i - 0.2
        errors = 100 * np.array([each[kind] for each in numbers.errors.values()])
        axes.bar(place, errors.mean(1), 0.36, label=kind)
        axes.plot(place, errors, "k.", markersize=4)
    axes.set_xticks(range(len(numbers.errors)), list(numbers.errors))
    axes.set(xlabel="hidden layers x units", ylabel="test error (%)", title=numbers.data)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right")
    return figure
