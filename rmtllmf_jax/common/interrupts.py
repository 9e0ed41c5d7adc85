"""Ctrl-C that waits until a step which must not be cut in two is over."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held(notice: str = "") -> Iterator[None]:
    """Let Ctrl-C take effect at the end of the block.

    For steps that leave something half-made behind, or lose much, if they are interrupted. With a
    `notice` for standard error the first Ctrl-C says it, and a second one takes effect at once.
    Python handles signals in the main thread alone; in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def remember(*_: object) -> None:
        nonlocal pressed
        if notice and pressed:
            raise KeyboardInterrupt
        pressed = True
        if notice:
            print(notice, file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)
