"""The self-contained page `index.html`: no other file, no script, no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from rmtllmf_jax.report.io import settings
from rmtllmf_jax.report.plates import Plate
from rmtllmf_jax.report.sheets import Sheet

_SIZE = re.compile(r'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"')

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


def html_page(
    name: str,
    verdict: Sequence[str],
    plates: Sequence[tuple[Plate, str]],
    skipped: Sequence[str],
    sheets: Sequence[Sheet],
    paper: Sheet,
    run: Mapping[str, Any],
) -> str:
    """Return the page of the run `name`.

    **Arguments:**

    - `verdict`: sentences, at the top of the page.
    - `plates`: the figures, each with its SVG file's text.
    - `skipped`: which figures are missing, and why.
    - `sheets`: tables of numbers.
    - `paper`: the table "paper | ours".
    - `run`: the content of `run.json`.
    """
    sections = {
        "Verdict": _list(verdict),
        "Figures": "\n".join(_figures(plates)) + (_list(skipped) if skipped else ""),
        "The paper and this run": (
            "<p>Ours: mean over combinations, channel draws and seeds ± 1 sample standard "
            "deviation. The last column states what differs in this run, read from its tables and "
            "its configuration; how much of a gap each difference explains is not measured.</p>"
            + _table(paper)
        ),
        "Tables": "\n".join(_table(sheet) for sheet in sheets),
        "Configuration and provenance": _configuration(run),
    }
    links = "".join(f'<li><a href="#{_id(title)}">{title}</a></li>' for title in sections)
    body = "\n".join(
        f'<section aria-labelledby="{_id(title)}"><h2 id="{_id(title)}">{title}</h2>\n{text}'
        "</section>"
        for title, text in sections.items()
    )
    title = f"Report of {escape(name)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{title}</h1>\n<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _figures(plates: Sequence[tuple[Plate, str]]) -> Iterator[str]:
    for plate, svg in plates:
        caption = f"caption-{plate.stem}"
        picture = inline_svg(svg, plate.stem, plate.title, caption)
        files = ", ".join(
            f'<a href="{plate.stem}.{kind}">{kind.upper()}</a>' for kind in ("png", "svg", "pdf")
        )
        yield (
            f'<figure id="{plate.stem}"><h3>{escape(plate.title)}</h3>\n'
            f'<div class="scroll picture" tabindex="0" role="group" '
            f'aria-label="{escape(plate.title)}">{picture}</div>\n'
            f'<figcaption id="{caption}">{escape(plate.caption)} As a file: {files}.</figcaption>'
            "</figure>"
        )


def inline_svg(svg: str, name: str, label: str, described_by: str) -> str:
    """Return the `<svg>` element of a file that matplotlib wrote, for use in a page.

    **Arguments:**

    - `name`: goes before every id, so that several figures can share a page.
    - `label`: what a screen reader calls the picture.
    - `described_by`: id of the element that holds its caption.

    The metadata is left out, the size is given by the view box (points, 3/4 of a CSS pixel).
    """
    found = _SIZE.search(svg)
    if found is None:
        raise ValueError("expected an SVG file with a view box that starts at 0 0")
    width, height = (float(side) * 4 / 3 for side in found.groups())
    body = svg[svg.index(">", found.start()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    return (
        f'<svg viewBox="0 0 {found[1]} {found[2]}" style="width:{width:.0f}px;'
        f'min-width:{min(width, 560):.0f}px;aspect-ratio:{width:.0f}/{height:.0f}" role="img" '
        f'aria-label="{escape(label)}" aria-describedby="{escape(described_by)}" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    ).rstrip()


def _table(sheet: Sheet) -> str:
    """Return a sheet with its column and row headers; a wide one scrolls on its own."""
    words = len(sheet.header) == sheet.names
    heads = 1 if words else sheet.names
    rows = "\n".join(
        f"<tr>{''.join(_cell(text, place, heads, sheet) for place, text in enumerate(row))}</tr>"
        for row in sheet.rows
    )
    header = "".join(
        f'<th scope="col"{_class(place, sheet)}>{escape(text)}</th>'
        for place, text in enumerate(sheet.header)
    )
    look = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(sheet.title)}">'
        f"<table{look}><caption>{escape(sheet.title)}</caption>\n"
        f"<thead><tr>{header}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _cell(text: str, place: int, heads: int, sheet: Sheet) -> str:
    if place < heads:
        return f'<th scope="row">{escape(text)}</th>'
    return f"<td{_class(place, sheet)}>{escape(text)}</td>"


def _class(place: int, sheet: Sheet) -> str:
    return "" if place < sheet.names else ' class="number"'


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
