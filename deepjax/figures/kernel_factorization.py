"""How many parameters two small kernels save that replace one larger kernel."""

from dataclasses import dataclass
from math import sqrt

import flax.linen as nn
import numpy as np

from deepjax.figures.experiment import Claim
from deepjax.runs.plots import new_figure
from deepjax.summary import summarize

TITLE = "Parameters saved by stacking and factorizing small kernels"
SOURCE = "Deep learning: stacking and factorizing small kernels; Szegedy et al. 2015 (arXiv 1512.00567), section 3"
USES = ("full",)
ALPHAS = (1.0, 1.5, 2.0, 3.0, 4.0)  # filters of the output, for each of the input
PAIRS = {  # windows of the one convolution, and of the two that replace it
    "two 3x3 for a 5x5": ((5, 5), (3, 3), (3, 3)),
    "1x3 and 3x1 for a 3x3": ((3, 3), (1, 3), (3, 1)),
}
MIDDLES = {"sqrt(alpha) n": sqrt, "alpha n": lambda alpha: alpha}  # filters between the two
PRINTED = {"two 3x3 for a 5x5": 0.24, "1x3 and 3x1 for a 3x3": 0.30}  # at alpha 2 and a middle of sqrt(alpha) n


@dataclass(frozen=True)
class Numbers:
    """Counts of two networks for each alpha, from the table of their layers."""

    n: int  # filters of the input
    alphas: tuple[float, ...]
    saved: dict[
        str, dict[str, tuple[float, ...]]
    ]  # by middle and pair: fraction of the parameters, below 0 if it costs
    fields: dict[str, tuple[tuple[int, ...], ...]]  # receptive fields of the one convolution and of the two


def numbers(settings):
    """Return Numbers. Nothing is random: all seeds give the same."""
    n = 1024 if settings.full else 256
    saved = {
        middle: {pair: tuple(_saved(n, alpha, filters(alpha), pair) for alpha in ALPHAS) for pair in PAIRS}
        for middle, filters in MIDDLES.items()
    }
    fields = {
        pair: tuple(_table(n, [(n, w) for w in part])[1] for part in (windows[:1], windows[1:]))
        for pair, windows in PAIRS.items()
    }
    return Numbers(n, ALPHAS, saved, fields)


def _saved(n, alpha, middle, pair):
    """Return the fraction of parameters that a pair saves whose first convolution has middle * n filters."""
    one, *two = PAIRS[pair]
    features = round(alpha * n)
    before = _table(n, [(features, one)])[0]
    return 1 - _table(n, list(zip((round(middle * n), features), two, strict=True)))[0] / before


def _table(n, convolutions):
    """Return (parameters, receptive field) of convolutions [(filters, window)] after n filters."""
    net = nn.Sequential([nn.Conv(features, window, use_bias=False) for features, window in convolutions])
    rows = summarize(net, (16, 16, n))
    return sum(row.parameters for row in rows), tuple(map(int, rows[-1].field.size))


def table(numbers):
    """Return the fractions that are saved."""
    header = ("filters between", "pair", *(f"alpha {alpha:g}" for alpha in numbers.alphas))
    rows = [
        (middle, pair, *(f"{0 - saved:+.1%}" for saved in fractions))
        for middle, pairs in numbers.saved.items()
        for pair, fractions in pairs.items()
    ]
    return header, rows


def claim(numbers):
    """Return whether the pairs see as much as the one kernel and save what the lecture prints."""
    at = numbers.alphas.index(2.0)
    root, wide = ({pair: fractions[at] for pair, fractions in pairs.items()} for pairs in numbers.saved.values())
    same = all(one == two for one, two in numbers.fields.values())
    parts = [
        f"{pair}: {-root[pair]:+.1%} ({-PRINTED[pair]:+.0%} within 1 point), and {0 - wide[pair]:+.1%} (no saving) "
        f"with 2 n filters between"
        for pair in PAIRS
    ]
    holds = same and all(abs(root[pair] - PRINTED[pair]) < 0.01 and wide[pair] < 0.005 for pair in PAIRS)
    seen = "the same receptive field" if same else "ANOTHER receptive field"
    return Claim(f"with alpha 2 and {seen}, parameters change by " + "; ".join(parts), holds)


def draw(numbers):
    """Return the saving over alpha: points are counted, lines the lecture's formulas."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    alpha = np.linspace(1, 4, 100)
    for (pair, windows), color, style in zip(PAIRS.items(), ("#0072B2", "#D55E00"), ("o", "s"), strict=True):
        one, first, second = (np.prod(window) for window in windows)
        for (middle, filters), line in zip(MIDDLES.items(), ("-", "--"), strict=True):
            m = np.array([filters(a) for a in alpha])
            axes.plot(alpha, 100 * ((first * m + second * m * alpha) / (one * alpha) - 1), line, color=color)
            counted = -100 * np.asarray(numbers.saved[middle][pair])
            axes.plot(
                numbers.alphas,
                counted,
                style,
                color=color,
                fillstyle="full" if line == "-" else "none",
                label=f"{pair}, {middle} filters between",
            )
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set(xlabel="alpha: filters of the output / filters of the input", ylabel="change of parameters (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
