r"""Formulas of the pages as MathML, which browsers draw without a script: a hook of mkdocs.

`pymdownx.arithmatex` marks `$...$` and `$$...$$`, `latex2mathml` converts them. What it does not
know it copies into the formula as it stands; here that ends the build.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
_NAME = re.compile(
    r"<(?P<tag>m[io])(?P<options>(?: movablelimits=\"true\")?)>(?P<name>[A-Za-z]{2,})</(?P=tag)>"
    r"(?P<bracket>(?=<mo[^>]*>(?:\(|\[|&#x00028;)))?"
)  # of a function, and whether a bracket follows
_LEFT = re.compile(r"\\|<mi>&(?:amp;)?</mi>")  # a command or an alignment that was not understood


def mathml(latex: str, display: str = "inline") -> str:
    """Return a formula as a `<math>` element; one that does not convert raises `ValueError`."""
    latex = " ".join(latex.split())
    try:
        converted = str(convert(latex, display=display))
    except Exception as error:
        raise ValueError(f"no formula: {latex} ({error!r})") from error
    if _LEFT.search(converted) or latex.count("{") != latex.count("}"):
        raise ValueError(f"no formula: {latex}")
    return _NAME.sub(_spaced, converted)


def _spaced(found: re.Match[str]) -> str:
    """Space a function's name as TeX does: thinly, but not in front of a bracket."""
    behind = "0" if found["bracket"] is not None else "0.167em"
    return f'<mo{found["options"]} lspace="0.167em" rspace="{behind}">{found["name"]}</mo>'


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Replace every marked formula of a page."""

    def replaced(found: re.Match[str]) -> str:
        display = "block" if found["tag"] == "div" else "inline"
        try:
            return mathml(unescape(found["latex"]), display)
        except ValueError as error:
            raise PluginError(f"{page.file.src_uri}: {error}") from error

    return _FORMULA.sub(replaced, html)
