"""The run folder: one process works in it at a time, and tables of each sweep stay in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, file_hash, lock, read_json

UNDER_WAY = "sweeping.json"
"""What `run.json` will be, from a sweep's start to its end."""
EARLIER = "earlier"
"""Folder of the tables and reports of other configurations, each in a folder of its own."""
RUN = "run.json"
"""How the tables of a folder came about."""
_RESULTS = "results.parquet"
_TABLES = (_RESULTS, "cosines.parquet", "scales.parquet", "report", RUN)
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


def set_aside(out: Path, configuration: Mapping[str, Any]) -> Path | None:
    """Make room for the tables of a sweep, and return where those of another one are now.

    A configuration is the store's (inputs and settings) and the grid. Tables and report of another
    one go to a folder of `EARLIER`, from where those of this one come back. `None` if there were
    none, or they are of this one.
    """
    name, before = _name_of(configuration), None
    if (
        any((out / each).exists() for each in (_RESULTS, RUN))
        and (seen := _name_there(out)) != name
    ):
        before = out / EARLIER / seen
        _move(out, before)
    if (back := out / EARLIER / name).is_dir():
        _move(back, out)
        back.rmdir()
    return before


def _move(here: Path, there: Path) -> None:
    there.mkdir(parents=True, exist_ok=True)
    for name in _TABLES:  # what says whose they are last, so that a kill leaves a move to go on
        if (here / name).exists():
            if (here / name).is_dir():
                shutil.rmtree(there / name, ignore_errors=True)
            os.replace(here / name, there / name)


def _name_there(out: Path) -> str:
    try:
        return _name_of(read_json(out / RUN))
    except (InputError, KeyError, TypeError):  # of another program
        return file_hash(out / _RESULTS)[:16]


def _name_of(configuration: Mapping[str, Any]) -> str:
    return content_hash([Path(configuration["store"]).name, configuration["grid"]])
