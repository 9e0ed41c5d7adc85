"""A figure's SVG file as a part of an HTML page."""

from __future__ import annotations

import re
from html import escape

_SIZE = re.compile(r'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"')


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
