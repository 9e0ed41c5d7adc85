"""The common style of the figures: colours and markers, uncluttered panels, image files."""

from __future__ import annotations

import io
from collections.abc import Iterable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers; in grey, markers distinguish the lines.
_STYLES = {
    "none": ("#D55E00", "s"),
    "freeze": ("#56B4E9", "^"),
    "realign": ("#CC79A7", "v"),
    "r-mtllmf": ("#0072B2", "o"),
    "phy": ("#E69F00", "P"),
    "holistic": ("#009E73", "D"),
    "control": ("#000000", "x"),
}
_SPARE = [("#882255", "*"), ("#44AA99", "p"), ("#F0E442", "h")]

_FIRST = ("holistic", "phy")
SEQUENCE = [
    *(_STYLES[name] for name in _FIRST),
    *(style for name, style in _STYLES.items() if name not in _FIRST),
]
"""Colours and markers of lines that are not protections, in order."""

# Metadata that would differ from one writing to the next.
_DATES: dict[str, dict[str, None]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
KINDS = tuple(_DATES)
"""File formats of figures."""


def styles(protections: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of every protection; unknown ones get spare colours."""
    others = [name for name in protections if name not in _STYLES]
    return _STYLES | {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(others)}


def tidy(panel: Axes, title: str = "") -> None:
    """Give a panel its title and a light grid, and remove clutter."""
    if title:
        panel.set_title(title, fontsize=11)
    panel.set_axisbelow(True)
    panel.grid(axis="y", color="0.9", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def add_legend(
    figure: Figure, panels: Iterable[Axes], columns: int, fontsize: int | None = None
) -> None:
    """Put one legend of all panels below them, each label once."""
    handles = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels())
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=fontsize,
    )


def image_bytes(figure: Figure, kind: str = "png", dpi: int = 200) -> bytes:
    """Return a figure as a file of one of `KINDS`; `dpi` applies to pixels, mainly in PNG.

    The same figure gives the same bytes. The first image made of a figure settles the layout for
    all formats.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "rmtllmf"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_DATES[kind])
    # The first drawing has computed the layout; the others keep it.
    figure.set_layout_engine(None)
    return buffer.getvalue()
