"""The figures of a run. Each function draws given numbers; matplotlib is imported when the first figure is drawn."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepjax.errors import first_line
from deepjax.files import replacing
from deepjax.parallel import is_main


class Curve(NamedTuple):
    """How a metric is drawn over epochs."""

    label: str  # of the axis
    factor: float = 1.0  # by which values are multiplied
    log: bool = False  # whether the axis is logarithmic


NOT_METRICS = ("kind", "step", "epoch", "seconds", "grad_norm", "learning_rate")  # in a line of metrics.jsonl


LETTERS = 40  # of a name in a figure


def draw(folder: Path, figures: Callable[[], Mapping[str, Any]], warn: Callable[[str], Any]) -> None:
    """Write figures to a folder. One that fails is a warning, because the records of the run do not depend on it.

    Args:
      folder: of the run. Everything that is recorded must have been written to it before.
      figures: function that returns {file name: Figure}.
      warn: receives one line if something cannot be drawn.
    """
    name = "its figures"
    try:
        for name, figure in figures().items():
            save(figure, folder / name)
    except Exception as error:  # fonts, memory, the user's matplotlibrc: nothing that is worth a finished training
        warn(f"{folder}: {name} cannot be drawn ({type(error).__name__}: {first_line(error)})")


def save(figure, path):
    """Write a figure in the format of the path's suffix, pixels at 150 dots per inch. Only the main process writes."""
    if is_main():
        with replacing(path) as partial, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter that the font lacks is drawn as a box
            figure.savefig(partial, format=path.suffix.removeprefix("."), dpi=150)


def drawn(text, letters=None):
    """Return a text without what Matplotlib cannot draw, cut to so many letters."""
    text = text.encode(errors="replace").decode()  # surrogates, which stand for bytes of a file's name
    return text if letters is None or len(text) <= letters else f"{text[: letters - 1]}…"


def new_figure(width, height):
    """Return an empty figure of this size in inches. Matplotlib is imported at the first call."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def curves(lines, known: Mapping[str, Curve]):
    """Draw every metric over epochs: those of `known` first, then what else the lines have, by name.

    Args:
      lines: result of `metrics.read`.
      known: how the metrics of the task are drawn, by name.

    Returns:
      A matplotlib Figure.
    """
    names = [*known, *sorted({name for line in lines for name in line} - {*known, *NOT_METRICS})]
    figure = new_figure(5 * len(names), 4)
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        curve = known.get(name, Curve(name))
        _draw(axes, name, [line for line in lines if name in line], curve.factor)
        axes.set(xlabel="epoch", ylabel=curve.label, yscale="log" if curve.log else "linear")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
    return figure


def _draw(axes, name, lines, factor):
    """Draw one metric of the epochs; the loss also of single batches, behind these."""
    for kind, label, style in (
        ("train", "training batches", {"linewidth": 1, "color": "0.8"}),
        ("train_epoch", "training, mean of the epoch", {"marker": "."}),
        ("validation", "validation", {"marker": "."}),
    ):
        rows = [line for line in lines if line["kind"] == kind]
        if rows and (kind != "train" or name == "loss"):
            axes.plot([row["epoch"] for row in rows], [factor * row[name] for row in rows], label=label, **style)


def learning_rates(points, tenth, steepest, loss, title):
    """Draw loss over learning rate in a range test.

    Args:
      points: `find_lr.Point`s.
      tenth, steepest: the two suggested learning rates, or None.
      loss: label of its axis.
      title: title of the figure.

    Returns:
      A matplotlib Figure.
    """
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    rates = [point.rate for point in points]
    axes.plot(rates, [point.loss for point in points], color="0.8", linewidth=1, label="batches")
    axes.plot(rates, [point.smoothed for point in points], label="smoothed")
    for rate, style, what in ((tenth, "-", "suggestion: a tenth of the minimum"), (steepest, "--", "steepest descent")):
        if rate is not None:
            axes.axvline(rate, color="C3", linestyle=style, linewidth=1, label=f"{what}: {rate:.2g}")
    axes.set(xlabel="learning rate", ylabel=loss, xscale="log")
    axes.set_title(drawn(title), parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def confusion(counts, totals, classes, title):
    """Draw a confusion matrix.

    Args:
      counts: i[classes, classes], by true class, then predicted class.
      totals: i[classes], the examples of each true class, of which colors are fractions.
      classes: names of the classes.
      title: title of the figure.

    Returns:
      A matplotlib Figure.
    """
    n = len(classes)
    size = min(4 + 0.35 * n, 16)
    figure = new_figure(size, size)
    axes = figure.subplots()
    shares = counts / np.maximum(totals, 1)[:, None]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    figure.suptitle(drawn(title), fontsize=10, parse_math=False)  # in names, dollar signs are dollar signs
    if n <= 30:
        names = [drawn(name, LETTERS) for name in classes]
        axes.set_xticks(range(n), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(n), names, parse_math=False)
        for row, column in np.argwhere(counts):
            dark = shares[row, column] > 0.5
            axes.text(
                column,
                row,
                counts[row, column],
                ha="center",
                va="center",
                fontsize=8,
                color="w" if dark else "k",
            )
    return figure


def candidates(found, curve: Curve, title):
    """Draw what a search found: a metric over the option with the most values, one line for each choice of the others.

    Args:
      found: [(values by the names of the options, the metric, or None if the candidate diverged)].
      curve: how the metric is drawn.
      title: title of the figure.

    Returns:
      A matplotlib Figure.
    """
    values = {name: list(dict.fromkeys(options[name] for options, _ in found)) for name in found[0][0]}
    across = max(values, key=lambda name: len(values[name]))
    lines: dict[str, dict] = {}
    for options, metric in found:
        label = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in options.items() if name != across)
        lines.setdefault(label, {})[options[across]] = np.nan if metric is None else curve.factor * metric
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for label, line in lines.items():
        heights = [line.get(value, np.nan) for value in values[across]]
        axes.plot(heights, marker="o", label=drawn(label, LETTERS) or None)
    diverged = sorted({values[across].index(options[across]) for options, metric in found if metric is None})
    if diverged:
        at_the_top = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(diverged, [1.0] * len(diverged), "x", color="C3", label="diverged", **at_the_top)
    axes.set_xticks(range(len(values[across])), [str(value) for value in values[across]])
    axes.set(xlabel=across, ylabel=f"validation {curve.label}", yscale="log" if curve.log else "linear")
    axes.set_title(drawn(title), parse_math=False)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    return figure


def coordinates(checks, title):
    """Draw coordinate checks: activations and their changes over the size, one line for each layer.

    Args:
      checks: list of `doctor.Coordinates`, one row of the figure for each.
      title: title of the figure.

    Returns:
      A matplotlib Figure.
    """
    figure = new_figure(11, 4.5 * len(checks))
    figure.suptitle(drawn(title), fontsize=10, parse_math=False)
    for check, pair in zip(checks, figure.subplots(len(checks), 2, squeeze=False), strict=True):
        labels = ("mean |activation| at initialization", f"mean |change| after {check.steps} updates")
        for axes, label, field in zip(pair, labels, ("activation", "change"), strict=True):
            for i, row in enumerate(check.rows):
                style = {"color": "k", "linewidth": 2.5} if i == len(check.rows) - 1 else {}
                values = [value if value > 0 else np.nan for value in getattr(row, field)]
                axes.plot(check.sizes, values, marker="o", markersize=4, label=drawn(row.layer, LETTERS), **style)
            axes.set(xlabel=check.axis, ylabel=label, xscale="log", yscale="log")
            axes.set_xticks(check.sizes, [str(size) for size in check.sizes])
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
        if len(check.rows) <= 12:
            pair[1].legend(fontsize=7)
    return figure


def predictions(targets, predicted, name, title):
    """Draw predicted numbers over true ones, with the line on which both are equal.

    Args:
      targets: f[examples].
      predicted: f[examples].
      name: name of the target.
      title: title of the figure.

    Returns:
      A matplotlib Figure.
    """
    figure, axes = _scatter(targets, predicted, title)
    ends = [min(np.min(targets), np.min(predicted)), max(np.max(targets), np.max(predicted))]
    axes.plot(ends, ends, color="k", linewidth=1, label="prediction = truth")
    axes.set_xlabel(f"true {drawn(name, LETTERS)}", parse_math=False)
    axes.set_ylabel(f"predicted {drawn(name, LETTERS)}", parse_math=False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend()
    return figure


def residuals(targets, predicted, name, title):
    """Draw residuals (prediction minus truth) over predicted numbers, with the line of no error.

    The arguments are those of `predictions`. Returns a matplotlib Figure.
    """
    figure, axes = _scatter(predicted, np.asarray(predicted, np.float64) - targets, title)
    axes.axhline(0, color="k", linewidth=1)
    axes.set_xlabel(f"predicted {drawn(name, LETTERS)}", parse_math=False)
    axes.set_ylabel("residual: predicted - true")
    return figure


def _scatter(x, y, title):
    figure = new_figure(6, 5)
    axes = figure.subplots()
    axes.scatter(x, y, s=12, alpha=0.6, linewidths=0)
    axes.set_title(drawn(title), fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    return figure, axes
