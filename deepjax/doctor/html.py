"""A report as one HTML file that needs no network, and as a fragment for notebooks."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from deepjax.doctor import plots
from deepjax.doctor.report import SEVERITIES, Outcome, Report
from deepjax.doctor.rows import Row
from deepjax.doctor.tables import COLUMNS, fold, joint, number, outcome_text, quality, share, shorten, tried_text

TEMPLATES = Path(__file__).parent / "templates"
MARKS = {"serious": "✖", "warning": "▲", "note": "●"}  # a severity must be visible without colors too
MOST = 2000  # rows of a table in the file; runs of similar layers are folded in longer ones
LOSSES = "training loss without and with the remedy"  # what a plot shows, for readers who cannot see it
BRIEF = 6  # rows at each end of a table in a notebook
PATH = 44  # letters of a path


def to_html(report: Report) -> str:
    """Return a report as one HTML page. All texts are escaped, and it loads nothing."""
    together = joint(report)
    findings = [
        {
            "finding": finding,
            "plot": None if finding.outcome == together else _tried(finding.outcome, f"{LOSSES} of {finding.code}"),
            "tried": _arrows(tried_text(finding, together)),
        }
        for finding in report.findings
    ]
    return _template("report.html").render(
        report=report,
        summary=_summary(report),
        marks=MARKS,
        findings=findings,
        training=_training(report),
        profiles=_profiles(report),
        map=_map(report),
        facts=_facts(report),
        sweep=_sweep(report),
        layers=_layers(report, report.rows if len(report.rows) <= MOST else fold(report.rows, _named(report))),
        parameters=_parameters(report),
    )


def to_fragment(report: Report) -> str:
    """Return verdict, findings and a short table of layers as HTML for the output of a notebook's cell."""
    rows = fold(report.rows, _named(report))
    if len(rows) > 2 * BRIEF + 1:
        left_out = sum(row if isinstance(row, int) else 1 for row in rows[BRIEF:-BRIEF])
        rows = [*rows[:BRIEF], left_out, *rows[-BRIEF:]]
    titles, columns = [column.title for column in COLUMNS], COLUMNS[1:]
    layers = _layers(report, rows, titles, lambda row: [column.text(row) for column in columns])
    together = joint(report)
    findings = [(finding, _arrows(tried_text(finding, together))) for finding in report.findings]
    cure = together and f"{together.description}: {_arrows(outcome_text(together))}"
    return _template("fragment.html").render(report=report, marks=MARKS, findings=findings, cure=cure, layers=layers)


def _template(name):
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def _safe(svg):
    from markupsafe import Markup

    return Markup(svg)


def _named(report):
    return {finding.layer for finding in report.findings if finding.layer}


def _summary(report):
    """Return how many findings there are of each severity: [(class of the page's style, text)]."""
    if not report.findings:
        learns = report.planned is not None and report.planned.learns
        return [("healthy", "✔ it learns, nothing found")] if learns else [("note", "nothing found")]
    counts = {severity: sum(f.severity == severity for f in report.findings) for severity in SEVERITIES}
    plural = {"serious": "serious", "warning": "warnings", "note": "notes"}
    texts = {name: f"{MARKS[name]} {count} {name if count == 1 else plural[name]}" for name, count in counts.items()}
    return [(name, texts[name]) for name, count in counts.items() if count]


def _tried(outcome: Outcome | None, label):
    """Return the plot of a remedy that was tried, or None."""
    if outcome is None or not (outcome.before or outcome.after):
        return None
    return _safe(plots.outcome(outcome, label))


def _arrows(text):
    return text and text.replace(" -> ", " → ")


def _training(report):
    """Return [(title, text, plot)] of all remedies together, or of training as planned."""
    together = joint(report)
    if together is not None:
        text = f"{together.description}: {_arrows(outcome_text(together))}"
        return [("All remedies together", text, _tried(together, "training loss without and with all remedies"))]
    if report.cure is not None or report.planned is None:
        return []
    run = report.planned
    ending = "the model learns" if run.learns else "the model does not learn"
    known = "" if math.isnan(run.quality_after) else f", quality {quality(run.quality_after)}"
    plot = _tried(dataclasses.replace(run, after=()), "training loss as planned")
    return [("Training as planned", f"{run.steps:,} steps{known}: {ending}", plot)]


def _profiles(report):
    """Return [(title, how to read it, plot)] of the numbers over the layers."""
    if not report.rows:
        return []
    after = "with the remedies, trained" if report.cure else "trained as planned"
    return [
        (
            "Activations by layer",
            "Standard deviation of the outputs of each layer. In a healthy net it stays within one or two powers of "
            "ten. A straight line that falls or rises on this axis is exponential vanishing or explosion.",
            _safe(plots.profile(report, "std", "standard deviation", after)),
        ),
        (
            "Gradients by layer",
            "Root mean square of the gradient of the loss in these outputs. Gradients come from the right: a line that "
            "falls to the left means that the first layers get no gradient.",
            _safe(plots.profile(report, "gradient_rms", "gradient (rms)", after)),
        ),
        (
            "Zeros, saturated and dead units",
            "Shares behind the activation, before training. A dead unit is constant on the whole batch. "
            "After a ReLU, half of the values are usually 0.",
            _safe(plots.shares(report)),
        ),
    ]


def _map(report):
    """Return [(title, how to read it, plot)] of the singular values."""
    if not report.spectrum:
        return []
    largest, smallest = report.spectrum[0], report.spectrum[-1]
    ratio = f", {number(largest / smallest)} times the smallest" if smallest > 0 else ""
    text = (
        "How much a small change of one example's inputs changes the outputs, direction by direction. The largest is "
        f"{number(largest)}{ratio}. Signals and gradients pass best if most are near 1."
    )
    return [("Singular values of the Jacobian", text, _safe(plots.spectrum(report.spectrum)))]


def _facts(report):
    """Return the facts, with the sharpness."""
    if math.isnan(report.sharpness):
        return report.facts
    text = f"{number(report.sharpness)}, the largest eigenvalue of the Hessian of the loss, before training."
    if 0 < report.sharpness < math.inf:
        text += f" Plain gradient descent diverges at rates above 2 / sharpness = {number(2 / report.sharpness)}."
    return report.facts | {"sharpness": text}


def _sweep(report):
    """Return [(title, how to read it, plot)] of the runs with other learning rates."""
    sweep = report.sweep
    if sweep is None or not sweep.factors:
        return []
    parts = [("final", "final loss", "Loss at the end, in evaluation mode. A planned rate is good near the minimum.")]
    if any(not math.isnan(value) for value in sweep.quality):
        parts.append(("quality", "final quality", "Share of right predictions, or R², at the end, in evaluation mode."))
    plotted = [(title.capitalize(), text, _safe(plots.sweep_ends(sweep, name, title))) for name, title, text in parts]
    text = "Training losses. The run at the planned rate is the thick orange line."
    return [*plotted, ("Curves", text, _safe(plots.sweep_curves(sweep)))]


LAYER_TITLES = (
    "layer", "kind", "kernel", "then", "mean", "std", "not finite", "zeros", "satur.", "dead", "rank", "rel. rank",
    "cosine", "gradient", "grad. not finite", "weight", "weight grad.", "gain", "symm.", "orth.", "fan-in", "bias",
)  # fmt: skip
PARAMETER_TITLES = (
    "parameter", "shape", "norm", "gradient", "update", "gradient / norm", "update / norm", "signal / noise", "cosine"
)  # fmt: skip


def _layers(report, rows, titles=LAYER_TITLES, cells=None) -> dict[str, Any]:
    """Return the table of layers: titles, and for each line its number, its cells and whether a finding is about it."""
    named, lines, count = _named(report), [], 0
    for row in rows:
        count += row if isinstance(row, int) else 1
        if isinstance(row, int):
            lines.append({"more": row})
        else:
            lines.append(_line(count, row.layer, (cells or _cells)(row), named))
    return {"titles": titles, "lines": lines}


def _line(number, path, cells, named):
    short = shorten(path, PATH)
    full = None if short == path else path
    return {"number": number, "path": short, "full": full, "hit": path in named, "cells": cells}


def _cells(row: Row):
    return (
        row.kind,
        _shape(row.shape),
        row.activation,
        number(row.mean),
        number(row.std),
        share(row.non_finite),
        share(row.zeros),
        share(row.saturated),
        share(row.dead),
        number(row.rank),
        number(row.relative_rank),
        number(row.cosine),
        number(row.gradient_rms),
        share(row.gradient_non_finite),
        number(row.weight_rms),
        number(row.weight_gradient_rms),
        number(row.gain),
        share(row.symmetric),
        number(row.orthogonality),
        str(row.fan_in),
        "yes" if row.bias else "no",
    )


def _parameters(report) -> dict[str, Any]:
    """Return the table of parameters, in the form of `_layers`."""
    named, lines, rows = _named(report), [], report.parameters[:MOST]
    for i, row in enumerate(rows, 1):
        norms = (row.norm, row.gradient_norm, row.update_norm)
        rest = (row.gradient_ratio, row.update_ratio, row.snr, row.cosine)
        lines.append(_line(i, row.path, (_shape(row.shape), *map(number, norms + rest)), named))
    if len(report.parameters) > len(rows):
        lines.append({"more": len(report.parameters) - len(rows)})
    return {"titles": PARAMETER_TITLES, "lines": lines}


def _shape(shape):
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape)) or "scalar"
