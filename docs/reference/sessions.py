"""Turns a docstring into what Markdown wants: sessions as code blocks, and `::` as a colon."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_SESSION = re.compile(r"^>>> .*\n?(?:^(?!\s*$).*\n?)*", re.MULTILINE)  # up to an empty line
_BEFORE_CODE = re.compile(r"::$", re.MULTILINE)


class Sessions(Extension):
    """Every docstring, as it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Mark its Python sessions as code, which Markdown would read as quotations."""
        if obj.docstring:
            text = _BEFORE_CODE.sub(":", obj.docstring.value)
            obj.docstring.value = _SESSION.sub(
                lambda found: f"\n```pycon\n{found.group().rstrip()}\n```\n", text
            )
