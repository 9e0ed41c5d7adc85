"""A run folder's report, written beside its tables: `index.html`, `summary.md` and figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from rmtllmf_jax.common.files import write_bytes
from rmtllmf_jax.report.about import definitions, documentation, done, glance
from rmtllmf_jax.report.io import (
    find,
    read_configuration,
    read_cosines,
    read_results,
    read_said,
    read_scales,
    settings,
)
from rmtllmf_jax.report.paper import paper_sheet
from rmtllmf_jax.report.plates import STEMS, Plate, plates
from rmtllmf_jax.report.said import said_sheets
from rmtllmf_jax.report.sheet import Sheet, markdown_table, one_line
from rmtllmf_jax.report.sheets import all_sheets, scale_sheets
from rmtllmf_jax.report.style import KINDS, image_bytes
from rmtllmf_jax.report.tables import summary
from rmtllmf_jax.report.verdict import replication, verdict

# Nothing may be fetched, not even by mistake.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #ccc; --soft: #f4f4f4;
  --link: #0a58a8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --line: #444; --soft: #22252a; --link: #8ab8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }
.picture { background: #fff; padding: .5rem; }
.narrow { display: none; }
@media (max-width: 40rem) { .wide { display: none; } .narrow { display: block; } }
@media (prefers-color-scheme: dark) { .picture { filter: invert(.9) hue-rotate(180deg); } }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 60rem) { .glance { table-layout: fixed; width: 100%; }
  .glance .number { white-space: normal; } .glance th:first-child { width: 25%; } }
@media (max-width: 40rem) { dl { display: block; } dd { margin: 0 0 .5rem 1rem; }
  .glance { font-size: .75rem; } .glance th, .glance td { padding: .25rem .2rem; }
  .glance thead th { font-size: .65rem; } }
summary { cursor: pointer; padding: .25rem 0; }
svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure { margin: 0 0 2rem; } figcaption, caption { font-size: .9rem; padding: .4rem 0; }
caption { text-align: left; padding: .5rem; font-weight: 600; }
table { border-collapse: collapse; font-size: .85rem; min-width: 100%; overflow-wrap: normal; }
th, td { padding: .25rem .6rem; border-top: 1px solid var(--line); vertical-align: top; }
th { text-align: left; font-weight: 600; } thead th { background: var(--soft); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.words td { min-width: 8rem; } .words th:first-child { min-width: 12rem; }
.words td:last-child { min-width: 18rem; }
.words { overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--soft); padding: .75rem; font-size: .8rem; }
section > .scroll { margin-bottom: 1.5rem; }
"""


_OPTIONAL = {"cosines": read_cosines, "scales": read_scales, "said": read_said}
"""Tables that a run may lack."""


def write_report(
    run: Path, folder: Path | None = None, results: pd.DataFrame | None = None
) -> list[Path]:
    """Write a report, into `<run>/report/` by default, from the tables of a run and `run.json`.

    Returns the files written: `index.html` (one page that needs no other file), the figures as PNG,
    SVG and PDF, `summary.md` and `summary.csv`. The figures: `figure_2` (one per merge method, if
    there are several; `_informative`: without the tasks that fine-tuning failed to teach, if any),
    `axis_<name>` along an axis, `figure_3` (cosines, ideal), `figure_4` (cosines, sum rate),
    `figure_5` (the halves of R-MTLLMF, where it has both) and `scale_law`. A figure that the tables
    do not allow is skipped, its older files are removed, and the pages say why. The same tables
    give the same bytes. `results` may be passed as returned by `read_results`.

    **Raises:** `InputError` that names the file if a table is missing (`cosines.parquet`,
    `scales.parquet`, `said.parquet` and `run.json` are optional) or cannot be used.
    """
    results = read_results(run / "results.parquet") if results is None else results
    cosines, scales, said = (
        read(path) if (path := run / f"{name}.parquet").exists() else None
        for name, read in _OPTIONAL.items()
    )
    configuration = read_configuration(run)

    text = done(results, configuration)
    sentences = verdict(results)
    if so_far := find(configuration, "so_far"):
        sentences.insert(0, f"The sweep is not finished: everything below covers {so_far}.")
    report = Report(
        run.resolve().name,
        text,
        glance(results),
        list(definitions(results, configuration)),
        sentences,
        replication(results),
        *plates(results, cosines, scales, find(configuration, "shots")),
        [*all_sheets(results, spread=True), *scale_sheets(results, scales)],
        paper_sheet(results, cosines, configuration),
        configuration,
        [] if said is None else list(said_sheets(said)),
    )
    files: dict[str, bytes] = {}
    for plate in report.plates:
        for kind in KINDS:
            files[f"{plate.stem}.{kind}"] = image_bytes(plate.figure, kind)
    svg = {plate.stem: files[f"{plate.stem}.svg"].decode() for plate in report.plates}
    for plate in report.plates:
        if plate.narrow is not None:
            svg[_narrow(plate)] = image_bytes(plate.narrow, "svg").decode()
    files["summary.md"] = markdown_page(report).encode()
    files["summary.csv"] = (
        summary(results, "size").to_csv(index=False, lineterminator="\n").encode()
    )
    files["index.html"] = html_page(report, svg).encode()

    folder = run / "report" if folder is None else folder
    for pattern in STEMS:
        for kind in KINDS:
            for file in folder.glob(f"{pattern}.{kind}"):
                if file.name not in files:
                    file.unlink()
    for file_name, data in files.items():
        write_bytes(folder / file_name, data)
    return [folder / file_name for file_name in files]


@dataclass(frozen=True)
class Report:
    """The content of a run's pages."""

    name: str
    done: str
    """What was done, as sentences."""
    glance: Sequence[Sheet]
    """The scores, method by scenario."""
    definitions: Sequence[tuple[str, str]]
    """The words of these tables, each with what it means."""
    verdict: Sequence[str]
    """Sentences."""
    replication: Sequence[str]
    """What the intervals are, and what they resample."""
    plates: Sequence[Plate]
    skipped: Sequence[str]
    """Which figures are missing, and why."""
    sheets: Sequence[Sheet]
    paper: Sheet
    """The table "paper | ours"."""
    run: Mapping[str, Any]
    """The content of `run.json`, every key optional."""
    said: Sequence[Sheet] = ()
    """What language models say after the same prompts."""


def markdown_page(report: Report) -> str:
    """Return the report in markdown; the PNG files of its figures are beside the page."""
    parts = [f"# Report of {one_line(report.name)}", one_line(report.done)]
    for sheet in report.glance:
        parts += [f"**{one_line(sheet.title)}**", markdown_table(sheet)]
    if report.definitions:
        parts.append(_items([f"{term}: {text}" for term, text in report.definitions]))
    parts += ["## Verdict", _items(report.verdict)]
    parts.append("\n\n".join(map(one_line, report.replication)))
    for sheet in (*report.said, *report.sheets, report.paper):
        parts += [f"## {one_line(sheet.title)}", markdown_table(sheet)]
    parts.append("## Figures")
    for plate in report.plates:
        parts += [f"![{one_line(plate.title)}]({plate.stem}.png)", one_line(plate.caption)]
    if report.skipped:
        parts.append(_items(report.skipped))
    rows = list(settings(report.run))
    shown = markdown_table(Sheet("", ["key", "value"], rows)) if rows else "None recorded."
    return "\n\n".join([*parts, "## Configuration", shown]) + "\n"


def _items(lines: Sequence[str]) -> str:
    return "\n".join(f"- {one_line(line)}" for line in lines)


def html_page(report: Report, svg: Mapping[str, str]) -> str:
    """Return the report as one HTML page; `svg` holds the file of each figure, by its stem."""
    figures = [_figure(plate, svg) for plate in report.plates]
    sections = {
        "What was done": f"<p>{escape(report.done)}</p>\n"
        + "\n".join(_table(sheet, "glance") for sheet in report.glance)
        + _definitions(report.definitions)
        + _read_more(),
        "Verdict": _list(report.verdict)
        + "".join(f"<p>{escape(line)}</p>" for line in report.replication),
        "Figures": "\n".join(figures) + (_list(report.skipped) if report.skipped else ""),
        "What the models say": "\n".join(map(_table, report.said)),
        "The paper and this run": (
            "<p>Ours: mean over the numbers of tasks of the means at each, with its 95 % "
            "interval.</p>" + _table(report.paper)
        ),
        "Tables": "\n".join(map(_folded, report.sheets)),
        "Configuration and provenance": _configuration(report.run),
    }
    sections = {title: text for title, text in sections.items() if text}
    links = "".join(f'<li><a href="#{_id(title)}">{title}</a></li>' for title in sections)
    body = "\n".join(
        f'<section aria-labelledby="{_id(title)}"><h2 id="{_id(title)}">{title}</h2>\n{text}'
        "</section>"
        for title, text in sections.items()
    )
    title = f"Report of {escape(report.name)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{title}</h1>\n<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _figure(plate: Plate, svg: Mapping[str, str]) -> str:
    title, caption = escape(plate.title), f"caption-{plate.stem}"
    described = f'aria-label="{title}" aria-describedby="{caption}"'
    wide = "picture" if plate.narrow is None else "picture wide"
    pictures = (
        f'<div class="scroll {wide}" tabindex="0" role="group" aria-label="{title}">'
        f"{_inline(svg[plate.stem], plate.stem, described)}</div>"
    )
    if plate.narrow is not None:
        name = _narrow(plate)
        narrow = _inline(svg[name], name, described, least=0.0)
        pictures += f'\n<div class="picture narrow">{narrow}</div>'
    files = ", ".join(f'<a href="{plate.stem}.{kind}">{kind.upper()}</a>' for kind in KINDS)
    return (
        f'<figure id="{plate.stem}"><h3>{title}</h3>\n{pictures}\n'
        f'<figcaption id="{caption}">{escape(plate.caption)} As a file: {files}.'
        "</figcaption></figure>"
    )


def _narrow(plate: Plate) -> str:
    return f"{plate.stem}-narrow"


def _inline(svg: str, name: str, described: str, least: float = 560.0) -> str:
    """Return the `<svg>` element of a file that matplotlib wrote, for use in a page.

    Its ids begin with `name`, so that several figures can share a page; its metadata is left out,
    its size is given by the view box (points, 3/4 of a CSS pixel); it is not made narrower than
    `least` pixels.
    """
    found = re.search(r'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if found is None:
        raise ValueError("expected an SVG file with a view box that starts at 0 0")
    width, height = (float(side) * 4 / 3 for side in found.groups())
    body = svg[svg.index(">", found.start()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", body)
    return (
        f'<svg viewBox="0 0 {found[1]} {found[2]}" style="width:{width:.0f}px;'
        f'min-width:{min(width, least):.0f}px;aspect-ratio:{width:.0f}/{height:.0f}" role="img" '
        f'{described} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    ).rstrip()


def _table(sheet: Sheet, look: str = "") -> str:
    """Return a sheet with its column and row headers; a wide one scrolls on its own."""
    words = len(sheet.header) == sheet.names
    heads = 1 if words else sheet.names
    kinds = [""] * sheet.names + [' class="number"'] * (len(sheet.header) - sheet.names)
    title, look = escape(sheet.title), "words" if words else look
    look = f' class="{look}"' if look else ""
    header = "".join(
        f'<th scope="col"{kind}>{escape(text)}</th>' for kind, text in zip(kinds, sheet.header)
    )
    rows = []
    for row in sheet.rows:
        names = [f'<th scope="row">{escape(text)}</th>' for text in row[:heads]]
        cells = zip(kinds[heads:], row[heads:])
        rows.append("".join([*names, *(f"<td{kind}>{escape(text)}</td>" for kind, text in cells)]))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{title}">'
        f"<table{look}><caption>{title}</caption>\n"
        f"<thead><tr>{header}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _folded(sheet: Sheet) -> str:
    return f"<details><summary>{escape(sheet.title)}</summary>\n{_table(sheet)}</details>"


def _definitions(entries: Sequence[tuple[str, str]]) -> str:
    listed = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>\n" for term, text in entries)
    return f"<dl>{listed}</dl>" if listed else ""


def _read_more() -> str:
    """Return a pointer to the explanation of terms and tables."""
    root, pages = documentation(), {"report": "this page", "glossary": "all words"}
    links = [
        f"{what}: <code>docs/{name}.md</code>"
        if root is None
        else f'<a href="{escape(root)}/{name}.html">{what}</a>'
        for name, what in pages.items()
    ]
    return f"\n<p>More on {' and '.join(links)}.</p>"


def _configuration(run: Mapping[str, Any]) -> str:
    if not run:
        return "<p>The run has no run.json: nothing is recorded.</p>"
    rows = list(settings(run))
    shown = _table(Sheet("From run.json", ["setting", "value"], rows)) if rows else ""
    whole = escape(json.dumps(run, indent=2, sort_keys=True), quote=False)
    return f"{shown}\n<details><summary>All of run.json</summary><pre>{whole}</pre></details>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>"


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")
