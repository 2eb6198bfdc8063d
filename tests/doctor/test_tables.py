"""The report as text."""

import re

import pytest

from deepjax.doctor import tables
from doctor import reports

DEEP = [
    "stage1_first/unit/branch/conv1",
    *(f"stage1_rest/unit/branch/conv{k}[{i}]" for i in range(499) for k in (1, 2)),
    "head",
]


def test_numbers_are_short_and_exact_to_three_digits():
    values = [1.0, -0.5, 0.00123, 123.4, 999.7, 12345.6, 99999.0, 3e38, -1.234e-45, 1e-3]
    for value in values:
        text = tables.number(value)
        assert len(text) <= 8
        assert float(text) == pytest.approx(value, rel=0.05)
    assert [tables.number(v) for v in (0.0, float("nan"), float("inf"), -float("inf"))] == ["0", "nan", "inf", "-inf"]


def test_a_long_path_keeps_both_ends():
    path = "a_very_long_scope/" * 8 + "conv[17]"
    short = tables.shorten(path, 30)
    assert len(short) == 30
    head, tail = short.split("…")
    assert path.startswith(head)
    assert path.endswith(tail)
    assert "conv[17]" in tail
    assert tables.shorten("conv", 4) == "conv"


def test_the_table_has_a_line_for_each_row_and_fits_the_terminal():
    lines = tables.layer_table(reports.fading(DEEP, 0.9)).splitlines()
    assert len(lines) == 1 + len(DEEP)
    assert max(map(len, lines)) <= tables.WIDTH
    ends = {len(line) for line in lines}
    assert len(ends) == 1, "the last column is not aligned"
    assert "not finite" not in lines[0]


def test_a_column_of_what_is_not_finite_appears_where_there_is_some():
    head, *lines = tables.layer_table([reports.row("a"), reports.row("b", non_finite=0.001)]).splitlines()
    assert "not finite" in head
    assert [" <1% " in line for line in lines] == [False, True]


def test_a_scan_is_folded_by_its_unit_and_named_layers_stay():
    rows = reports.fading(DEEP, 0.9)
    shown = tables.fold(rows)
    names = [row if isinstance(row, int) else row.layer for row in shown]
    assert names == [*DEEP[:4], 992, *DEEP[-4:]]
    named = tables.fold(rows, {DEEP[500]})
    assert [row if isinstance(row, int) else row.layer for row in named] == [
        *DEEP[:4], 496, DEEP[500], 495, *DEEP[-4:]
    ]  # fmt: skip


def test_a_unit_of_several_layers_is_left_whole():
    names = ["stem", *(f"scan/{name}[{i}]" for i in range(100) for name in ("query", "key", "value", "out")), "head"]
    shown = tables.fold(reports.fading(names, 0.99))
    assert [row if isinstance(row, int) else row.layer for row in shown] == [*names[:5], 392, *names[-5:]]


def test_short_runs_and_different_layers_are_not_folded():
    for names in ([f"Dense_{i}" for i in range(40)], [f"{'x' * i}" for i in range(200)]):
        assert tables.fold(reports.fading(names, 0.9)) == list(reports.fading(names, 0.9))
    names = [f"Dense_{i}" for i in range(41)]
    assert sum(row if isinstance(row, int) else 1 for row in tables.fold(reports.fading(names, 0.9))) == 41
    assert len(tables.fold(reports.fading(names, 0.9))) == 7


def test_the_folded_table_says_how_many_are_left_out():
    rows = reports.fading([f"scan/Dense_0[{i}]" for i in range(1000)], 0.99)
    lines = tables.layer_table(rows, folded=True).splitlines()
    assert lines[4] == "... 994 more"
    assert [line.split()[0] for line in lines[1:4] + lines[5:]] == [
        f"scan/Dense_0[{i}]" for i in (0, 1, 2, 997, 998, 999)
    ]
    full = tables.layer_table(rows).splitlines()
    assert lines[-1].split() == full[-1].split()


def test_the_text_says_everything_in_order():
    report = reports.report()
    text = tables.to_text(report)
    flat = re.sub(r"\s+", " ", text)
    expected = [report.verdict]
    for finding in report.findings:
        expected += [f"{finding.severity.upper()} {finding.code}", finding.title, finding.evidence, finding.remedy]
    expected += ["all remedies together", report.facts["plan"], "Dense_0", "Dense_29 ", *report.notes]
    place = 0
    for part in expected:
        place = flat.index(part, place)
    assert "loss 2.3 -> 0.0264, quality 0.100 -> 0.973, after 600 steps: it learns" in flat
    assert max(map(len, text.splitlines())) <= tables.WIDTH
    assert str(report) == text
    assert report.table == tables.layer_table(report.rows)


def test_the_text_of_a_report_without_findings_or_numbers():
    text = str(reports.healthy())
    assert text.startswith("The model learns, and nothing was found.\n\ndata ")
    assert "remed" not in text
    text = str(reports.of_nothing())
    assert re.search(r"^a +relu +nan +100%", text, re.MULTILINE)
    empty = reports.report(rows=(), after=(), parameters=(), findings=(), facts={}, cure=None, notes=())
    assert str(empty) == f"{empty.verdict}\n\nno layers"
