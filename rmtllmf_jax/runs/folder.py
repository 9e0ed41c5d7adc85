"""The run folder: used by one process at a time; it keeps the tables of every sweep."""

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
"""The future `run.json`, from a sweep's start to its end."""
EARLIER = "earlier"
"""Folder of the tables and reports of other configurations, each in a folder of its own."""
RUN = "run.json"
"""The provenance of a folder's tables."""
STATISTICS = "statistics"
"""Folder of what `rmtllmf statistics` measured of the users' models."""
RESULTS = "results.parquet"
_TABLES = (RESULTS, "cosines.parquet", "scales.parquet", "said.parquet", "report", RUN)
_LOCK = ".lock"


@contextmanager
def working_in(out: Path) -> Iterator[None]:
    """Create the folder and keep other processes out of it until the body ends.

    The kernel releases the lock when its holder dies, even by kill -9. Folders created here that
    stay empty, for example after a refused command, are removed at the end.

    **Raises:** `InputError` if the folder cannot be created, or another process works in it.
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
    """Remove the folders that a process created, if nothing was written to them."""
    with suppress(OSError):  # the folder is gone or not empty
        if [path.name for path in out.iterdir()] == [_LOCK]:
            for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
                path.unlink() if path.name == _LOCK else path.rmdir()


def set_aside(out: Path, configuration: Mapping[str, Any]) -> Path | None:
    """Move the tables of another configuration away, and return where they are now.

    A configuration is that of the store (inputs and settings) plus the grid. Tables and report of
    another one move to a folder in `EARLIER`; earlier ones of this configuration move back. `None`
    if there were no tables, or they belong to this configuration.
    """
    name, before = _name_of(configuration), None
    if any((out / each).exists() for each in (RESULTS, RUN)) and (seen := _name_there(out)) != name:
        before = out / EARLIER / seen
        _move(out, before)
    if (back := out / EARLIER / name).is_dir():
        _move(back, out)
        back.rmdir()
    return before


def _move(here: Path, there: Path) -> None:
    there.mkdir(parents=True, exist_ok=True)
    for name in _TABLES:  # the provenance last, so that a killed move can resume
        if (here / name).exists():
            if (here / name).is_dir():
                shutil.rmtree(there / name, ignore_errors=True)
            os.replace(here / name, there / name)


def _name_there(out: Path) -> str:
    try:
        return _name_of(read_json(out / RUN))
    except (InputError, KeyError, TypeError):  # written by another program
        return file_hash(out / RESULTS)[:16]


def _name_of(configuration: Mapping[str, Any]) -> str:
    return content_hash([Path(configuration["store"]).name, configuration["grid"]])
