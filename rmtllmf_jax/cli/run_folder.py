"""The run folder: one process works in it at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import lock

_LOCK = ".lock"


@contextmanager
def working_in(out: Path) -> Iterator[None]:
    """Make the folder and keep other processes out of it until the body ends.

    The kernel drops the lock when its holder dies, kill -9 included. What was made here and stayed
    empty, as for a command that is refused, is removed at the end.

    **Raises:** `InputError` if the folder cannot be made, or another process works in it.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    made += [] if (out / _LOCK).exists() else [out / _LOCK]
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / _LOCK, "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"{out}: cannot be used as a run folder ({error}).") from error
    with file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            raise InputError(
                f"{out}: another rmtllmf is working in this run folder; wait for it, or take "
                "another --out."
            ) from None
        try:
            yield
        finally:
            _remove_if_empty(out, made)


def _remove_if_empty(out: Path, made: list[Path]) -> None:
    """Remove what a process made for itself, if nothing came to lie in it."""
    with suppress(OSError):  # the folder is gone or not empty
        if [path.name for path in out.iterdir()] == [_LOCK]:
            for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
                path.unlink() if path.name == _LOCK else path.rmdir()
