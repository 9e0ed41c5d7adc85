"""A figure as the bytes of a file: same figure, same bytes."""

from __future__ import annotations

import io

import matplotlib as mpl
from matplotlib.figure import Figure

# What would tell one writing from another.
_DATES: dict[str, dict[str, None]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
KINDS = tuple(_DATES)
"""Kinds of files that a figure can be written as."""


def image_bytes(figure: Figure, kind: str, dpi: int = 200) -> bytes:
    """Return a figure as a file of one of `KINDS`; `dpi` is what pixels have, a PNG's above all.

    The layout is settled by the first image that is made of a figure, and the same in all.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "rmtllmf"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_DATES[kind])
    # The first drawing has found the places; the others keep them.
    figure.set_layout_engine(None)
    return buffer.getvalue()
