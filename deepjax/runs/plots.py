"""The figures of a run. Each function draws given numbers; matplotlib is imported when the first figure is drawn."""

import numpy as np

from deepjax.files import replacing
from deepjax.parallel import is_main


def save(figure, path):
    """Write a figure as a PNG file of 150 dots per inch. Only the main process writes."""
    if is_main():
        with replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=150)


def _figure(width, height):
    """Return an empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def curves(lines):
    """Draw loss and error over epochs.

    Args:
      lines: result of `metrics.read`.

    Returns:
      A matplotlib Figure.
    """
    figure = _figure(10, 4)
    loss_axes, error_axes = figure.subplots(1, 2)
    for kind, style in (
        ("train", {"linewidth": 1}),
        ("train_epoch", {"marker": "."}),
        ("validation", {"marker": "."}),
    ):
        rows = [line for line in lines if line["kind"] == kind]
        if not rows:
            continue
        epochs = [row["epoch"] for row in rows]
        if kind == "train":  # single batches, behind the means of epochs
            loss_axes.plot(epochs, [row["loss"] for row in rows], color="0.8", label="training batches", **style)
            continue
        label = "training, mean of the epoch" if kind == "train_epoch" else "validation"
        loss_axes.plot(epochs, [row["loss"] for row in rows], label=label, **style)
        error_axes.plot(epochs, [100 * row["error"] for row in rows], label=label, **style)
    loss_axes.set(xlabel="epoch", ylabel="cross entropy (nats)", yscale="log")
    error_axes.set(xlabel="epoch", ylabel="error (%)")
    for axes in (loss_axes, error_axes):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
    return figure


def learning_rates(points, tenth, steepest, title):
    """Draw loss over learning rate in a range test.

    Args:
      points: `find_lr.Point`s.
      tenth, steepest: the two suggested learning rates, or None.
      title: title of the figure.

    Returns:
      A matplotlib Figure.
    """
    figure = _figure(7, 4.5)
    axes = figure.subplots()
    rates = [point.rate for point in points]
    axes.plot(rates, [point.loss for point in points], color="0.8", linewidth=1, label="batches")
    axes.plot(rates, [point.smoothed for point in points], label="smoothed")
    for rate, style, what in ((tenth, "-", "suggestion: a tenth of the minimum"), (steepest, "--", "steepest descent")):
        if rate is not None:
            axes.axvline(rate, color="C3", linestyle=style, linewidth=1, label=f"{what}: {rate:.2g}")
    axes.set(xlabel="learning rate", ylabel="cross entropy (nats)", xscale="log", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def confusion(counts, classes, title):
    """Draw a confusion matrix.

    Args:
      counts: i[classes, classes], by true class, then predicted class. Colors are fractions of the true class.
      classes: names of the classes.
      title: title of the figure.

    Returns:
      A matplotlib Figure.
    """
    n = len(classes)
    size = min(4 + 0.35 * n, 16)
    figure = _figure(size, size)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true class")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if n <= 30:
        axes.set_xticks(range(n), classes, rotation=45, ha="right")
        axes.set_yticks(range(n), classes)
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
