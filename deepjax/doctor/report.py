"""What an examination gives: findings, the table of layers, curves of the tried remedies."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepjax.doctor.measure import ParameterRow
from deepjax.doctor.rows import Row
from deepjax.files import replacing

SEVERITIES = ("serious", "warning", "note")


@dataclass(frozen=True)
class Outcome:
    """What a tried remedy changed, against training as planned with the same key and the same number of steps."""

    description: str
    """What was changed, in one line."""
    before: tuple[float, ...]
    """Training losses as planned, at most 200 points evenly spaced over the steps."""
    after: tuple[float, ...]
    """Training losses with the remedy. If the remedy changes the loss or the targets, its scale is another one."""
    quality_before: float
    """Share of right predictions, or R squared cut at 0, after training as planned. NaN if it cannot be told."""
    quality_after: float
    steps: int
    learns: bool
    """Whether the run with the remedy learns."""


@dataclass(frozen=True)
class Finding:
    """One cause for which there is evidence."""

    code: str
    """One word from the list of causes in the documentation."""
    severity: str
    """"serious": the model will not train well; "warning": likely harmful; "note": a waste or a risk."""
    title: str
    """The cause, in one sentence."""
    evidence: str
    """The numbers that show it."""
    remedy: str
    """What to change."""
    layer: str = ""
    """Path of the layer or parameter that it is about; empty if it is about the whole model."""
    outcome: Outcome | None = None
    """What the remedy changed when it was tried; None: it was not tried."""


@dataclass(frozen=True)
class Sweep:
    """Short runs with other learning rates."""

    factors: tuple[float, ...]
    """By which the planned rate was multiplied."""
    losses: tuple[tuple[float, ...], ...]
    """Curve of each run, at most 200 points."""
    quality: tuple[float, ...]
    final: tuple[float, ...]
    """Loss of each run at the end, in evaluation mode."""


@dataclass(frozen=True)
class Report:
    """The result of `examine`. It prints as text, and is shown as a table in a notebook."""

    verdict: str
    """One sentence."""
    findings: tuple[Finding, ...]
    """The most serious first, and the cause before its consequences."""
    facts: dict[str, str]
    """What was recognized: the data, the loss, the output, the plan; name -> text."""
    rows: tuple[Row, ...]
    """One per call of a layer, measured on one batch before training."""
    after: tuple[Row, ...]
    """The same rows, with all remedies and trained; or trained as planned, if nothing was found. May be empty."""
    parameters: tuple[ParameterRow, ...]
    planned: Outcome | None
    """Training as planned: `before` and `after` are the same curve."""
    cure: Outcome | None
    """All remedies together; None if nothing was to be cured."""
    sweep: Sweep | None
    spectrum: tuple[float, ...]
    """Singular values of the Jacobian of the outputs of one example in its inputs, the largest first."""
    sharpness: float
    """Largest eigenvalue of the Hessian of the loss on one batch, before training; NaN if it was not computed."""
    notes: tuple[str, ...] = field(default=())
    """What was left out, and why."""

    @property
    def serious(self) -> bool:
        """Whether there is a serious finding."""
        return any(finding.severity == "serious" for finding in self.findings)

    @property
    def table(self) -> str:
        """The layers as lines of text, one per row."""
        from deepjax.doctor.tables import layer_table

        return layer_table(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain lists, dicts and numbers, as `--json` prints it."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the report as JSON. Numbers that are not finite are null."""
        return json.dumps(_finite(self.to_dict()), indent=1)

    def save(self, path) -> None:
        """Write the report as one HTML file that needs no network, or as JSON if the name ends in ".json"."""
        from deepjax.doctor.html import to_html

        text = self.to_json() if Path(path).suffix == ".json" else to_html(self)
        with replacing(Path(path)) as partial:
            partial.write_text(text, encoding="utf-8")

    def __str__(self):
        from deepjax.doctor.tables import to_text

        return to_text(self)

    def _repr_html_(self):
        from deepjax.doctor.html import to_fragment

        return to_fragment(self)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
