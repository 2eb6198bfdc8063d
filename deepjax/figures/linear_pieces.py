"""How many linear pieces a ReLU network of one input has on [0, 1], beside the bound 2^D W_1 ... W_D."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure

TITLE = "Linear pieces of random ReLU networks, and their bound"
SOURCE = "Going deeper: benefits and challenges of greater depth"
USES = ("full",)
WIDTHS, DEPTHS = (2, 4, 8, 16), (1, 2, 3, 4, 5, 6)
HALVINGS = 30  # of [0, 1], until an interval has one kink, but is still long beside rounding errors


@dataclass(frozen=True)
class Numbers:
    """Linear pieces of many networks, by width and number of hidden layers."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    bounds: tuple[tuple[int, ...], ...]  # [widths, depths]
    counts: tuple[tuple[tuple[int, ...], ...], ...]  # [widths, depths, networks]
    bisected: tuple[tuple[tuple[int, ...], ...], ...]  # the same, counted by bisection
    kinks: tuple[float, ...]  # of the first network of the largest width and depth, with 0 and 1
    outputs: tuple[float, ...]  # there


def random_mlp(rng, width, depth):
    """Draw a network of one input, `depth` hidden layers of `width` ReLUs and one linear output.

    Kernels have He's variance 2 / fan in. Biases have variance 1, so that there are kinks between 0 and 1.

    Returns:
      [(kernel [in, out], bias [out])] of each layer, float64.
    """
    sizes = (1, *(width,) * depth, 1)
    return [(rng.normal(size=(m, n)) * np.sqrt(2 / m), rng.normal(size=n)) for m, n in pairwise(sizes)]


def evaluate(layers, x):
    """Return the outputs of a ReLU network at x [points], its slopes there, and which units are positive.

    Args:
      layers: [(kernel, bias)], the last one linear.
      x: float64 [points].

    Returns:
      (outputs [points], slopes [points], bool [points, units]).
    """
    h, slope, patterns = x[:, None], np.ones((len(x), 1)), []
    for kernel, bias in layers[:-1]:
        s, slope = h @ kernel + bias, slope @ kernel
        patterns.append(s > 0)
        h, slope = np.maximum(s, 0), np.where(s > 0, slope, 0)
    kernel, bias = layers[-1]
    return (h @ kernel + bias)[:, 0], (slope @ kernel)[:, 0], np.concatenate(patterns, 1)


def breakpoints(layers):
    """Return the points of [0, 1] where a hidden unit of a ReLU network crosses 0, sorted, with 0 and 1 at the ends.

    Between the points found so far, everything that enters a layer is linear, so that its crossings are exact.
    """
    x = np.array([0.0, 1.0])
    h = x[:, None]
    for kernel, bias in layers[:-1]:
        s = h @ kernel + bias
        interval, unit = np.nonzero(s[:-1] * s[1:] < 0)
        left, right = s[interval], s[interval + 1]
        rows = np.arange(len(unit))
        share = left[rows, unit] / (left[rows, unit] - right[rows, unit])
        between = left + share[:, None] * (right - left)
        between[rows, unit] = 0  # exactly, not only up to rounding
        x = np.concatenate([x, x[interval] + share * (x[interval + 1] - x[interval])])
        order = np.argsort(x)
        x, h = x[order], np.maximum(np.concatenate([s, between])[order], 0)
    return np.unique(x)


def kinks(layers):
    """Return the ends of the linear pieces of a ReLU network on [0, 1]: 0, the points where its slope changes, 1."""
    x = breakpoints(layers)
    slopes = evaluate(layers, (x[:-1] + x[1:]) / 2)[1]
    return x[np.concatenate([[True], _differ(slopes[:-1], slopes[1:], slopes), [True]])]


def bisected_pieces(layers):
    """Count the linear pieces of a ReLU network on [0, 1] by halving intervals, without solving for any point.

    Under one pattern of positive units, all units are linear, so the inputs with that pattern are an interval. Thus an
    interval whose ends have the same pattern has no kink, and only the others are halved.
    """
    left, right = np.array([0.0]), np.array([1.0])
    for _ in range(HALVINGS):
        middle = (left + right) / 2
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        differ = (evaluate(layers, left)[2] != evaluate(layers, right)[2]).any(1)
        left, right = left[differ], right[differ]
    before, after = evaluate(layers, left)[1], evaluate(layers, right)[1]
    return 1 + int(_differ(before, after, np.concatenate([before, after])).sum())


def _differ(a, b, slopes):
    return np.abs(a - b) > 1e-9 * np.abs(slopes).max(initial=0)


def numbers(settings):
    """Return Numbers. The seed draws the networks."""
    networks = 1000 if settings.full else 50
    rng = np.random.default_rng(settings.seed)
    drawn = [[[random_mlp(rng, w, d) for _ in range(networks)] for d in DEPTHS] for w in WIDTHS]
    ends = kinks(drawn[-1][-1][0])
    return Numbers(
        WIDTHS,
        DEPTHS,
        tuple(tuple((2 * w) ** d for d in DEPTHS) for w in WIDTHS),
        tuple(tuple(tuple(len(kinks(net)) - 1 for net in nets) for nets in row) for row in drawn),
        tuple(tuple(tuple(map(bisected_pieces, nets)) for nets in row) for row in drawn),
        tuple(ends.tolist()),
        tuple(evaluate(drawn[-1][-1][0], ends)[0].tolist()),
    )


def table(numbers):
    """Return the mean and the largest number of pieces, and the bound."""
    header = ("width", "hidden layers", "pieces: mean", "most", "bound")
    rows = []
    for width, row, bounds in zip(numbers.widths, numbers.counts, numbers.bounds):
        for depth, counts, bound in zip(numbers.depths, row, bounds):
            rows.append((width, depth, f"{np.mean(counts):.1f}", max(counts), f"{bound:,}"))
    return header, rows


def claim(numbers):
    """Return whether no network has more pieces than the bound, and both counts agree."""
    counts = np.asarray(numbers.counts)
    most = (counts.max(-1) / np.asarray(numbers.bounds)).max(0)
    different = np.count_nonzero(counts != np.asarray(numbers.bisected))
    text = (
        f"of {counts.size} networks none has more pieces than 2^D W_1 ... W_D (the most: {most[0]:.0%} of it with one "
        f"hidden layer, {most[-1]:.2g} of it with {numbers.depths[-1]}), and {different} have another number of pieces "
        f"by bisection (none may)"
    )
    return Claim(text, bool(most.max() <= 1 and different == 0))


def draw(numbers):
    """Return pieces and bounds over depth, and one network with its kinks."""
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    for width, row, bounds in zip(numbers.widths, numbers.counts, numbers.bounds):
        (line,) = left.plot(numbers.depths, [np.mean(counts) for counts in row], "o-", label=f"width {width}, mean")
        left.plot(numbers.depths, bounds, "--", color=line.get_color())
    left.plot([], [], "k--", label="bounds")
    left.set(xlabel="hidden layers", ylabel="linear pieces on [0, 1]", yscale="log")
    right.plot(numbers.kinks, numbers.outputs, ".-", markersize=5)
    title = f"a network of {numbers.depths[-1]} x {numbers.widths[-1]} units: {len(numbers.kinks) - 1} pieces"
    right.set(xlabel="input", ylabel="output", title=title)
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
