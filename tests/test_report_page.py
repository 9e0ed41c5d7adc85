"""The page opens anywhere, asks for nothing, and says what the tables say."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from email.message import Message
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import report_tables as made
from chromium import Chromium, chromium_path
from matplotlib.figure import Figure
from rich.console import Console

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report import about
from rmtllmf_jax.report.about import definitions, glance
from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.plates import Plate, plates
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.report.sheets import all_sheets
from rmtllmf_jax.report.tables import cell_scores, summary
from rmtllmf_jax.report.terminal import print_summary
from rmtllmf_jax.report.verdict import replication, verdict
from rmtllmf_jax.report.write import Report, html_page, markdown_page, write_report

_VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [found for _, held in self.elements if (found := held.get(attribute)) is not None]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def write_run(folder: Path, results: pd.DataFrame, run: Any = made.RUN) -> Path:
    folder.mkdir()
    results.to_parquet(folder / "results.parquet")
    made.cosines().to_parquet(folder / "cosines.parquet")
    made.scales().to_parquet(folder / "scales.parquet")
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return made.results(("ideal", "sum_rate"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, results: pd.DataFrame) -> Path:
    run = tmp_path_factory.mktemp("report") / "a run & <more>"
    write_report(write_run(run, results, made.RUN | {"note": "<script>alert(1)</script>"}))
    return run / "report"


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "index.html").read_text())


FIGURES = ("figure_2", "figure_3", "figure_4", "figure_5", "scale_law")
PAGES = {"index.html", "summary.md", "summary.csv"}


def files_of(*stems: str) -> set[str]:
    return {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf")}


def test_the_folder_holds_page_figures_and_tables(report: Path, results: pd.DataFrame):
    """The same tables give the same bytes."""
    first = {path.name: path.read_bytes() for path in report.iterdir()}
    assert set(first) == files_of(*FIGURES) | PAGES
    for name, data in first.items():
        kinds = {".pdf": b"%PDF-", ".png": b"\x89PNG", ".svg": b"<?xml"}
        assert data.startswith(kinds.get(Path(name).suffix, b""))
        assert b"CreationDate" not in data
    written = write_report(report.parent)
    assert {path.name: path.read_bytes() for path in written} == first
    stored = pd.read_csv(report / "summary.csv")
    stored["axis"] = stored["axis"].astype(object).fillna("")
    pd.testing.assert_frame_equal(stored, summary(results, "size"), check_dtype=False)


def test_the_page_asks_for_nothing(report: Path, page: Page):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    files = {path.name for path in report.iterdir()}
    for target in [*page.values("href"), *page.values("src"), *page.values("xlink:href")]:
        assert target.startswith(("#", "data:image/png;base64,")) or target in files
    whole = (report / "index.html").read_text()
    assert not re.findall(r"url\((?!#)", whole)
    assert "@import" not in whole
    policies = [held.get("content") for tag, held in page.elements if "http-equiv" in held]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_ids_are_unique_and_references_meet_them(page: Page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = [name for key in ("href", "xlink:href") for name in page.values(key)]
    wanted = [name[1:] for name in wanted if name.startswith("#")]
    wanted += page.values("aria-describedby") + page.values("aria-labelledby")
    wanted += re.findall(
        r"url\(#([^)]+)\)", " ".join([*page.values("clip-path"), *page.values("style")])
    )
    assert wanted
    assert set(wanted) <= set(ids)


def test_a_screen_reader_finds_its_way(page: Page):
    assert page.elements[0] == ("html", {"lang": "en"})
    assert not page.open
    pictures = [held for tag, held in page.elements if tag == "svg"]
    assert len(pictures) == len(FIGURES) + 1  # figure 2 has another one for phones
    assert all(held["role"] == "img" and held["aria-label"] for held in pictures)
    heads = [held.get("scope") for tag, held in page.elements if tag == "th"]
    assert set(heads) == {"row", "col"}
    tables = sum(tag == "table" for tag, _ in page.elements)
    assert tables == sum(tag == "caption" for tag, _ in page.elements) >= 5
    assert [tag for tag, _ in page.elements].count("h1") == 1


def test_the_pages_say_what_the_tables_say(report: Path, page: Page, results: pd.DataFrame):
    markdown = (report / "summary.md").read_text()
    for text in (page.text, markdown):
        text = text.replace("\\[", "[")
        said = [*verdict(results), *replication(results)]
        assert all(" ".join(line.split()) in text for line in said)
        assert "±" not in text
        assert "skipped" not in text
    for sheet in all_sheets(results, spread=True):
        assert sheet.title in page.text
        assert markdown_table(sheet) in markdown
        for row in sheet.rows:
            assert " ".join(cell for cell in row) in re.sub(r"\s+", " ", page.text)
    assert "Report of a run & <more>" in page.text
    assert "<script>alert(1)</script>" in page.text
    for word in ("rmtllmf sweep --out runs/a", "0123abc", '{"jax": "0.10.2"}', "seconds 12.5"):
        assert word in page.text
    assert "published fit 1.13 N^-0.655 0.72 0.55" in page.text
    assert "| settings.preset | paper |" in markdown
    assert "alert" not in markdown


def test_the_page_begins_with_what_was_done(page: Page, results: pd.DataFrame):
    tasks = sorted(results["task"].unique())
    assert f"What was done {len(tasks)} users fine-tuned" in page.text
    assert f"one task each: {', '.join(tasks[:-1])} and {tasks[-1]}." in page.text
    (sheet,) = glance(results)
    assert sheet.header == ["method", "Ideal (no attack)", "Sum-rate attack"]
    cells = cell_scores(results)
    own = cells[(cells["protection"] == "r-mtllmf") & (cells["scenario"] == "sum_rate")]
    (row,) = [row for row in sheet.rows if row[0] == "R-MTLLMF"]
    assert row[2] == interval(own).text()
    assert f"{own.groupby('size')['score'].mean().mean():.0%}" == f"{row[2].split()[0]}%"
    (base,) = [row for row in sheet.rows if row[0] == "Base model"]
    assert base[1] == base[2]  # which nothing is sent for
    assert " ".join(row) in page.text
    defined = dict(definitions(results, made.RUN))
    assert {"Sum-rate attack", "R-MTLLMF", "Base model", "N"} <= set(defined)
    assert "Strongest-user attack" not in defined
    assert all(f"{term} {text}" in page.text for term, text in defined.items())


def test_tables_by_number_of_tasks_are_folded_away(page: Page, results: pd.DataFrame):
    folded = sum(tag == "details" for tag, _ in page.elements)
    assert folded == len(all_sheets(results, spread=True)) + 2  # coefficients and run.json


def test_links_lead_to_the_owners_pages(monkeypatch: pytest.MonkeyPatch):
    def named(address: str) -> str | None:
        found = Message()
        found["Project-URL"] = f"Documentation, {address}"
        monkeypatch.setattr(about, "metadata", lambda _: found)
        return about.documentation()

    assert named("https://OWNER.example/rmtllmf-jax") is None
    assert named("https://somebody.example/docs/") == "https://somebody.example/docs"


def test_what_a_run_lacks_is_said_and_its_old_figures_go(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    made.results(("ideal",), draws=1, protections=("none",)).to_parquet(run / "results.parquet")
    (run / "report").mkdir()
    for name in ("figure_4.pdf", "axis_mse.svg", "scale_law.png", "notes.txt"):
        (run / "report" / name).write_text("old")
    write_report(run)
    names = {path.name for path in (run / "report").iterdir()}
    assert names == files_of("figure_2") | PAGES | {"notes.txt"}
    text = Page((run / "report" / "index.html").read_text()).text
    markdown = (run / "report" / "summary.md").read_text()
    assert "figure_3 skipped: the run has no cosines.parquet." in text
    assert "- figure_3 skipped: the run has no cosines.parquet." in markdown
    assert "The run has no run.json: nothing is recorded." in text
    assert "None recorded." in markdown


def test_figures_without_weak_tasks_stand_beside_the_others(tmp_path: Path, results: pd.DataFrame):
    tuned = results["finetuned_score"].where(results["task"] != "dtd", results["base_score"])
    taught = results.assign(finetuned_score=tuned, normalised=results["score"] / tuned)
    names = {path.name for path in write_report(write_run(tmp_path / "run", taught))}
    assert "figure_2_informative.png" in names
    page = (tmp_path / "run" / "report" / "summary.md").read_text()
    assert "channel realisations and seeds, without dtd" in page


def test_names_of_somebody_elses_table_stay_names(tmp_path: Path):
    """Neither a path nor a part of a page, though the check of `read_results` were not there."""
    here = tmp_path / "run" / "report"
    axis, rule = "x/../../../escaped", '"><script>'
    table = made.results(("ideal",), draws=1)
    merged = table["protection"] != "control"
    table = table.assign(rule=rule, axis=axis, level=1.0).where(merged, table.assign(axis=""))
    more = table.assign(rule="task_arithmetic")
    found, _ = plates(pd.concat([table, more[merged]]), None, None)
    files = [(here / f"{plate.stem}.png").resolve() for plate in found]
    assert len(set(files)) == 2
    assert {file.parent for file in files} == {here}
    said, sheets = [rule, "![x](http://y)"], all_sheets(table, spread=True)
    report = Report(rule, rule, sheets, [(rule, rule)], said, [], found, [], sheets, sheets[0], {})
    names = [f"{plate.stem}{ending}" for plate in found for ending in ("", "-narrow")]
    svg = dict.fromkeys(names, '<svg viewBox="0 0 1 1"></svg>')
    for text in (markdown_page(report), html_page(report, svg)):
        assert "<script" not in text.replace("&lt;script", "")
    assert "![x](" not in markdown_page(report)


def test_run_json_is_an_object_whose_credentials_are_not_shown(
    tmp_path: Path, results: pd.DataFrame
):
    run = write_run(tmp_path / "run", results, [1])
    with pytest.raises(InputError, match=r"run\.json: expected a JSON object"):
        write_report(run)
    assert not (run / "report").exists()
    url = "s3://me:hunter2@bucket/a?token=hunter2&x=1"
    settings = {"command": f"rmtllmf sweep --store {url} --out a|b", "store": url, "scale": "1"}
    (run / "run.json").write_text(json.dumps(settings))
    write_report(run)
    for name in ("summary.md", "index.html"):
        text = unescape((run / "report" / name).read_text())
        assert "hunter2" not in text
        assert "s3://***@bucket/a?token=***&x=*** --out a" in text


def test_markdown_table():
    sheet = Sheet("t", ["a", "b", "c"], [["x|y", "two\nlines", "3"]])
    expected = "| a | b | c |\n| :-- | :-- | --: |\n| x\\|y | two lines | 3 |"
    assert markdown_table(sheet) == expected


@pytest.mark.parametrize("width", [200, 36])
def test_print_summary_cuts_no_number(results: pd.DataFrame, width: int):
    console = Console(file=io.StringIO(), width=width, record=True)
    print_summary(results, console)
    words = console.export_text().split()
    assert {"MSE", *made.TASKS} <= set(words)
    for sheet in all_sheets(results, spread=False):
        assert {cell for row in sheet.rows for cell in row} <= set(words)
    shown = " ".join(words)
    assert all(
        " ".join(sentence.split()) in shown
        for sentence in [*verdict(results), *replication(results)]
    )


def test_a_report_needs_no_jax_and_no_pyplot():
    code = (
        "import sys, rmtllmf_jax.report.write, rmtllmf_jax.report.terminal;"
        "print([name for name in ('jax', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_inline_figure_keeps_its_own_names():
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg>\n<svg height="9pt" viewBox="0 0 30 9" width="30pt">'
        '<metadata><a id="m"/></metadata><g id="p"/><use xlink:href="#p"/>'
        '<g clip-path="url(#p)"/></svg>\n'
    )
    plates = [Plate(stem, Figure(), 'a "b"', "c") for stem in ("f", "g")]
    report = Report("run", "", [], [], [], [], plates, [], [], Sheet("t", ["a", "b"], []), {})
    found = html_page(report, {"f": svg, "g": svg})
    for name in ("f", "g"):
        assert (
            '<svg viewBox="0 0 30 9" style="width:40px;min-width:40px;aspect-ratio:40/12" '
            f'role="img" aria-label="a &quot;b&quot;" aria-describedby="caption-{name}"'
        ) in found
        body = f'<g id="{name}-p"/><use xlink:href="#{name}-p"/><g clip-path="url(#{name}-p)"/>'
        assert body in found
    assert "metadata" not in found
    with pytest.raises(ValueError, match="view box"):
        html_page(report, {"f": "<svg></svg>", "g": svg})


_PICTURES = """[...document.querySelectorAll("svg")].filter(
  each => each.checkVisibility()
).map(svg => {
  const outer = svg.getBoundingClientRect(), inner = svg.getBBox();
  return [outer.width, outer.height, inner.width, inner.height, svg.querySelectorAll("path").length]
})"""
# How far what must be seen at once reaches beyond the right end of what it stands in.
_BEYOND = """[...document.querySelectorAll("table.glance, #figure_2 svg")]
  .filter(each => each.checkVisibility())
  .map(each => each.getBoundingClientRect().right
    - each.parentElement.getBoundingClientRect().right)"""
_LIGHT = """[document.body, document.querySelector(".picture")].map(each => {
  const style = getComputedStyle(each);
  return [style.backgroundColor, style.filter];
})"""


@pytest.mark.parametrize("width", [1200, 768, 660, 390])
def test_a_browser_draws_every_figure_without_a_word(report: Path, tmp_path: Path, width: int):
    binary = chromium_path()
    if binary is None:
        pytest.skip("no chromium on the PATH")
    url = (report / "index.html").as_uri()
    with Chromium(binary, tmp_path / "profile") as browser:
        browser.resize(width)
        browser.open(url)
        pictures = browser.evaluate(_PICTURES)
        overflow = browser.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        beyond = browser.evaluate(_BEYOND)
        looks = []
        for scheme in ("light", "dark"):
            chosen = {"name": "prefers-color-scheme", "value": scheme}
            browser.call("Emulation.setEmulatedMedia", features=[chosen])
            looks.append(browser.evaluate(_LIGHT))
    assert len(beyond) == 2
    assert max(beyond) <= 0  # the attack is not beside the screen
    assert looks[0][0][0] == "rgb(255, 255, 255)"
    assert looks[0][1][1] == "none"
    assert max(map(int, re.findall(r"\d+", looks[1][0][0]))) < 64
    assert looks[1][1][1].startswith("invert(")
    assert len(pictures) == len(FIGURES)
    for outer_width, outer_height, inner_width, inner_height, paths in pictures:
        assert outer_width > 200
        assert outer_height > 100
        assert min(inner_width, inner_height) > 100
        assert paths > 10
    assert overflow <= 0  # wide tables and figures scroll by themselves
    for kind in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
        assert browser.said(kind) == []
    asked = [event["request"]["url"] for event in browser.said("Network.requestWillBeSent")]
    assert {address for address in asked if not address.startswith("data:")} == {url}


def test_the_browser_sees_what_a_broken_page_does(tmp_path: Path):
    binary = chromium_path()
    if binary is None:
        pytest.skip("no chromium on the PATH")
    broken = tmp_path / "broken.html"
    broken.write_text(
        '<!DOCTYPE html><svg></svg><img src="missing.png"><script>throw Error("x")</script>'
    )
    with Chromium(binary, tmp_path / "profile") as browser:
        browser.open(broken.as_uri())
        (picture,) = browser.evaluate(_PICTURES)
    assert picture[2:] == [0, 0, 0]
    assert browser.said("Runtime.exceptionThrown")
    asked = {event["request"]["url"] for event in browser.said("Network.requestWillBeSent")}
    assert asked == {broken.as_uri(), (tmp_path / "missing.png").as_uri()}
