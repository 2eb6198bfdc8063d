"""The report as HTML: content, escaping, size, and how Chromium shows it."""

import dataclasses
import functools
import html
import html.parser
import json
import re
import shutil
import subprocess

import pytest

from deepjax.doctor.html import to_fragment, to_html
from doctor import reports

EVIL = "<b>bold</b>\"'&<script>alert(1)</script>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br", "use", "path"}
CELLS, LIST = {"td", "th"}, {"dt", "dd"}
# HTML lets end tags be left out: which elements that are open end where one of these begins.
ENDED_BY = {
    "td": CELLS,
    "th": CELLS,
    "tr": CELLS | {"tr"},
    "tbody": CELLS | {"tr"},
    "dt": LIST,
    "dd": LIST,
    "li": {"li"},
}
ENDED_BY_PARENT = CELLS | LIST | {"tr", "tbody", "li"}


class Page(html.parser.HTMLParser):
    """What a page has: its visible text, its tags, its attributes; and whether its tags are nested."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.attributes, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        while self.open and self.open[-1] in ENDED_BY.get(tag, ()):
            self.open.pop()
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        while self.open[-1] != tag and self.open[-1] in ENDED_BY_PARENT:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    @property
    def flat(self):
        return re.sub(r"\s+", " ", "".join(self.text))


def large():
    names = [f"stage1_rest/unit/branch/separable_conv{k}[{i}]" for i in range(500) for k in (1, 2)]
    return reports.report(names)


@functools.cache
def rendered(make, render=to_html):
    return render(make())


def test_a_page_has_all_parts_and_loads_nothing():
    report = reports.report()
    text = rendered(reports.report)
    page = Page(text)
    assert page.open in ([], ["html"])
    parts = [report.verdict, *report.facts.values(), *report.notes, "41.7", "2 / sharpness = 0.048"]
    for finding in report.findings:
        parts += [finding.code, finding.title, finding.evidence, finding.remedy]
    parts += ["Dense_17", "Dense_17/kernel", "loss 2.3 → 0.0264, quality 0.100 → 0.973, after 600 steps: it learns"]
    for part in parts:
        assert part in page.flat, part
    assert page.tags.count("svg") == 2 + 1 + 3 + 1 + 3
    assert page.tags.count("article") == 3
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert name not in ("src", "srcset", "action", "data"), (tag, name)
        assert not name.endswith("href") or value.startswith("#"), (tag, name, value)
        assert not name.startswith("on"), (tag, name)
    assert not re.search(r"url\((?!#)|@import", text)


def test_ids_that_are_referred_to_exist():
    page = Page(rendered(reports.report))
    ids = {value for _, name, value in page.attributes if name == "id"}
    used = {value for _, name, value in page.attributes if name.endswith("href")}
    used |= {f"#{found}" for _, _, value in page.attributes for found in re.findall(r"url\(#(\w+)\)", value or "")}
    assert used
    assert {name.removeprefix("#") for name in used} <= ids


@pytest.mark.parametrize("render", [to_html, to_fragment])
def test_texts_are_escaped(render):
    plain = reports.report(["<b>"] * 3)
    finding = dataclasses.replace(
        plain.findings[0], code=EVIL, title=EVIL, evidence=EVIL, remedy=EVIL, layer=EVIL, outcome=reports.outcome(EVIL)
    )
    row = reports.row(EVIL, kind=EVIL, activation=EVIL)
    report = dataclasses.replace(
        plain,
        verdict=EVIL,
        findings=(finding,),
        facts={EVIL: EVIL},
        rows=(*plain.rows, row),
        parameters=(reports.parameter(EVIL),),
        cure=reports.outcome(EVIL),
        notes=(EVIL,),
    )
    page = Page(render(report))
    assert "b" not in page.tags
    assert "script" not in page.tags
    assert page.flat.count(EVIL) >= (8 if render is to_html else 6)
    assert "<b>" in page.flat


@pytest.mark.parametrize("make", [reports.healthy, reports.of_nothing, large])
@pytest.mark.parametrize("render", [to_html, to_fragment])
def test_reports_of_all_kinds_are_whole(make, render):
    text = rendered(make, render)
    page = Page(text)
    assert page.open in ([], ["html"])
    assert make().verdict in page.flat
    assert len(text.encode()) < (1_000_000 if render is to_html else 30_000)
    assert ("✔ it learns, nothing found" in page.flat) == (make is reports.healthy and render is to_html)


def test_one_outcome_is_shown_once():
    """The remedies of several findings were tried together; or the only finding's outcome is that of all remedies."""
    plain = reports.report()
    finding, tried = plain.findings[0], plain.findings[0].outcome
    alone = dataclasses.replace(plain, findings=(finding,), cure=tried)
    both = dataclasses.replace(
        plain, findings=(finding, dataclasses.replace(plain.findings[1], outcome=tried)), cure=tried
    )
    line = "quality 0.100 → 0.973, after 600 steps: it learns"
    for report, see_below in ((alone, 0), (both, 2)):
        for text in (to_html(report), to_fragment(report), str(report)):
            flat = re.sub(r"\s+", " ", text.replace("->", "→"))
            assert flat.count(line) == 1
            assert flat.count("together with the other remedies, see below") == see_below
            assert ("ll remedies together" in flat) == (see_below > 0)


def test_a_model_that_does_not_learn_without_a_finding_is_not_called_healthy():
    report = dataclasses.replace(reports.healthy(), planned=reports.report().planned)
    assert "✔" not in to_html(report)


def test_numbers_that_are_none_are_said_to_be():
    page = Page(rendered(reports.of_nothing))
    assert "not finite" in page.flat
    assert "no finite numbers" in page.flat
    assert "nan" in page.flat


def test_a_thousand_rows_are_all_in_the_page_and_folded_in_the_notebook():
    report = large()
    page, brief = Page(rendered(large)).flat, Page(rendered(large, to_fragment)).flat
    assert all(row.layer in page for row in report.rows)
    assert "… 994 more" in brief
    assert report.rows[500].layer not in brief


def test_more_rows_than_a_page_shows_are_folded(monkeypatch):
    monkeypatch.setattr("deepjax.doctor.html.MOST", 999)
    page = Page(to_html(large())).flat
    assert "… 994 more" in page
    assert "… 1001 more" in page  # of the parameters
    assert "stage1_rest/unit/branch/separable_conv2[499]" in page


def test_one_report_gives_one_page():
    assert to_html(reports.report()) == rendered(reports.report)


def test_a_report_is_saved_by_the_ending_of_the_file(tmp_path):
    report = reports.of_nothing()
    report.save(tmp_path / "report.html")
    report.save(tmp_path / "report.json")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == rendered(reports.of_nothing)
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert read["verdict"] == report.verdict
    assert read["rows"][0]["std"] is None
    assert report._repr_html_() == to_fragment(report)


# A page with a frame of a phone's width. Its script writes what it measures into the page's body.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><iframe id="f" style="width:390px;height:840px;border:0"></iframe>
<script>
f.onload = () => {
  const page = f.contentDocument.documentElement;
  for (const each of f.contentDocument.querySelectorAll("details")) each.open = true;
  const wide = [...f.contentDocument.body.querySelectorAll("*")].filter(e => !e.closest(".scroll *")
    && !e.closest("svg *") && e.getBoundingClientRect().right > 390.5).map(e => e.outerHTML.slice(0, 80));
  const sizes = [...f.contentDocument.querySelectorAll("svg")].map(e => e.getBoundingClientRect().width);
  document.title = JSON.stringify({width: page.scrollWidth, wide, sizes});
};
f.srcdoc = PAGE;
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as in `apt-get install chromium`")
@pytest.mark.parametrize("make", [reports.report, reports.healthy, reports.of_nothing, large])
def test_chromium_shows_it_on_a_phone_without_errors(make, tmp_path):
    """No message of the console, nothing wider than a screen of 390 pixels but inside boxes that scroll."""
    page = rendered(make)
    (tmp_path / "frame.html").write_text(
        FRAME.replace("PAGE", json.dumps(page).replace("</", "<\\/")), encoding="utf-8"
    )
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    out, err = chromium(tmp_path, "page.html", "--dump-dom")
    assert "CONSOLE" not in err, err
    assert out.count("<svg") == page.count("<svg")
    out, err = chromium(tmp_path, "frame.html", "--dump-dom")
    assert "CONSOLE" not in err, err
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", out)[1]))
    assert found["width"] == 390
    assert not found["wide"]
    assert all(200 < size < 390 for size in found["sizes"])
    assert len(found["sizes"]) == page.count("<svg")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as in `apt-get install chromium`")
def test_chromiums_console_is_seen(tmp_path):
    """The test above would see an error: this page has one, and one that its policy forbids."""
    (tmp_path / "page.html").write_text("<script>nothing()</script>", encoding="utf-8")
    assert "nothing is not defined" in chromium(tmp_path, "page.html", "--dump-dom")[1]


def chromium(folder, page, *options):
    """Return (output, messages) of a headless Chromium that opens a page."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", *options]
    done = subprocess.run([*command, (folder / page).as_uri()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr
