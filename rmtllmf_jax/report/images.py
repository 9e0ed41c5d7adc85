"""A figure as the bytes of a file: the same figure gives the same bytes."""

from __future__ import annotations

import io

import matplotlib as mpl
from matplotlib.figure import Figure

# Metadata that would differ from one writing to the next.
_DATES: dict[str, dict[str, None]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
KINDS = tuple(_DATES)
"""File formats of figures."""


def image_bytes(figure: Figure, kind: str, dpi: int = 200) -> bytes:
    """Return a figure as a file of one of `KINDS`; `dpi` applies to pixels, mainly a PNG's.

    The first image made of a figure settles the layout for all formats.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "rmtllmf"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_DATES[kind])
    # The first drawing has computed the layout; the others keep it.
    figure.set_layout_engine(None)
    return buffer.getvalue()
