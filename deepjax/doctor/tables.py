"""A report as text: formats of numbers, the table of layers, the whole report."""

import math
import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from deepjax.doctor.report import Finding, Outcome, Report
from deepjax.doctor.rows import Row

WIDTH = 100  # columns of a terminal
NAME = 16  # of them for the path of a layer, at least
PERIOD = 16  # layers that a repeated unit has, at most, to be found
SHOWN = 3  # rows at each end of a run of similar layers that stay, at least
LONGEST = 40  # rows of a run that is not folded


class Column(NamedTuple):
    """One column of the table of layers."""

    title: str
    text: Callable[[Row], str]
    left: bool = False
    always: bool = True  # otherwise it is left out when all its cells are "0"


def number(value: float) -> str:
    """Return a number with three significant digits, in at most eight letters for |value| < 1e100.

    >>> number(0.012345), number(-12345.6), number(1.234e-7), number(float("nan"))
    ('0.0123', '-12346', '1.2e-07', 'nan')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    return f"{value:.1e}"


def share(value: float) -> str:
    """Return a share as a percentage. What is not quite none or all is not rounded to it.

    >>> share(0.0), share(0.001), share(0.376), share(0.999), share(1.0)
    ('0', '<1%', '38%', '>99%', '100%')
    """
    if value in (0, 1) or math.isnan(value):
        return "nan" if math.isnan(value) else "100%" if value else "0"
    return "<1%" if value < 0.01 else ">99%" if value > 0.99 else f"{100 * value:.0f}%"


def shorten(text: str, length: int) -> str:
    """Return a path of at most `length` letters: what is too long is cut out between its beginning and its end.

    >>> shorten("stage1_rest/unit/branch/conv1[17]", 20)
    'stage1…nch/conv1[17]'
    """
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def fold(rows: Sequence[Row], keep: Collection[str] = ()) -> list[Row | int]:
    """Return the rows, with the middle of each long run of similar layers replaced by how many rows it has.

    Rows are similar if their paths differ only in numbers, as the steps of a scan or "Dense_0", "Dense_1", ... do. A
    run may repeat a unit of several layers.

    Args:
      rows: of the table.
      keep: paths of layers whose rows stay.
    """
    names = [re.sub(r"\d+", "0", row.layer) for row in rows]
    hidden = np.zeros(len(rows), bool)
    lengths = {period: _run_lengths(names, period) for period in range(1, PERIOD + 1)}
    start = 0
    while start < len(rows):
        period = max(lengths, key=lambda p: (lengths[p][start], -p))
        length, ends = lengths[period][start], period * math.ceil(SHOWN / period)
        if length > max(LONGEST, 2 * ends + 1):
            hidden[start + ends : start + length - ends] = True
            start += length
        else:
            start += 1
    hidden &= [row.layer not in keep for row in rows]
    folded: list[Row | int] = []
    for row, hide in zip(rows, hidden, strict=True):
        if not hide:
            folded.append(row)
        elif folded and isinstance(folded[-1], int):
            folded[-1] += 1
        else:
            folded.append(1)
    return folded


def _run_lengths(names, period):
    """Return how many rows from each one on repeat a unit of `period` rows: a multiple of `period`, 0 if it is one."""
    equal = np.zeros(len(names) + 1, int)  # rows from here on that are like the one a period later
    for i in range(len(names) - period - 1, -1, -1):
        equal[i] = equal[i + 1] + 1 if names[i] == names[i + period] else 0
    return np.where(equal[:-1] >= period, (equal[:-1] // period + 1) * period, 0)


COLUMNS = (
    Column("layer", lambda row: row.layer, left=True),
    Column("then", lambda row: row.activation, left=True),
    Column("std", lambda row: number(row.std)),
    Column("not finite", lambda row: share(row.non_finite), always=False),
    Column("zeros", lambda row: share(row.zeros)),
    Column("satur.", lambda row: share(row.saturated)),
    Column("dead", lambda row: share(row.dead)),
    Column("rank", lambda row: number(row.rank)),
    Column("cosine", lambda row: "nan" if math.isnan(row.cosine) else f"{row.cosine:.2f}"),
    Column("gradient", lambda row: number(row.gradient_rms)),
    Column("gain", lambda row: number(row.gain)),
)


def layer_table(rows: Sequence[Row], *, folded: bool = False, keep: Collection[str] = ()) -> str:
    """Return a table with one line per row, at most 100 columns wide where the numbers allow it.

    Its columns are the layer, the activation behind it, the standard deviation of its outputs, the shares of zeros,
    saturated and dead units behind the activation, their effective rank, the cosine between two examples, the root mean
    square of the gradient, and the gain of the kernel (see `rows.Row`).

    Args:
      rows: of a report.
      folded: whether to fold long runs of similar layers, see `fold`.
      keep: paths of layers that are not folded.
    """
    if not rows:
        return "no layers"
    cells = [[column.text(row) for column in COLUMNS] for row in rows]
    used = [i for i, column in enumerate(COLUMNS) if column.always or any(line[i] != "0" for line in cells)]
    lines = iter([line[i] for i in used] for line in cells)
    titles = [COLUMNS[i].title for i in used]
    shown = fold(rows, keep) if folded else list(rows)
    body: list[list[str] | str] = [titles]
    for row in shown:
        if isinstance(row, int):
            body.append(f"... {row} more")
            for _ in range(row):
                next(lines)
        else:
            body.append(next(lines))
    return _aligned(body, [COLUMNS[i].left for i in used])


def _aligned(body, left):
    """Return lines of cells under each other. The first column gets the width that the others leave."""
    lines = [line for line in body if isinstance(line, list)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(left))]
    widths[0] = min(widths[0], max(NAME, WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    text = []
    for line in body:
        if isinstance(line, list):
            cells = [shorten(line[0], widths[0]), *line[1:]]
            parts = [c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(cells, widths, left, strict=True)]
            line = "  ".join(parts).rstrip()
        text.append(line)
    return "\n".join(text)


def outcome_text(outcome: Outcome) -> str:
    """Return what a remedy changed, in one line."""
    changed = []
    if outcome.before and outcome.after:
        changed.append(f"loss {number(outcome.before[-1])} -> {number(outcome.after[-1])}")
    if not math.isnan(outcome.quality_before) or not math.isnan(outcome.quality_after):
        changed.append(f"quality {quality(outcome.quality_before)} -> {quality(outcome.quality_after)}")
    ending = "it learns" if outcome.learns else "it does not learn"
    return f"{', '.join([*changed, f'after {outcome.steps:,} steps'])}: {ending}"


def joint(report: Report) -> Outcome | None:
    """Return the outcome of all remedies together, or None if it is shown as that of the only finding that has it."""
    count = sum(finding.outcome == report.cure for finding in report.findings)
    return None if count == 1 else report.cure


def tried_text(finding: Finding, together: Outcome | None) -> str | None:
    """Return what the remedy of a finding changed, in one line. None: it was not tried.

    Args:
      finding: of a report.
      together: the `joint` outcome of that report.
    """
    if finding.outcome is None:
        return None
    if finding.outcome == together:
        return "together with the other remedies, see below"
    return ": ".join(filter(None, (finding.outcome.description, outcome_text(finding.outcome))))


def quality(value: float) -> str:
    """Return a share of right predictions, or an R squared, with three digits."""
    return "nan" if math.isnan(value) else f"{value:.3f}"


def to_text(report: Report) -> str:
    """Return a report for a terminal: verdict, findings, facts, table of layers, notes."""
    parts = [_wrapped(report.verdict)]
    together = joint(report)
    parts += [_finding(i, finding, together) for i, finding in enumerate(report.findings, 1)]
    if together is not None:
        parts.append(_wrapped(f"all remedies together: {together.description}: {outcome_text(together)}"))
    if report.facts:
        width = max(map(len, report.facts))
        parts.append("\n".join(_wrapped(text, f"{name.ljust(width)}  ") for name, text in report.facts.items()))
    parts.append(layer_table(report.rows, folded=True, keep={finding.layer for finding in report.findings}))
    notes = report.notes
    if notes:
        parts.append("\n".join(_wrapped(note, "- ") for note in notes))
    return "\n\n".join(parts)


def _finding(i, finding: Finding, together):
    head = f"{i}. {finding.severity.upper()} {finding.code}"
    lines = [head + (f" in {finding.layer}" if finding.layer else ""), _wrapped(finding.title, "   ")]
    lines += [_wrapped(finding.evidence, "   evidence: "), _wrapped(finding.remedy, "   remedy:   ")]
    tried = tried_text(finding, together)
    if tried is not None:
        lines.append(_wrapped(tried, "   tried:    "))
    return "\n".join(lines)


def _wrapped(text, start=""):
    """Return a paragraph behind `start`, with its further lines below its first."""
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)
