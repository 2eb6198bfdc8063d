"""Most paths through a residual network are of middle length, most of the gradient flows through short ones."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import binom

from deepjax.figures.dense_units import DenseUnits
from deepjax.figures.experiment import Claim, plain
from deepjax.figures.small_runs import load, train
from deepjax.functional import cross_entropy
from deepjax.runs.plots import new_figure

TITLE = "Number of paths and their gradient by path length in a residual network"
SOURCE = "Optimization and deeper architectures: residual networks as ensembles (Veit et al. 2016, section 4.3)"
USES = ("full",)
PAPER_UNITS, PAPER_RANGE = 54, (5, 17)  # of a network with 110 layers: most gradient is in paths of 10 to 34 layers
UNITS, FULL_UNITS, STEPS, BATCH = 24, PAPER_UNITS, 200, 100
PATHS = 64  # drawn for each length


@dataclass(frozen=True)
class Numbers:
    """By path length in units, from 0 to all: the share of the paths, and of the gradient."""

    share: float  # of the paths of the paper's network that are in PAPER_RANGE
    paths: tuple[float, ...]
    norms: tuple[float, ...]  # mean norm of the loss's gradient in the input through one path
    gradient: tuple[float, ...]  # share of paths * norms


def numbers(settings):
    """Return Numbers. The seed draws the first weights, the order of the examples, and the paths."""
    units = FULL_UNITS if settings.full else UNITS
    first, order, drawn = jax.random.split(jax.random.key(settings.seed), 3)
    examples, test = load("digits", size=1000)
    network = DenseUnits(units)
    variables = jax.jit(lambda: network.init(first, examples.inputs[:1], train=False))()
    options = {"optimizer": optax.sgd(0.05, 0.9), "steps": STEPS, "batch_size": BATCH, "every": STEPS}
    variables = jax.jit(lambda: train(network, variables, examples, test, order, **options))().variables
    norms = np.asarray(path_norms(network, variables, examples.inputs[:BATCH], examples.labels[:BATCH], drawn))
    paths = binom.pmf(np.arange(units + 1), units, 0.5)
    gradient = paths * norms / (paths * norms).sum()
    return Numbers(share_of_paths(PAPER_UNITS, *PAPER_RANGE), plain(paths), plain(norms), plain(gradient))


def share_of_paths(units, shortest, longest):
    """Return the share of the 2^units paths that pass between `shortest` and `longest` units, both included."""
    return float(binom.cdf(longest, units, 0.5) - binom.cdf(shortest - 1, units, 0.5))


def path_norms(network, variables, x, labels, key):
    """Return the mean norm of the loss's gradient in x that flows through one path, for each number of units on it.

    A path passes through the branches of some units, and through the skips of all others. The gradient through it is
    that of the loss when the activations are those of the whole network, but the backward pass takes this path alone
    (Veit et al. 2016).

    Args:
      network: a residual `DenseUnits`.
      variables: its variables.
      x, labels: a batch.
      key: of the paths; PATHS are drawn for each length.

    Returns:
      float [units + 1].
    """

    def norm(key, length):
        on_path = jax.random.permutation(key, network.units) < length

        def loss(x):
            return cross_entropy(network.apply(variables, x, train=False, on_path=on_path), labels).sum()

        return jnp.linalg.norm(jax.grad(loss)(x).reshape(len(x), -1), axis=1).mean()

    def mean_norm(length):
        return jax.vmap(norm, (0, None))(jax.random.split(jax.random.fold_in(key, length), PATHS), length).mean()

    return jax.jit(lambda: jax.lax.map(mean_norm, jnp.arange(network.units + 1)))()


def _middle(shares, part=0.95):
    """Return the shortest and the longest length of the middle `part` of a distribution over lengths."""
    below = np.cumsum(shares)
    return int(np.searchsorted(below, (1 - part) / 2)), int(np.searchsorted(below, (1 + part) / 2))


def mean_length(shares):
    """Return the mean of a distribution over lengths from 0 on."""
    return float(np.arange(len(shares)) @ np.asarray(shares))


def table(numbers):
    """Return the mean and the middle 95 % of the lengths, of paths and of the gradient."""
    header = ("of", "mean length", "middle 95 %", "units")
    rows = []
    for name, shares in (("paths", numbers.paths), ("gradient", numbers.gradient)):
        shortest, longest = _middle(shares)
        rows.append((name, f"{mean_length(shares):.2f}", f"{shortest} to {longest}", str(len(shares) - 1)))
    return header, rows


def claim(numbers):
    """Return whether the gradient flows through shorter paths than most paths are."""
    paths, gradient = mean_length(numbers.paths), mean_length(numbers.gradient)
    text = (
        f"{100 * numbers.share:.4f} % of the paths through {PAPER_UNITS} units have {PAPER_RANGE[0]} to "
        f"{PAPER_RANGE[1]} units (0.4537 % exactly); in the trained network, the mean length of the paths is "
        f"{paths:.1f} units, and {gradient:.1f} weighted by their gradient (at most 0.7 of that)"
    )
    return Claim(text, round(100 * numbers.share, 4) == 0.4537 and gradient <= 0.7 * paths)


def draw(numbers):
    """Return the three distributions over path lengths: paths, gradient of one path, and their product."""
    figure = new_figure(12, 3.6)
    lengths = np.arange(len(numbers.paths))
    panels = (
        ("share of the paths", numbers.paths, "linear"),
        ("gradient through one path", numbers.norms, "log"),
        ("share of the gradient", numbers.gradient, "linear"),
    )
    for axes, (label, values, scale) in zip(figure.subplots(1, 3), panels):
        axes.bar(lengths, values)
        axes.set(xlabel="units on the path", ylabel=label, yscale=scale)
        axes.grid(alpha=0.3)
    return figure
