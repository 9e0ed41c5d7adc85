"""One finding of a check: what it saw, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]

LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""From errors, which make a run's results meaningless or stop it, to mere notes."""


@dataclass(frozen=True)
class Finding:
    """`what` the `check` saw in the data of `task`, and what `follows` from it for a run."""

    level: Level
    check: str
    task: str
    what: str
    follows: str


def share(count: int, total: int) -> str:
    """Return `count of total (percentage)`."""
    return f"{count:,} of {total:,} ({100 * count / max(total, 1):.3g} %)"


def some(items: Sequence[str], most: int = 3) -> str:
    """Return the first items in one line, and how many more there are."""
    shown = "; ".join(items[:most])
    return shown if len(items) <= most else f"{shown}; and {len(items) - most:,} more"
