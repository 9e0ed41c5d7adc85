"""Progress on standard error: a bar on a terminal, else a line per minute in the log."""

from __future__ import annotations

import logging
import sys
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol, runtime_checkable

WINDOW = 300.0
"""Seconds over which rates are averaged: a long job shows its current speed."""
LINE_EVERY = 60.0
"""Minimum seconds between two lines in the log."""

_log = logging.getLogger("rmtllmf_jax.progress")
_silent = False


@runtime_checkable
class Advance(Protocol):
    """Advances a bar by `count` units; `also` counts other things done, as `images=5000`."""

    def __call__(self, count: int, **also: int) -> None: ...


@contextmanager
def silenced() -> Iterator[None]:
    """Show no bars, no notes and only the log's errors until the block ends."""
    global _silent
    log = logging.getLogger("rmtllmf_jax")
    before = _silent, log.level, _log.level
    _silent = True
    for logger in (log, _log):  # the second may have a level of its own
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _silent = before[0]
        log.setLevel(before[1])
        _log.setLevel(before[2])


def note(text: str) -> None:
    """Print a line about the progress of the work (not a result); nothing while `silenced`."""
    if not _silent:
        print(text, flush=True)


@contextmanager
def progress_bar(
    description: str, total: int, done: int = 0, *, unit: str = ""
) -> Iterator[Advance]:
    """Yield a function that advances a bar of `total` units, `done` of which are finished already.

    `unit` is the plural of what is counted (`cells`); with it the bar shows its rate, and those of
    all other counts given to `advance`: ``3.1 cells/s, 410 images/s``. A total of 0 means unknown.

    When standard error is not a terminal, nothing is written there (and rich is not imported): the
    logger `rmtllmf_jax.progress` gets a line of level INFO at most once a minute, as
    ``sweep: 120 of 4,199 cells, 3.1 cells/s, 410 images/s, 22 min left``. While `silenced` there is
    neither.
    """
    rates = _Rates()
    if _silent or not sys.stderr.isatty():
        yield _logging(description, total, done, unit, rates)
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([TextColumn("{task.fields[rate]}")] if unit else []),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total, completed=done, rate="")

        def advance(count: int, **also: int) -> None:
            rates.add({unit: count} | also)
            progress.update(task, advance=count, rate=", ".join(rates.texts()))

        yield advance


class _Rates:
    """The rates of some counts over the last `WINDOW` seconds."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._samples: deque[tuple[float, Counter[str]]] = deque()

    def add(self, counts: dict[str, int]) -> None:
        """Add counts. Time runs from the end of the first, which includes the compilation."""
        now = monotonic()
        self.totals.update(counts)
        if not self._samples or now - self._samples[-1][0] >= 1:
            self._samples.append((now, self.totals.copy()))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()

    def rates(self) -> dict[str, float]:
        """Return counts per second; empty before the second count."""
        if not self._samples:
            return {}
        then, before = self._samples[0]
        seconds = monotonic() - then
        if seconds <= 0:
            return {}
        return {unit: (count - before[unit]) / seconds for unit, count in self.totals.items()}

    def texts(self) -> list[str]:
        return [f"{_number(rate)} {unit}".rstrip() + "/s" for unit, rate in self.rates().items()]


def _logging(description: str, total: int, done: int, unit: str, rates: _Rates) -> Advance:
    logged = monotonic()

    def advance(count: int, **also: int) -> None:
        nonlocal logged
        rates.add({unit: count} | also)
        if (now := monotonic()) - logged < LINE_EVERY:
            return
        logged = now
        finished = done + rates.totals[unit]
        words = [f"{finished:,}" + (f" of {total:,}" if total else ""), *rates.texts()]
        words[0] += f" {unit}" if unit else ""
        rate = rates.rates().get(unit, 0)
        if rate > 0 and total > finished:
            words.append(f"{_duration((total - finished) / rate)} left")
        _log.info("%s: %s", description, ", ".join(words))

    return advance


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    for size, name, digits in ((1, "s", 0), (60, "min", 0), (3600, "h", 1)):
        if seconds < 90 * size:
            return f"{seconds / size:.{digits}f} {name}"
    return f"{seconds / 86400:.1f} d"
