"""The plots of a report, each as the text of an SVG element. Matplotlib is imported when the first one is drawn."""

import html
import io
import re
import warnings

import numpy as np

from deepjax.doctor.report import Outcome, Report, Sweep
from deepjax.runs.plots import new_figure

# Colors of Okabe and Ito, which color-blind readers can tell apart; lines differ in their style, too.
BEFORE = {"color": "#D55E00", "linestyle": (0, (4, 1.5)), "linewidth": 1.4}
AFTER = {"color": "#0072B2", "linestyle": "-", "linewidth": 1.6}
SHARES = (
    ("zeros", "zeros", {"color": "#0072B2", "linestyle": "-"}),
    ("saturated", "saturated", {"color": "#D55E00", "linestyle": (0, (4, 1.5))}),
    ("dead", "dead", {"color": "#000000", "linestyle": (0, (1, 1))}),
)
STYLE = {
    "svg.fonttype": "none",  # letters as text: small, and in the fonts of the page
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.transparent": True,
}
DOTS = 60  # markers of a line, at most
WIDTH, HEIGHT = 4.0, 2.6  # inches; on a phone's screen letters have about their size in points


def outcome(tried: Outcome, label: str) -> str:
    """Draw the losses of training as planned and with a remedy, over steps.

    Args:
      tried: a remedy that was tried; or training as planned, with nothing in `after`.
      label: what the picture shows, for readers who cannot see it.
    """
    return _svg(lambda axes: _losses(axes, tried.before, tried.after, tried.steps), label)


def profile(report: Report, name: str, title: str, after: str) -> str:
    """Draw a number of each layer over the layers, before training and after.

    Args:
      report: of an examination.
      name: of a field of `rows.Row`.
      title: of the axis.
      after: what `report.after` is, for the legend.
    """

    def draw(axes):
        axes.set_yscale("log")
        for rows, label, style in ((report.rows, "before training", BEFORE), (report.after, after, AFTER)):
            if rows:
                values = [getattr(row, name) for row in rows]
                _line(axes, np.arange(1, len(rows) + 1), values, label, style, dots=True)
        _layers(axes, report)
        axes.set_ylabel(title)

    return _svg(draw, f"{title}, over the layers")


def shares(report: Report) -> str:
    """Draw the shares of zeros, saturated and dead units of each layer, before training."""

    def draw(axes):
        for name, label, style in SHARES:
            values = [getattr(row, name) for row in report.rows]
            marker = "." if len(values) <= DOTS else None
            axes.plot(np.arange(1, len(values) + 1), values, label=label, marker=marker, linewidth=1.4, **style)
        axes.set(ylim=(-0.04, 1.04), ylabel="share of the units")
        _layers(axes, report)

    return _svg(draw, "shares of zeros, saturated and dead units, over the layers")


def spectrum(values: tuple[float, ...]) -> str:
    """Draw singular values, the largest first."""

    def draw(axes):
        axes.set_yscale("log")
        _line(axes, np.arange(1, len(values) + 1), values, "singular values", AFTER, dots=True)
        axes.set(xlabel="number", ylabel="singular value")
        _whole_numbers(axes)

    return _svg(draw, "singular values of the Jacobian")


def sweep_ends(sweep: Sweep, name: str, title: str) -> str:
    """Draw a number of each run of a sweep over its factor.

    Args:
      sweep: runs with other learning rates.
      name: "final" or "quality".
      title: of the axis.
    """

    def draw(axes):
        values = np.asarray(getattr(sweep, name), float)
        axes.set_xscale("log")
        if name == "final" and (values[np.isfinite(values)] > 0).all():
            axes.set_yscale("log")
        _line(axes, np.asarray(sweep.factors), values, None, AFTER, dots=True)
        axes.axvline(1, color="0.4", linestyle=":", linewidth=1.2, label="as planned")
        axes.set(xlabel="learning rate / planned rate", ylabel=title)

    return _svg(draw, f"{title}, over the learning rate")


def sweep_curves(sweep: Sweep) -> str:
    """Draw the loss of each run of a sweep, as far as it was made."""

    def draw(axes):
        import matplotlib

        colors = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(sweep.factors)))
        _log_if_wide(axes, [value for losses in sweep.losses for value in losses])
        for factor, losses, color in zip(sweep.factors, sweep.losses, colors, strict=True):
            style = {"color": "#D55E00", "linewidth": 2.4} if factor == 1 else {"color": color, "linewidth": 1.2}
            axes.plot(np.linspace(0, 100, len(losses)), _finite(losses), label=f"x {factor:g}", **style)
        axes.set(xlabel="% of the steps", ylabel="training loss")

    return _svg(draw, "losses with other learning rates, over the steps")


def _losses(axes, before, after, steps):
    _log_if_wide(axes, [*before, *after])
    for losses, label, style in ((before, "as planned", BEFORE), (after, "with the remedy", AFTER)):
        if losses:
            _line(axes, np.linspace(1, max(steps, 1), len(losses)), losses, label, style)
    axes.set(xlabel="step", ylabel="training loss")


def _log_if_wide(axes, values):
    """Use a logarithmic axis for positive values of different magnitudes."""
    values = _finite(values)
    values = values[~np.isnan(values)]
    if len(values) and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")


def _line(axes, x, values, label, style, dots=False):
    """Draw a line. Zeros, where the axis is logarithmic, are marked at its bottom, what is not finite at its top."""
    values = np.asarray(values, float)
    log = axes.get_yscale() == "log"
    finite = _finite(values)
    zero = log & (values <= 0)
    marker = "." if dots and len(values) <= DOTS else None
    axes.plot(x, np.where(zero, np.nan, finite), label=label, marker=marker, **style)
    for where, height, marker, what in ((zero, 0.02, "v", "0"), (np.isnan(finite), 0.98, "x", "not finite")):
        if where.any():
            place = x[where][:: 1 + where.sum() // DOTS]
            at = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            name = f"{label}: {what}" if label else what
            axes.plot(place, [height] * len(place), marker, color=style["color"], markersize=4, label=name, **at)


def _finite(values):
    """Return values as float64, NaN where they are not finite or no axis can show them."""
    values = np.asarray(values, float)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(values) < 1e100, values, np.nan)


def _layers(axes, report):
    """Label the axis of layers, and mark those that findings are about."""
    named = {finding.layer for finding in report.findings if finding.layer}
    marked = [i for i, row in enumerate(report.rows, 1) if row.layer in named]
    for i in marked[:20]:
        axes.axvline(i, color="0.6", linewidth=3, alpha=0.35, zorder=0, label=None if i != marked[0] else "finding")
    axes.set(xlabel="layer, by its number in the table", xlim=(0.5, None))
    _whole_numbers(axes)


def _whole_numbers(axes):
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _svg(draw, label):
    """Return a figure with one pair of axes as an SVG element that scales with the page."""
    import matplotlib.style

    buffer = io.StringIO()
    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": label}]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a range without extent, say: nothing that is worth a report
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.subplots()
        draw(axes)
        _plain_ticks(axes)
        if not any(np.isfinite(np.asarray(line.get_ydata(), float)).any() for line in axes.lines):
            axes.text(0.5, 0.5, "no finite numbers", transform=axes.transAxes, ha="center", color="0.3")
        handles, names = axes.get_legend_handles_labels()
        if names:
            columns = 3 if max(map(len, names)) < 16 else 2
            figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), columns))
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return _smaller(text[text.index("<svg") :], label)


def _plain_ticks(axes):
    """Write the ticks of logarithmic axes as 0.001 or 1e-05, without superscripts, and few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            low, high = axis.get_view_interval()
            if high < 12 * low:  # less than two powers of ten
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_locator(NullLocator())


def _smaller(svg, label):
    """Leave out what takes space: digits of coordinates behind the first, names of groups."""
    box, label = re.search(r'viewBox="[^"]*"', svg), html.escape(label)
    svg = f'<svg {box[0] if box else ""} role="img" aria-label="{label}">{svg[svg.index(">") + 1 :]}'
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), svg)
    names = "figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend"
    svg = re.sub(rf'<!--.*?-->\n?| id="(?:{names})[^"]*"', "", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()
