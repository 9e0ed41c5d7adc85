"""Ctrl-C, SIGTERM and SIGHUP end a program the same way, and wait for steps that must complete.

`stopping` makes the last two raise `Stopped`, a KeyboardInterrupt: finished work is stored on the
way out, whichever of the three it was.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP was received."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """Return the exit code that shells give a program ended by a signal: 130, 143 or 129."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


@contextmanager
def stopping() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Stopped` until the block ends.

    An ignored signal stays ignored, as under nohup. After a SIGHUP nothing is written to closed
    terminals, which would be another error.
    """
    if not _in_main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        _leave_dead_terminals()
        raise Stopped(number)

    wanted = [sign for sign in _STOPS[1:] if signal.getsignal(sign) == signal.SIG_DFL]
    for sign in wanted:
        signal.signal(sign, stop)
    try:
        yield
    finally:
        for sign in wanted:
            signal.signal(sign, signal.SIG_DFL)


@contextmanager
def interrupts_held(notice: str = "") -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C, and the signals of `stopping`, take effect at the end of the block.

    Yields a function that says whether one was received, so that the block can come to its end.

    For steps that would leave something half-made, or lose much work, if interrupted. With a
    `notice`, the first signal prints it on standard error and a second one takes effect at once.
    Python handles signals in the main thread only; in other threads nothing changes.
    """
    if not _in_main_thread():
        yield lambda: False
        return
    first: int | None = None

    def remember(number: int, frame: Any) -> None:
        nonlocal first
        again = first is not None
        first = number if first is None else first
        if again and notice:
            before[signal.Signals(number)](number, frame)
        if not again and notice:
            _leave_dead_terminals()
            print(notice, file=sys.stderr, flush=True)

    handlers = {sign: signal.getsignal(sign) for sign in _STOPS}
    before: dict[signal.Signals, Any] = {s: h for s, h in handlers.items() if callable(h)}
    for sign in before:
        signal.signal(sign, remember)
    try:
        yield lambda: first is not None
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    if first is not None:
        signal.raise_signal(first)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _leave_dead_terminals() -> None:
    """Redirect output for closed terminals to the null device; writing there is an error."""
    for number in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
