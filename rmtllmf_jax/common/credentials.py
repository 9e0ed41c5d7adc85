"""URLs without credentials."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(\w[\w+.-]*://)([^/?#\s\"']*@)?([^?\s\"']*)(\?[^\s\"']*)?")


def without_credentials(text: str) -> str:
    """Return a text with user, password and query values of its URLs replaced by `***`.

    For everything that is stored or printed: `run.json`, pages, error messages.
    """
    return _ADDRESS.sub(_hidden, text)


def _hidden(address: re.Match[str]) -> str:
    scheme, user, place, query = address.groups()
    shown = re.sub(r"=[^&]*", "=***", query or "")
    return f"{scheme}{'***@' if user else ''}{place}{shown}"
