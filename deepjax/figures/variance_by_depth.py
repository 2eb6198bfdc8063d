"""Units vanish, keep their variance or explode with depth, as the variance of the weights determines."""

from dataclasses import dataclass

import numpy as np

from deepjax.figures.experiment import Claim, plain
from deepjax.runs.plots import new_figure

TITLE = "Variance of the units of each layer, for weights of different variance"
SOURCE = "Optimization and deeper architectures: random initialization of linear and relu units (He et al. 2015)"
USES = ("full",)
GAINS = {"linear": (2 / 3, 1, 3 / 2), "ReLU": (4 / 3, 2, 3)}  # k sigma^2, for layers of k units
FACTORS = (2 / 3, 1, 3 / 2)  # by which each layer then multiplies the variance, in expectation
FUNCTIONS = {"linear": lambda x: x, "ReLU": lambda x: np.maximum(x, 0)}
WIDTH, LAYERS, SIGMAS = 100, 8, 4
BINS = np.linspace(-3, 3, 62)  # of the histograms; the middle of a bin is 0


@dataclass(frozen=True)
class Case:
    """Many networks y = W f(x) with weights from N(0, sigma^2). Values by layer begin with those of the input."""

    activation: str
    gain: float  # k sigma^2
    variances: tuple[float, ...]  # mean of the squared units, whose mean is 0
    deviations: tuple[float, ...]  # standard errors of the variances
    densities: tuple[tuple[float, ...], ...]  # histogram of the units over BINS


@dataclass(frozen=True)
class Numbers:
    """All cases."""

    cases: tuple[Case, ...]


def numbers(settings):
    """Return Numbers: 8 layers of 100 units, an input from N(0, 1) for each of 300 networks (5,000 in full), float64.

    Units are measured in front of their activation. The seed draws the inputs and the weights.
    """
    rng = np.random.default_rng(settings.seed)
    nets = 5000 if settings.full else 300
    return Numbers(tuple(_case(rng, activation, gain, nets) for activation, gains in GAINS.items() for gain in gains))


def _case(rng, activation, gain, nets):
    units = np.stack([_units(rng, FUNCTIONS[activation], gain) for _ in range(nets)], 1)  # [1 + LAYERS, nets, WIDTH]
    squares = (units**2).mean(2)  # of one network; those of different networks are independent
    deviations = squares.std(1, ddof=1) / np.sqrt(nets)
    densities = [np.histogram(layer, BINS)[0] / (layer.size * np.diff(BINS)) for layer in units]
    return Case(activation, gain, plain(squares.mean(1)), plain(deviations), plain(densities))


def _units(rng, function, gain):
    """Return the units of the input and of each layer of one network, [1 + LAYERS, WIDTH]."""
    units = [rng.normal(size=WIDTH)]
    for _ in range(LAYERS):
        weights = rng.normal(scale=np.sqrt(gain / WIDTH), size=(WIDTH, WIDTH))
        units.append(weights @ function(units[-1]))
    return np.stack(units)


def offsets(case, factor):
    """Return how many standard errors the variance of each layer is from factor^layer, the expectation."""
    return (np.asarray(case.variances) - factor ** np.arange(LAYERS + 1)) / np.asarray(case.deviations)


def table(numbers):
    """Return the variance of the last layer of each case."""
    header = ("units", "k sigma^2", f"variance of layer {LAYERS}", "expected", "largest offset of a layer")
    return header, [
        (
            case.activation,
            f"{case.gain:.3g}",
            f"{case.variances[-1]:.4f} +- {case.deviations[-1]:.4f}",
            f"{factor**LAYERS:.4f}",
            f"{np.abs(offsets(case, factor)).max():.1f} standard errors",
        )
        for case, factor in zip(numbers.cases, FACTORS * len(GAINS), strict=True)
    ]


def claim(numbers):
    """Return whether every layer of every case has the expected variance."""
    pairs = zip(numbers.cases, FACTORS * len(GAINS), strict=True)
    largest = max(float(np.abs(offsets(case, factor)).max()) for case, factor in pairs)
    text = (
        f"over {LAYERS} layers, the variance is multiplied by k sigma^2 (linear units) or half of it (ReLU) in each "
        f"layer: all layers of all cases are within {largest:.1f} standard errors of that (at most {SIGMAS})"
    )
    return Claim(text, largest <= SIGMAS)


def draw(numbers):
    """Return histograms of the units, a panel for each case, a color for each layer."""
    figure = new_figure(11, 6)
    panels = figure.subplots(len(GAINS), len(FACTORS), sharex=True)
    lines = []
    for axes, case in zip(panels.flat, numbers.cases):
        colors = [str(0.75 * (1 - layer / LAYERS)) for layer in range(LAYERS + 1)]
        lines = [axes.stairs(each, BINS, color=color) for each, color in zip(case.densities, colors)]
        axes.set(title=f"{case.activation}, k sigma^2 = {case.gain:.3g}", ylim=(0, 2))
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("unit")
    figure.legend(lines, ["input", *map(str, range(1, LAYERS + 1))], title="layer", loc="outside right center")
    return figure
