"""The run folder: one process works in it at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rmtllmf_jax.common.errors import InputError


@contextmanager
def working_in(out: Path) -> Iterator[None]:
    """Make the folder and keep other processes out of it until the body ends.

    The kernel drops the lock when its holder dies, kill -9 included.

    **Raises:** `InputError` if the folder cannot be made, or another process works in it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / ".lock", "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"{out}: cannot be used as a run folder ({error}).") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{out}: another rmtllmf is working in this run folder; wait for it, or take "
                "another --out."
            ) from None
        yield
