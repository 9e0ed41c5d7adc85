"""Standard streams: readers that have gone, closed streams, signs that cannot be written."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from rmtllmf_jax.common.credentials import without_credentials

_PLAIN = {"±": "+-", "×": "x", "–": "-", "—": "-", "…": "...", "•": "*", "→": "->"}


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """End quietly, with the exit code of other tools, when the reader of a pipe has gone."""
    try:
        try:
            yield
        except SystemExit as ending:
            if isinstance(ending.__context__, BrokenPipeError):  # rich ends a program so, with 1
                sys.exit(141)
            _flush(failed=bool(ending.code))
            raise
        _flush()  # here, and not when Python is on its way out
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _nobody_reads(stream)]
        if not closed:
            raise  # another pipe: a bug
        for stream in closed:
            _discard(stream)
        sys.exit(141)


def _flush(failed: bool = False) -> None:
    """Write what was printed; say so if that fails, unless an error was said already."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)
        if not failed:
            refuse(f"standard output: cannot be written ({error.strerror}).")


def _discard(stream: TextIO) -> None:
    """Send what is still in a stream's buffer to nowhere: it has to go somewhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _nobody_reads(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def open_streams() -> None:
    """Give a program that was started without standard streams some, and ASCII ones plain signs."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # else the next file to be opened would be taken for it
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the program ends
    codecs.register_error("plain", _plainly)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="plain")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    unknown = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign, "?") for sign in unknown), error.end


def refuse(message: str) -> NoReturn:
    """Print an error and exit with the code of bad input."""
    print(f"rmtllmf: {without_credentials(message)}", file=sys.stderr)
    sys.exit(2)
