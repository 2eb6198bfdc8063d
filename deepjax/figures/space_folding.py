"""Layers of ReLUs fold the plane, so that the number of linear regions grows exponentially with depth."""

from dataclasses import dataclass

import numpy as np

from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure

TITLE = "Linear regions of ReLU networks in the plane: folds, and one layer of as many units"
SOURCE = "Deep learning: why do we bother about deep learning (Montufar et al. 2014)"
USES = ("full",)
UNITS, SHOWN = 4, 3  # of a layer that folds the plane; number of layers that is drawn
FOLD = np.array([[1.0, -1, 0, 0], [0, 0, 1, -1]])  # x, -x, y, -y


@dataclass(frozen=True)
class Numbers:
    """Numbers of linear regions in the square [-1, 1]^2, by number of folding layers."""

    layers: tuple[int, ...]
    folds: tuple[int, ...]  # regions of the network that folds
    shallow: tuple[int, ...]  # of one layer of as many random units: the most of ten
    bounds: tuple[int, ...]  # the most that one layer of as many units can have
    maps: dict[str, tuple[tuple[int, ...], ...]]  # region of each point of a grid, for 3 layers


def numbers(settings):
    """Return Numbers. The seed draws the layers of random units."""
    rng = np.random.default_rng(settings.seed)
    layers = tuple(range(1, 8 if settings.full else 7))
    points = grid(1024 if settings.full else 512)
    found = [[count(random_layer(rng, UNITS * depth, points)) for _ in range(10)] for depth in layers]
    small = grid(128)
    return Numbers(
        layers,
        tuple(count(folds(depth, points)) for depth in layers),
        tuple(map(max, found)),
        tuple(bound(UNITS * depth) for depth in layers),
        {
            "three folds": _map(folds(SHOWN, small)),
            "one layer": _map(random_layer(rng, UNITS * SHOWN, small)),
        },
    )


def grid(size):
    """Return the centers of size x size cells of the square [-1, 1]^2, [size^2, 2]."""
    axis = (2 * np.arange(size) + 1) / size - 1
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)


def folds(depth, points):
    """Return which units are positive, bool [points, 4 depth], in a network that folds `depth` times.

    Four ReLUs of a layer give |x| = relu(x) + relu(-x) and |y|. The next layer's weights and biases first make them
    2|x| - 1 and 2|y| - 1, so that each quadrant is mapped to the whole square.
    """
    patterns = []
    for _ in range(depth):
        hidden = points @ FOLD
        patterns.append(hidden > 0)
        points = 2 * np.maximum(hidden, 0) @ np.abs(FOLD).T - 1
    return np.concatenate(patterns, 1)


def random_layer(rng, units, points):
    """Return which units are positive, bool [points, units]: lines in random directions that pass the middle part."""
    angles, away = rng.uniform(0, 2 * np.pi, units), rng.uniform(-0.7, 0.7, units)
    return points @ np.stack([np.cos(angles), np.sin(angles)]) > away


def count(patterns):
    """Return the number of different patterns. The network is linear where the pattern is the same."""
    return len(np.unique(_numbered(patterns)))


def _numbered(patterns):
    """Return each pattern of up to 62 units as an integer."""
    return patterns @ (1 << np.arange(patterns.shape[1]))


def bound(units):
    """Return 1 + n + n (n - 1) / 2: the most regions into which n lines divide the plane (Zaslavsky 1975)."""
    return 1 + units + units * (units - 1) // 2


def _map(patterns):
    """Return a number for the region of each point, in random order, so that neighbors have different colors."""
    region = np.unique(_numbered(patterns), return_inverse=True)[1]
    order = np.random.default_rng(0).permutation(region.max() + 1)
    return plain(order[region].reshape(round(len(region) ** 0.5), -1))


def table(numbers):
    """Return the regions by number of layers."""
    header = ("layers", "units", "regions by folds", "one layer, most of 10", "one layer, bound")
    columns = numbers.layers, [UNITS * n for n in numbers.layers], numbers.folds, numbers.shallow, numbers.bounds
    return header, list(zip(*columns))


def claim(numbers):
    """Return whether each fold multiplies the regions by four, and one layer stays below its bound."""
    exact = all(regions == 4**depth for depth, regions in zip(numbers.layers, numbers.folds))
    below = all(regions <= most for regions, most in zip(numbers.shallow, numbers.bounds))
    text = (
        f"{numbers.layers[-1]} layers of {UNITS} units have {numbers.folds[-1]:,} regions (4^layers, exactly, for each "
        f"number of layers); one layer of {UNITS * numbers.layers[-1]} random units has {numbers.shallow[-1]} (at most "
        f"{numbers.bounds[-1]}, the bound)"
    )
    return Claim(text, exact and below and numbers.folds[-1] > numbers.bounds[-1])


def draw(numbers):
    """Return the regions in the plane, and their numbers over the units."""
    figure = new_figure(13, 4)
    first, second, third = figure.subplots(1, 3)
    for axes, (name, regions) in zip((first, second), numbers.maps.items()):
        axes.imshow(np.asarray(regions), extent=(-1, 1, -1, 1), origin="lower", cmap="nipy_spectral")
        axes.set_title(f"{UNITS * SHOWN} units, {name}: {len(np.unique(regions))} regions", fontsize=10)
    units = UNITS * np.asarray(numbers.layers)
    third.plot(units, numbers.folds, "o-", label="folds, layers of 4 units")
    third.plot(units, numbers.bounds, "--", color="0.5", label="one layer, bound")
    third.plot(units, numbers.shallow, "s-", label="one layer, random units")
    third.set(xlabel="units", ylabel="linear regions", yscale="log")
    third.grid(alpha=0.3)
    third.legend(fontsize=8)
    return figure
