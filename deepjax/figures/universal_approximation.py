"""One hidden layer approximates any function: differences of sigmoids are bumps, and weighted bumps sum to it."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from deepjax.figures.experiment import Claim, plain
from deepjax.functional import sigmoid
from deepjax.linear import rbf_features
from deepjax.runs.plots import new_figure

TITLE = "A function approximated by bumps of a hidden layer: differences of sigmoids, and Gaussian kernels"
SOURCE = "Deep learning: universal approximation (Cybenko 1989), universal approximator (Park & Sandberg 1991)"
USES = ("full",)
WAVES, POINTS = 6, 2001
KINDS = ("differences of sigmoids", "Gaussian kernels")


@dataclass(frozen=True)
class Numbers:
    """A smooth random function on [0, 1], and its approximations."""

    bumps: tuple[int, ...]
    errors: dict[str, tuple[float, ...]]  # by kind: largest distance / range of the function, for each number of bumps
    x: tuple[float, ...]
    target: tuple[float, ...]
    shown: dict[str, tuple[float, ...]]  # by kind: the approximation by 16 bumps


def numbers(settings):
    """Return Numbers. The seed draws the function: a sum of sines and cosines of up to three periods."""
    weights = np.random.default_rng(settings.seed).normal(size=(WAVES, 1)) / (1 + np.arange(WAVES)[:, None] // 2)
    x = np.linspace(0, 1, POINTS)

    def function(x):
        angles = np.pi * np.arange(1, WAVES + 1)[:, None] * x
        return (weights * np.where(np.arange(WAVES)[:, None] % 2, np.cos(angles), np.sin(angles))).sum(0)

    bumps = tuple(2**i for i in range(1, 11 if settings.full else 9))
    target = function(x)
    found = {kind: [approximate(kind, function, count, x) for count in bumps] for kind in KINDS}
    span = np.ptp(target)
    return Numbers(
        bumps,
        {kind: tuple(float(np.abs(y - target).max() / span) for y in each) for kind, each in found.items()},
        plain(x),
        plain(target),
        {kind: plain(each[bumps.index(16)]) for kind, each in found.items()},
    )


def approximate(kind, function, count, x):
    """Return the sum of `count` bumps, each with the function's value at its center as its weight, at x in [0, 1].

    Bumps go over the ends, where a sum needs those of the other side. No weight is trained.
    """
    width = 1 / count
    centers = (np.arange(-3, count + 3) + 0.5) * width
    heights = function(np.clip(centers, 0, 1))
    shape = sigmoid_bumps if kind == KINDS[0] else gaussian_bumps
    return np.asarray(shape(jnp.asarray(x), jnp.asarray(centers), width) @ jnp.asarray(heights), float)


def sigmoid_bumps(x, centers, width):
    """Return sigmoid(s (x - left)) - sigmoid(s (x - right)), [x, centers]: two units of a hidden layer for each bump.

    Left and right are the ends of an interval of `width`, and s is 4 / width. Bumps next to each other sum to 1.
    """
    away = 4 / width * (x[:, None] - centers[None])
    return sigmoid(away + 2) - sigmoid(away - 2)


def gaussian_bumps(x, centers, width):
    """Return Gaussian kernels of deviation `width`, scaled so that they sum to 1, [x, centers]."""
    features = rbf_features(x[:, None], centers[:, None], jnp.full(centers.shape, width))[:, 1:]
    return features / jnp.sqrt(2 * jnp.pi)


def table(numbers):
    """Return the largest error for each number of bumps."""
    header = ("bumps", *(f"largest error, {kind}" for kind in KINDS))
    return header, [
        (count, *(f"{numbers.errors[kind][i]:.2%}" for kind in KINDS)) for i, count in enumerate(numbers.bumps)
    ]


def claim(numbers):
    """Return whether the error goes to 0 as the number of bumps grows."""
    last = {kind: errors[-1] for kind, errors in numbers.errors.items()}
    fall = {kind: errors[numbers.bumps.index(16)] / errors[-1] for kind, errors in numbers.errors.items()}
    text = f"{numbers.bumps[-1]} bumps leave " + " and ".join(
        f"{last[kind]:.2%} of the function's range with {kind}, {fall[kind]:.0f} times less than 16 bumps"
        for kind in KINDS
    )
    return Claim(text + " (at most 2 %, at least 5 times less)", max(last.values()) <= 0.02 and min(fall.values()) >= 5)


def draw(numbers):
    """Return the function with its approximations, and the errors."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    left.plot(numbers.x, numbers.target, color="0.4", linewidth=3, alpha=0.5, label="function")
    for kind, style in zip(KINDS, ("-", "--")):
        left.plot(numbers.x, numbers.shown[kind], style, label=f"16 {kind}")
        right.plot(numbers.bumps, 100 * np.asarray(numbers.errors[kind]), f"o{style}", label=kind)
    left.set(xlabel="x", ylabel="y")
    right.set(xlabel="bumps", ylabel="largest error (% of the function's range)", xscale="log", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
