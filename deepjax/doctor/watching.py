"""What one measurement within training shows, without trials: findings, whether the run is hopeless, its report."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from deepjax.doctor.causes.structure import SATURATING
from deepjax.doctor.causes.weights import DEAD, DEPTH, GRADIENT, SATURATED
from deepjax.doctor.evidence import curve
from deepjax.doctor.measure import Measurement
from deepjax.doctor.report import Finding, Outcome, Report
from deepjax.doctor.rows import Row

WATCHES = 5  # in a row that must show the same before a run is hopeless
RELUS = ("relu", "relu6")
FIELDS = ("std", "zeros", "saturated", "dead", "gradient_rms")  # of a row, in a record
ADVICE = {
    "non_finite": "Lower the learning rate or clip the gradient; `deepjax doctor --nan` names the operation.",
    "dead_relus": "Start with biases of 0 and weights by He et al. (2015), and lower the learning rate.",
    "saturated_activations": "Scale inputs and weights so that the inputs of the activation have variance 1.",
    "exploding_activations": "Initialize by He et al. (2015) or from data, normalize, or lower the learning rate.",
    "vanishing_activations": "Initialize by He et al. (2015) or from data, or normalize.",
    "exploding_gradients": "Clip the gradient, normalize, or use residual connections.",
    "vanishing_gradients": "Use ReLU, initialization from data, normalization or residual connections.",
}


def record(measured: Measurement) -> dict[str, Any]:
    """Return the numbers of a measurement to keep: the loss, and a list over the layers for each of FIELDS.

    "update_ratio" is that of the layer's kernel. Numbers have four digits, and are None if they are not finite.
    """
    ratios = {row.path: row.update_ratio for row in measured.parameters}
    columns = {name: [_short(getattr(row, name)) for row in measured.rows] for name in FIELDS}
    columns["update_ratio"] = [_short(ratios.get(row.parameters[0], math.nan)) for row in measured.rows]
    loss = measured.loss if math.isfinite(measured.loss) else None
    return {"loss": loss, "layers": [row.layer for row in measured.rows], **columns}


def _short(value):
    return float(f"{value:.4g}") if math.isfinite(value) else None


def findings(measured: Measurement) -> tuple[Finding, ...]:
    """Return what is wrong on this batch. No remedy is tried: all are warnings, except values that are not finite."""
    hidden = measured.rows[:-1]
    found = [*_non_finite(measured)]
    for row in hidden:
        if row.activation in RELUS and row.dead > DEAD:
            text = f"{100 * row.dead:.0f} % of its units return the same for all examples of the batch"
            found.append(_finding("dead_relus", "ReLUs are dead, so they have no gradient.", text, row))
        if row.activation in SATURATING and row.saturated > SATURATED:
            text = f"{100 * row.saturated:.0f} % of the outputs of {row.activation} are saturated"
            found.append(_finding("saturated_activations", "Activations are saturated.", text, row))
    found += _over_depth([row for row in hidden if row.kind != "embedding"])
    return tuple(found)


def _finding(code, title, evidence, row: Row, severity="warning"):
    return Finding(code, severity, title, evidence, ADVICE[code], row.layer)


def _non_finite(measured):
    for row in measured.rows:
        if row.non_finite > 0 or row.gradient_non_finite > 0:  # not NaN, where there is no number
            text = f"{100 * row.non_finite:.0f} % of its outputs and {100 * row.gradient_non_finite:.0f} % of their "
            yield _finding("non_finite", "Values are infinite or no number.", text + "gradients", row, "serious")
            return  # the others follow from the first


def _over_depth(rows):
    """Yield what grows or shrinks from layer to layer.

    A residual branch that begins with zeros has a layer with tiny outputs, which is healthy. So what vanishes must do
    so in all layers of the last quarter (activations) or of the first quarter (gradients).
    """
    rows = [row for row in rows if math.isfinite(row.std) and row.std > 0 and math.isfinite(row.gradient_rms)]
    if len(rows) < 3:
        return
    first, last, quarter = rows[0], rows[-1], max(2, len(rows) // 4)
    stds, rms = np.array([(row.std, row.gradient_rms) for row in rows]).T
    widest = int(stds.argmax())
    if stds[widest] / stds[0] > DEPTH:
        text = f"standard deviation of the outputs {stds[0]:.3g} in {first.layer}, {stds[widest]:.3g} here"
        yield _finding("exploding_activations", "Activations grow from layer to layer.", text, rows[widest])
    elif stds[-quarter:].max() / stds[0] < 1 / DEPTH:
        text = f"standard deviation of the outputs {stds[0]:.3g} in {first.layer}, {stds[-1]:.3g} here"
        yield _finding("vanishing_activations", "Activations shrink from layer to layer.", text, last)
    text = f"root mean square of the gradient {rms[-1]:.3g} in {last.layer}, {rms[0]:.3g} here"
    if rms[-1] > 0 and rms[:quarter].min() / rms[-1] > GRADIENT:
        yield _finding("exploding_gradients", "Gradients grow on their way back.", text, first)
    elif rms[-1] > 0 and rms[:quarter].max() / rms[-1] < 1 / GRADIENT:
        yield _finding("vanishing_gradients", "Gradients shrink on their way back.", text, first)


def stuck(measured: Measurement) -> Finding | None:
    """Return what keeps the network from learning on this batch: a layer without a unit that is alive, no gradient."""
    for row in measured.rows[:-1]:
        if row.activation in RELUS and row.dead == 1:
            text = f"all units of {row.layer} are dead"
            return _finding("dead_relus", "ReLUs are dead, so they have no gradient.", text, row, "serious")
    for row in measured.rows[:1]:
        if row.gradient_rms == 0:
            text = f"all gradients of {row.layer} are 0"
            return _finding("vanishing_gradients", "No gradient reaches the first layer.", text, row, "serious")
    return None


def hopeless(records: Sequence[dict]) -> str:
    """Return why a run cannot learn, or "".

    It is hopeless if each of its last WATCHES records has something that is stuck, and their mean loss is not below the
    first record's loss.

    Args:
      records: of the run so far, oldest first, with "loss" and "stuck" (the evidence of what `stuck` found, or "").
    """
    first, recent = records[0]["loss"], records[1:][-WATCHES:]
    losses = [each["loss"] for each in recent]
    if len(recent) < WATCHES or None in (first, *losses) or not all(each["stuck"] for each in recent):
        return ""
    mean = sum(losses) / WATCHES
    if mean < first - 1e-6 * abs(first):  # less is rounding
        return ""
    return f"{recent[-1]['stuck']}, and the loss has not fallen: {first:.4g} at first, {mean:.4g} on average now"


def report(
    verdict: str,
    found: Iterable[Finding],
    first: tuple[int, Measurement],
    newest: tuple[int, Measurement],
    losses: Sequence[float],
) -> Report:
    """Return the report of a run that was stopped.

    Args:
      verdict: one sentence.
      found: its findings.
      first, newest: (training steps before it, measurement).
      losses: of the batches that were measured.
    """
    points, nan = curve(losses), math.nan
    text = f"The layers were measured in training, at step {first[0]} and, as the second line, at step {newest[0]}."
    return Report(
        verdict=verdict,
        findings=tuple(found),
        facts={"loss": f"{first[1].loss:.4g} at step {first[0]}, {newest[1].loss:.4g} at step {newest[0]}"},
        rows=first[1].rows,
        after=newest[1].rows,
        parameters=newest[1].parameters,
        planned=Outcome("as trained", points, points, nan, nan, newest[0], learns=False),
        cure=None,
        sweep=None,
        spectrum=(),
        sharpness=nan,
        notes=(text, "No remedy was tried: `deepjax doctor` with the same config tries them."),
    )
