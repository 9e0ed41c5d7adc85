"""Addresses without what only their owner may know."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(\w[\w+.-]*://)([^/?#\s\"']*@)?([^?\s\"']*)(\?[^\s\"']*)?")


def without_credentials(text: str) -> str:
    """Return a text in whose URLs user, password and the values of a query read `***`.

    For whatever is kept or printed: `run.json`, pages, error messages.
    """
    return _ADDRESS.sub(_hidden, text)


def _hidden(address: re.Match[str]) -> str:
    scheme, user, place, query = address.groups()
    shown = re.sub(r"=[^&]*", "=***", query or "")
    return f"{scheme}{'***@' if user else ''}{place}{shown}"
